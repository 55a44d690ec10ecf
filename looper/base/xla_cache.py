"""XLA programs that are kept from process to process, through TensorFlow's persistent cache.

TensorFlow (2.21) looks for a program in a folder before it compiles it, and puts it there afterwards. It does not
check what it reads: a damaged file raises, aborts the process or runs other code. So each process has a folder of its
own, into which the files are linked whose content has the digest in their names; what the process compiles is put
beside those under its digest. Two processes never read what the other is writing.

The folder must be named before TensorFlow's first operation: `announce` is called when looper is imported.
"""

import atexit
import contextlib
import os
import re
import threading
from collections.abc import Iterator
from pathlib import Path

from looper.base import user_cache

FLAG = "--tf_xla_persistent_cache_directory="
MARK = "LOOPER_XLA_CACHE"
"""A variable that tells processes which inherit the flag that looper has set it."""

NOISE = ("cpu_aot_loader.cc", "Error parsing text-format tensorflow.XlaSerializedCacheEntry")
"""Of each program that TensorFlow 2.21 loads: that the processor lacks "prefer-no-gather", which is a taste of the
compiler and no ability; and that the file, which is a binary one, is no text."""

MOST_BYTES = 256 << 20
"""What the kept programs may take; the oldest ones go."""

ANEW = "XLA programs are compiled anew in each process"

_LOCK = threading.Lock()
_directory: Path | None = None  # of this process
_why_not: str | None = None
_prepared = False
_new = 0  # programs that this process has compiled


def announce() -> None:
    """Names the folder to TensorFlow, unless the user has named one or wants none. Writes no file."""
    global _directory, _why_not
    flags = os.environ.get("TF_XLA_FLAGS", "")
    inherited = os.environ.get(MARK)
    if inherited:
        flags = flags.replace(FLAG + inherited, "").strip()
    root = user_cache.folder()
    if FLAG.rstrip("=") in flags or root is None:
        _set_flags(flags, None) if inherited else None
        return
    if flags and not flags.startswith("-"):
        _why_not = f"TF_XLA_FLAGS names the file {flags!r}"
    elif re.search(r"[\s'\"]", str(root)):
        _why_not = f"{str(root)!r} has spaces or quotes in it, at which TensorFlow would cut it"
    else:
        _why_not = user_cache.make_private(root)
    if _why_not is not None:
        _set_flags(flags, None) if inherited else None
        return
    _directory = root / "running" / f"{os.getpid()}-{os.urandom(4).hex()}"
    _set_flags(flags, _directory)
    atexit.register(_leave, os.getpid())


def _set_flags(flags: str, directory: Path | None) -> None:
    if directory is None:
        os.environ["TF_XLA_FLAGS"] = flags
        os.environ.pop(MARK, None)
    else:
        os.environ["TF_XLA_FLAGS"] = f"{flags} {FLAG}{directory}".strip()
        os.environ[MARK] = str(directory)


@contextlib.contextmanager
def used() -> Iterator[None]:
    """Surrounds what may compile with XLA: kept programs are there before it, new ones are kept after it."""
    from looper.base.hushed import hushed  # here, as in `_warn`

    _prepare()
    try:
        may_load = _directory is not None and any(_directory.glob("*.pb"))
        with hushed(NOISE) if may_load else contextlib.nullcontext():
            yield
    finally:
        _keep()


def new_programs() -> int:
    """How many programs this process has compiled and kept, rather than found."""
    return _new


def is_to_blame(error: Exception) -> bool:
    """Whether an error speaks of the folder: then it is not XLA that cannot compile."""
    return _directory is not None and str(_directory) in str(error)


def _prepare() -> None:
    """Links what was kept into this process' folder, once."""
    global _prepared
    with _LOCK:
        if _prepared:
            return
        _prepared = True
        if _directory is None:
            if _why_not is not None:
                _warn(f"{ANEW}: {_why_not}. LOOPER_CACHE=DIR names another one.")
            return
        store = _store()
        folders = (store, _directory.parent, _directory)
        reason = next(filter(None, map(user_cache.make_private, folders)), None)
        if reason is not None:
            _warn(f"{ANEW}: {reason}.")
            return
        _remove_ended(_directory.parent)
        _prune(store)
        for kept in sorted(store.iterdir()):
            name, _, digest = kept.name.rpartition(".")
            with contextlib.suppress(OSError):
                if _digest(kept) == digest:
                    os.link(kept, _directory / name)
                else:
                    kept.unlink()


def _keep() -> None:
    """Keeps what this process has compiled since the last time."""
    global _new
    with _LOCK:
        if _directory is None or not _directory.is_dir():
            return
        store = _store()
        for program in _directory.iterdir():
            with contextlib.suppress(OSError):
                if program.stat().st_nlink == 1 and program.suffix == ".pb":  # not what is being written
                    os.link(program, store / f"{program.name}.{_digest(program)}")
                    _new += 1


def _store() -> Path:
    flags = os.environ.get("TF_XLA_FLAGS", "").replace(f"{FLAG}{_directory}", "").split()
    return _directory.parents[1] / f"xla-{user_cache.machine(tuple(flags))}"


def _digest(path: Path) -> str:
    import hashlib

    return hashlib.blake2b(path.read_bytes(), digest_size=16).hexdigest()


def _prune(store: Path) -> None:
    """Removes the oldest until the rest is small enough."""
    kept = []
    for path in store.iterdir():
        with contextlib.suppress(OSError):  # another process may have removed it
            kept.append((path.stat(), path))
    total = 0
    for found, path in sorted(kept, key=lambda each: each[0].st_mtime, reverse=True):
        total += found.st_size
        if total > MOST_BYTES:
            path.unlink(missing_ok=True)


def _warn(message: str) -> None:
    from looper.base.lines import warn  # takes longer to import than all else that looper needs before TensorFlow

    warn(message)


def _remove_ended(running: Path) -> None:
    """Removes the folders of processes that ended without doing so."""
    for path in running.iterdir():
        process = re.match(r"\d+", path.name)
        if process and not _runs(int(process[0])):
            _remove(path)


def _remove(folder: Path) -> None:
    import shutil  # as `_warn`: looper is imported by many that never compile

    shutil.rmtree(folder, ignore_errors=True)


def _runs(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True


def _leave(process: int) -> None:
    """Removes this process' folder at its end; not in a forked child's."""
    if _directory is not None and os.getpid() == process:
        _keep()
        _remove(_directory)
