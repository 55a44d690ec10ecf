"""Lines that TensorFlow writes to the terminal though there is nothing to be done about them."""

import contextlib
import os
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence

FILTER = """
import os, sys
words = [word.encode() for word in sys.argv[1:]]
for line in sys.stdin.buffer:
    try:
        while line and not any(word in line for word in words):
            line = line[os.write(1, line):]
    except OSError:
        pass
"""
"""A program of its own, so that what a process says before it is aborted comes, too, and so that no thread of Python is
needed to let C++ go on writing."""

_LOCK = threading.Lock()
_inside = 0  # sections, of all threads: the first one begins and the last one ends


@contextlib.contextmanager
def hushed(words: Sequence[str]) -> Iterator[None]:
    """Inside it lines of the standard error stream with one of these words are dropped, and others come as written.

    TensorFlow writes them in C++, by the file's number: no stream of Python sees them. A section inside another one,
    of this thread or another one, has no words of its own.

    Example:
        >>> with hushed(["of no use"]):
        ...     _ = os.write(2, b"a line of no use" + bytes([10]))
    """
    global _inside
    with _LOCK, contextlib.ExitStack() as begun:
        if not _inside:
            _begin(words, begun)
            _ENDS.append(begun.pop_all())
        _inside += 1
    try:
        yield
    finally:
        with _LOCK:
            _inside -= 1
            if not _inside:
                _ENDS.pop().close()


_ENDS: list[contextlib.ExitStack] = []
_LEFT: list[subprocess.Popen] = []


def _begin(words: Sequence[str], end: contextlib.ExitStack) -> None:
    """Puts the filter before the standard error stream, if there is such a stream; `end` takes it away."""
    if not sys.executable or getattr(sys, "frozen", False):  # there is no Python to run it
        return
    try:
        kept = os.dup(2)
    except OSError:
        return
    end.callback(os.close, kept)
    command = [sys.executable, "-I", "-S", "-c", FILTER, *words]
    try:  # in a session of its own: Ctrl-C is not meant for it
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=kept, start_new_session=True)
    except OSError:
        return
    end.callback(_wait, process)
    os.dup2(process.stdin.fileno(), 2)
    process.stdin.close()
    end.callback(os.dup2, kept, 2)


def _wait(process: subprocess.Popen) -> None:
    """Waits until all lines have come; not for a process that was started inside, which may write on."""
    try:
        process.wait(1.0)
    except subprocess.TimeoutExpired:
        _LEFT.append(process)  # or Python warns of it
