"""The memory that this process has from the system."""

import ctypes
import os
import sys

M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_THRESHOLD = -1, -2, -3
"""Of glibc's `malloc.h`."""

LARGEST = 32 << 20
"""Bytes: glibc by itself comes to keep freed pieces up to this size, see `mallopt(3)`."""


def keep_freed() -> None:
    """Lets glibc keep what is freed for the next who asks, as far as it does so by itself, and not less.

    TensorFlow (2.21, `ApplyPython311MemoryPatch`) tells it not to, from 128 KiB on, when the first dataset of a
    generator is read in a process. From then on each large tensor of each step comes from the system and goes back to
    it, page by page, for the rest of the process. What the user set in the environment stays.

    A thread other than the first gets its memory in heaps of 64 MiB, and glibc (2.36, `heap_trim`) gives one back as
    soon as nothing is in it: at the border of two, each step would get a new one, as one run in a few did (1,300 pages
    a step). `M_TOP_PAD` of that size keeps it.

    Example:
        >>> keep_freed()
    """
    users = f"{os.environ.get('GLIBC_TUNABLES', '')} {' '.join(os.environ)}".lower()
    mallopt = _c_function("mallopt")
    if mallopt is not None and not any(name in users for name in ("mmap_threshold", "trim_threshold", "top_pad")):
        mallopt(M_MMAP_THRESHOLD, LARGEST)
        mallopt(M_TRIM_THRESHOLD, 2 * LARGEST)  # twice as much, as glibc has it
        mallopt(M_TOP_PAD, 2 * LARGEST)


def give_back() -> None:
    """Gives what is free back to the system, where the C library can: glibc keeps what compiling took and freed.

    See `malloc_trim(3)`: all of the process' heaps are looked at, so it is not for a hot path.

    Example:
        >>> give_back()
    """
    trim = _c_function("malloc_trim")
    if trim is not None:
        trim(ctypes.c_size_t(0))


def resident() -> int | None:
    """Bytes of memory that this process has, or None where the system does not tell.

    Example:
        >>> resident() is None or resident() > 1 << 20
        True
    """
    try:
        with open("/proc/self/statm") as file:  # 10 microseconds
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, IndexError):
        return None


def _c_function(name: str) -> "ctypes._NamedFuncPointer | None":
    """A function of the C library on Linux, or None if it has none of this name: musl has neither."""
    return getattr(ctypes.CDLL(None), name, None) if sys.platform == "linux" else None
