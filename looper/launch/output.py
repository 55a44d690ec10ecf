"""The workers' output: cut into lines, shown with the rank before each, and kept in a log for each rank."""

import collections
import os
import select
import time
from pathlib import Path


class Lines:
    """Cuts bytes into lines.

    A carriage return begins a line anew, as progress bars do: of such a line the last state counts.

    Example:
        >>> lines = Lines()
        >>> lines.feed(b"one\\ntwo\\r\\n 50%\\r100%")
        [b'one', b'two']
        >>> lines.unfinished
        b'100%'
        >>> lines.feed(b" done\\nlast"), lines.end()
        ([b'100% done'], [b'last'])
    """

    def __init__(self) -> None:
        self._text = b""

    @property
    def unfinished(self) -> bytes:
        """The line that has not ended yet, as a terminal would show it."""
        return _shown(self._text)

    def feed(self, data: bytes) -> list[bytes]:
        """The lines that `data` ends, without their ends."""
        *ended, text = (self._text + data).split(b"\n")
        ended = [_shown(line) for line in ended]
        shown = _shown(text)
        self._text = shown + b"\r" if text.endswith(b"\r") else shown  # what was overwritten is dropped
        return ended

    def end(self) -> list[bytes]:
        """The line that was left without an end, if there is one."""
        return self.feed(b"\n") if self._text.strip(b"\r") else []


def _shown(line: bytes) -> bytes:
    return line.rstrip(b"\r").rpartition(b"\r")[2]


class Screen:
    """The launcher's standard output and error. Lines are written whole; on a terminal, a bar stays below them.

    If one of them is gone, such as the reader of a pipe, training goes on without it.
    """

    OUT, ERR = 1, 2

    def __init__(self) -> None:
        self._terminals = set(filter(os.isatty, (self.OUT, self.ERR)))
        self._gone: set[int] = set()
        self._bar = b""

    @property
    def shows_bars(self) -> bool:
        """Whether standard error is a terminal."""
        return self.ERR in self._terminals

    def line(self, stream: int, text: bytes) -> None:
        """Writes a line."""
        covered = bool(self._bar) and stream in self._terminals
        if covered:
            self._write(self.ERR, b"\r\x1b[K")
        self._write(stream, text + b"\n")
        if covered:
            self._write(self.ERR, self._bar)

    def say(self, text: str) -> None:
        """Writes a message of the launcher's own to standard error."""
        for line in text.splitlines():
            self.line(self.ERR, line.encode(errors="backslashreplace"))

    def bar(self, text: bytes) -> None:
        """Shows a line that will be written over, on a terminal; nothing takes it away."""
        if self.shows_bars and text != self._bar:
            self._bar = text
            self._write(self.ERR, b"\r\x1b[K" + text)

    def _write(self, stream: int, data: bytes) -> None:
        while data and stream not in self._gone:
            try:
                data = data[os.write(stream, data) :]
            except BlockingIOError:  # somebody who shares the terminal made it so
                select.select([], [stream], [])
            except OSError:
                self._gone.add(stream)


class Log:
    """A rank's file in the workdir, appended to. What comes before the workdir is known waits.

    Args:
        rank: of the worker.
        head: the first line of this attempt.
        screen: says if nothing can be written.
    """

    def __init__(self, rank: int, head: str, screen: Screen) -> None:
        self.path: Path | None = None
        self._rank, self._screen = rank, screen
        self._waiting = [f"--- {head}, {time.strftime('%Y-%m-%d %H:%M:%S')} ---".encode()]
        self._file: int | None = None
        self._closed = False

    @staticmethod
    def path_of(workdir: Path, rank: int) -> Path:
        """Where a rank's log is: `WORKDIR/logs/rank_K.log`."""
        return workdir / "logs" / f"rank_{rank}.log"

    def open(self, workdir: Path) -> None:
        """Writes to `WORKDIR/logs/rank_K.log` from now on. Nothing if it does so already."""
        if self.path is not None or self._closed:
            return
        self.path = self.path_of(workdir, self._rank)
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
        except OSError as error:
            self._fail(error)
        waiting, self._waiting = self._waiting, []
        for line in waiting:
            self.line(line)

    def line(self, text: bytes) -> None:
        """Writes a line."""
        if self.path is None:
            if not self._closed:
                self._waiting.append(text)
        elif self._file is not None:
            data = text + b"\n"
            try:
                while data:
                    data = data[os.write(self._file, data) :]
            except OSError as error:
                self._fail(error)

    def close(self) -> None:
        """Ends it. Without a workdir, what waits is dropped."""
        self._closed = True
        self._waiting = []
        if self._file is not None:
            os.close(self._file)
            self._file = None

    def _fail(self, error: OSError) -> None:
        self._screen.say(f"looper: the log {self.path} cannot be written: {error.strerror}.")
        self.path = None
        self.close()


REMEMBERED_LINES = 1000
"""Lines of standard error that are kept, to find the last error in."""
ERROR_LINE = b"looper: error: "


class Output:
    """The output of one worker: shown with its rank before each line, and logged.

    Args:
        rank: of the worker.
        log: its log.
        screen: where to show it.

    Attributes:
        said: its last lines of standard error.
        held: the last of these, if they are looper's lines for an error; all workers may say the same.
    """

    def __init__(self, rank: int, log: Log, screen: Screen) -> None:
        self.said: collections.deque[bytes] = collections.deque(maxlen=REMEMBERED_LINES)
        self.held: list[bytes] = []
        self._prefix = f"[{rank}] ".encode()
        self._log, self._screen = log, screen
        self._lines = {Screen.OUT: Lines(), Screen.ERR: Lines()}

    def feed(self, stream: int, data: bytes) -> None:
        """Takes what the worker wrote to a stream; nothing more comes where `data` is empty."""
        lines = self._lines[stream]
        for line in lines.feed(data) if data else lines.end():
            self._log.line(line)
            if stream == Screen.ERR:
                self.said.append(line)
                if line.startswith(ERROR_LINE):
                    self.held.append(line)
                    continue
                self.release()
            self._screen.line(stream, self._prefix + line)

    def show_unfinished(self) -> None:
        """Shows the line that standard error ends with, a bar for example, as it stands."""
        text = self._lines[Screen.ERR].unfinished
        self._screen.bar(self._prefix + text if text.strip() else b"")

    def release(self) -> None:
        """Shows what was held."""
        for line in self.held:
            self._screen.line(Screen.ERR, self._prefix + line)
        self.held = []
