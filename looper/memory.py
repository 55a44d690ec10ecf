"""The memory that this process has from the system."""

import ctypes
import os
import sys
from typing import NamedTuple


class Setting(NamedTuple):
    """A setting of glibc's allocator, see `mallopt(3)`.

    Attributes:
        number: in `malloc.h`.
        name: in the environment it is `MALLOC_{name}_`, or lower case in `GLIBC_TUNABLES`.
        value: bytes.
    """

    number: int
    name: str
    value: int

    @property
    def is_the_users(self) -> bool:
        tunables = os.environ.get("GLIBC_TUNABLES", "")
        return f"MALLOC_{self.name}_" in os.environ or f"glibc.malloc.{self.name.lower()}=" in tunables


KEEPING = (
    Setting(-1, "TRIM_THRESHOLD", 2**30),  # so much that is free at the end of a heap is kept
    Setting(-2, "TOP_PAD", 2**26),  # the size of a thread's heap: an empty one is kept
    Setting(-3, "MMAP_THRESHOLD", 2**25),  # what is larger is no heap's; glibc takes no larger value
)


def keep() -> None:
    """Keeps what is freed from now on for the next who asks, where the C library is glibc.

    Otherwise glibc may give a large piece back to the system as soon as it is free, as it lies where it does. A step
    that XLA compiled asks for all its working memory in one piece, and then gets it anew each time, page by page. What
    the user set in the environment stays. Peak memory stays, too: no more is kept than there was.

    Example:
        >>> keep()
    """
    mallopt = _c_function("mallopt")
    if mallopt is not None:
        for setting in KEEPING:
            if not setting.is_the_users:
                mallopt(setting.number, setting.value)


def give_back() -> None:
    """Gives what is free back to the system, where the C library can: glibc keeps what compiling took and freed.

    See `malloc_trim(3)`: all of the process' heaps are looked at, so it is not for a hot path.

    Example:
        >>> give_back()
    """
    trim = _c_function("malloc_trim")
    if trim is not None:
        trim(ctypes.c_size_t(0))


def _c_function(name: str) -> "ctypes._NamedFuncPointer | None":
    """A function of the C library on Linux, or None if it has none of this name: musl has neither."""
    return getattr(ctypes.CDLL(None), name, None) if sys.platform == "linux" else None
