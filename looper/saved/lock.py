"""One process at a time trains in a workdir: the kernel holds a lock for it, until it ends, however it ends."""

import contextlib
import errno
import fcntl
import json
import os
import platform
import time
import weakref
from pathlib import Path

from looper.base.errors import InputError
from looper.base.lines import warn

FILE = ".lock"
"""In a workdir. It is never removed, moved or renamed: another process may have it open."""

_HELD: "weakref.WeakSet[Lock]" = weakref.WeakSet()


class Lock:
    """The right to write to a workdir. Use it as a context, also inside one that this object holds.

    Two of them on one folder exclude each other, in two processes and in one. What the file says is for people.

    Attributes:
        folder: the workdir.

    Args:
        folder: see above.

    Raises:
        InputError: on entering, if another one holds it; the message names the process.

    Example:
        >>> import tempfile
        >>> folder = Path(tempfile.mkdtemp())
        >>> with Lock(folder) as one:
        ...     with one, contextlib.suppress(InputError), Lock(folder):
        ...         print("not reached")
        >>> with Lock(folder):
        ...     pass
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._count = 0
        self._descriptor: int | None = None

    def __enter__(self) -> "Lock":
        if not self._count:
            self._take()
        self._count += 1
        return self

    def __exit__(self, *_: object) -> None:
        self._count -= 1
        if not self._count:
            self.let_go()

    def _take(self) -> None:
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._descriptor = os.open(self.folder / FILE, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        except OSError as error:
            raise InputError(f"workdir={str(self.folder)!r}: cannot write there ({error.strerror}).") from None
        _HELD.add(self)
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            holder = _holder(self._descriptor)
            self.let_go()
            if error.errno in (errno.EAGAIN, errno.EACCES, errno.EWOULDBLOCK):
                raise InputError(
                    f"the workdir {self.folder} is in use{holder}: wait for that to end, or give another workdir."
                ) from None
            warn(
                f"the file system of {self.folder} knows no locks ({error.strerror}): nothing keeps a second process "
                "from writing there."
            )
            return
        about = {"host": platform.node(), "pid": os.getpid(), "since": time.strftime("%Y-%m-%d %H:%M:%S")}
        with contextlib.suppress(OSError):  # of a full disk: it is for people only
            os.ftruncate(self._descriptor, 0)
            os.pwrite(self._descriptor, json.dumps(about).encode(), 0)

    def let_go(self) -> None:
        """Closes the file, of which the kernel then knows one less that is open."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None
        _HELD.discard(self)


def _holder(descriptor: int) -> str:
    """Who holds the lock, for a message; "" if the file does not say."""
    try:
        about = json.loads(os.pread(descriptor, 4096, 0))
        return f" by process {int(about['pid'])} of {str(about['host'])[:64]} since {str(about['since'])[:32]}"
    except (OSError, ValueError, KeyError, TypeError):
        return ""


def _let_go() -> None:
    """In a process that was forked: it is not the one that trains, and may live longer."""
    for lock in list(_HELD):
        lock.let_go()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_let_go)
