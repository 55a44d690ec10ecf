"""Words for people, which never stop a run: nobody may be there to read them."""

import contextlib
import os
import sys
from typing import Any


class Quiet:
    """A text stream that takes what it is given, whether anybody reads it or not.

    A pipe whose reader is gone, a terminal that was closed, a full disk behind `> log.txt`, and no stream at all.

    Attributes:
        stream: the stream, or None.

    Args:
        stream: see above.

    Example:
        >>> Quiet(None).write("nobody hears this")
        17
    """

    def __init__(self, stream: Any) -> None:
        self.stream = stream

    def __eq__(self, other: object) -> bool:
        """Whether it is the same stream: tqdm clears its bar where somebody else writes to it."""
        return self.stream is (other.stream if isinstance(other, Quiet) else other)

    def __hash__(self) -> int:
        return hash(self.stream)

    def write(self, text: str) -> int:
        """Writes, as far as that can be done."""
        with contextlib.suppress(OSError, ValueError, AttributeError):
            self.stream.write(text)
        return len(text)

    def flush(self) -> None:
        """The same, of what is waiting to be written."""
        with contextlib.suppress(OSError, ValueError, AttributeError):
            self.stream.flush()

    def isatty(self) -> bool:
        """Whether it is a terminal that is still there: tqdm flushes what it is given, without asking."""
        try:
            self.stream.flush()
            return bool(self.stream.isatty())
        except (OSError, ValueError, AttributeError):
            return False

    def fileno(self) -> int:
        """The number of its file. Raises OSError where there is none."""
        if self.stream is None:
            raise OSError("there is no stream")
        return self.stream.fileno()

    @property
    def encoding(self) -> str:
        """By which tqdm chooses what it draws with."""
        return getattr(self.stream, "encoding", None) or "utf-8"


def say(text: str) -> None:
    """Writes a line to standard error.

    Example:
        >>> say("looper: hello")
    """
    out = Quiet(sys.stderr)
    out.write(text + "\n")
    out.flush()


def open_missing_descriptors() -> None:
    """Opens what a process without standard input, output or error lacks, as nothing.

    Else the next file that is opened would get its number, and what TensorFlow writes as standard error would be in it.
    """
    for descriptor in (0, 1, 2):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # gets the lowest number that is free
