"""The memory that this process has from the system."""

import ctypes
import sys


def give_back() -> None:
    """Gives what is free back to the system, where the C library can: glibc keeps what compiling took and freed.

    See `malloc_trim(3)`: all of the process' heaps are looked at, so it is not for a hot path.

    Example:
        >>> give_back()
    """
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # musl has none
        if trim is not None:
            trim(ctypes.c_size_t(0))
