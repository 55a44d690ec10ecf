"""Names of traced functions that are the same in each process: XLA's cache finds a program by them, among others."""

import collections
import contextlib
import itertools
import zlib
from collections.abc import Iterator

from tensorflow.python.framework import ops

_BEFORE: collections.Counter[int] = collections.Counter()
"""How many traces of the same words there were in this process."""

APART = 10**6
"""Numbers for one trace; the process' own are smaller than the first of them."""

MOST_TRACES = 64
"""Of the same words; later ones are numbered as TensorFlow does it, which has 64 bits for all."""


@contextlib.contextmanager
def numbered_by(words: str) -> Iterator[None]:
    """Inside it TensorFlow numbers the functions that it traces from a number on that depends on some words alone.

    They are named by `ops.uid`, private in TensorFlow 2.21, which counts each eager tensor of the process besides; no
    public argument names the functions of a `tf.while_loop`. tests/test_private_names.py fails if that changes. To be
    used by one thread at a time.

    Example:
        >>> with numbered_by("an example"):
        ...     first = ops.uid()
        >>> first > APART
        True
    """
    key = zlib.crc32(words.encode())
    traces, _BEFORE[key] = _BEFORE[key], _BEFORE[key] + 1
    if traces >= MOST_TRACES:
        yield
        return
    begin = ((1 + key) * MOST_TRACES + traces) * APART
    counter, before = itertools.count(begin), ops.uid
    ops.uid = lambda: next(counter)
    try:
        yield
    finally:
        ops.uid = before
