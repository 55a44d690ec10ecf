"""The user's cache folder: what one process leaves there for the next. `LOOPER_CACHE` names another one, or "off".

    ~/.cache/looper/                    or $XDG_CACHE_HOME/looper
        xla-<machine>/NAME.DIGEST       programs that XLA compiled: see `looper.base.xla_cache`
        modes-<machine>/KEY.json        how fast the modes of a recipe were: see `looper.step.known`
        running/PID-TOKEN/              what TensorFlow reads and writes in one process

Nobody else may write there, as what is read is run. The folders of other versions of TensorFlow or Keras, other
processors and other formats are passed over.
"""

import functools
import os
import stat
from pathlib import Path

FORMAT = 1
"""Of what stands in the folder; another one has folders of its own."""

OFF = ("", "0", "off", "no", "false")


def folder() -> Path | None:
    """The folder, or None if there is to be none. It need not exist.

    Example:
        >>> from unittest import mock
        >>> with mock.patch.dict(os.environ, LOOPER_CACHE="/tmp/mine"):
        ...     folder()
        PosixPath('/tmp/mine')
        >>> with mock.patch.dict(os.environ, LOOPER_CACHE="off"):
        ...     folder()
    """
    asked, base = os.environ.get("LOOPER_CACHE"), os.environ.get("XDG_CACHE_HOME")
    if asked is not None and asked.strip().lower() in OFF:
        return None
    try:
        if asked is not None:
            return Path(asked).expanduser().absolute()
        return (Path(base) if base and os.path.isabs(base) else Path.home() / ".cache") / "looper"
    except RuntimeError:  # nobody knows a home
        return None


def make_private(path: Path) -> str | None:
    """Makes a folder that only this user can read and write. Returns why it cannot be used, or None."""
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = os.lstat(path)
    except OSError as error:
        return f"{path} cannot be made ({error.strerror})"
    if not stat.S_ISDIR(found.st_mode):
        return f"{path} is not a folder"
    if hasattr(os, "geteuid") and found.st_uid != os.geteuid():
        return f"{path} belongs to another user"
    if found.st_mode & 0o022:
        return f"{path} can be written by others (chmod 700)"
    if not os.access(path, os.W_OK | os.X_OK):
        return f"{path} cannot be written"
    return None


@functools.cache
def machine(flags: tuple[str, ...] = ()) -> str:
    """Tells what was left by other versions, on other processors or with other flags, from what can be used here.

    Args:
        flags: the user's own in `TF_XLA_FLAGS`.
    """
    import hashlib
    import platform

    from looper.base.versions import installed  # which reads files: looper is imported by many that never compile

    parts = [str(FORMAT), platform.system(), platform.machine(), *_processor()]
    parts += [os.environ.get("XLA_FLAGS", ""), *flags]  # they make other programs
    parts += [f"{name} {installed(name)}" for name in ("tensorflow", "keras", "looper-tf")]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]


def _processor() -> list[str]:
    """The model of the processor, and what it can, from the system: TensorFlow's own word is no public name."""
    try:
        lines = Path("/proc/cpuinfo").read_text().split("\n\n")[0].splitlines()
    except OSError:
        return []
    return sorted(line for line in lines if line.split("\t")[0].strip() in ("model name", "flags", "Features"))
