"""Lines that TensorFlow writes to the terminal though there is nothing to be done about them."""

import contextlib
import os
import threading
from collections.abc import Iterator, Sequence


@contextlib.contextmanager
def hushed(words: Sequence[str]) -> Iterator[None]:
    """Inside it lines of the standard error stream with one of these words are dropped, and others come as written.

    TensorFlow writes them in C++, by the file's number: no stream of Python sees them.

    Example:
        >>> with hushed(["of no use"]):
        ...     _ = os.write(2, b"a line of no use" + bytes([10]))
    """
    try:
        kept = os.dup(2)
    except OSError:  # there is no such stream
        yield
        return
    reading, writing = os.pipe()

    def forward() -> None:
        with os.fdopen(reading, "rb") as lines:
            for line in lines:
                if not any(word.encode() in line for word in words):
                    with contextlib.suppress(OSError):
                        os.write(kept, line)

    thread = threading.Thread(target=forward, name="looper-hushed", daemon=True)
    thread.start()
    os.dup2(writing, 2)
    os.close(writing)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        thread.join(1.0)
        if not thread.is_alive():  # a process that was started inside may write there still
            os.close(kept)
