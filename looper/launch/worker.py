"""One worker's process, as the launcher sees it: started, read, and ended with all that it started itself."""

import errno
import fcntl
import os
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from looper.launch.failure import WRONG_INPUT, End, last_words
from looper.launch.guard import Guard, kill_group
from looper.launch.launched import LAUNCHER, REPORT
from looper.launch.output import Log, Output, Screen

DRAIN_SECONDS = 1.0
"""How long to read on after a process has ended, if somebody who left its group still holds its output."""
RANK_WIDTH = 4
"""Columns of `[0] ` before a bar."""


class Worker:
    """Starts `looper`, with a rank and a session of its own.

    Args:
        rank: of the worker.
        words: what follows `looper`.
        environment: its variables.
        log: takes its output.
        screen: shows its output; rank 0 may draw a bar there.
        guard: ends it if this process is killed.

    Attributes:
        end: how it ended; None while it runs, or while its output is being read.
        held: its last lines `looper: error: ...` that are not shown yet, if it ended with the code for wrong input.
        workdir: which one it has said it has; None before that, and if it has none.
    """

    def __init__(
        self, rank: int, words: Sequence[str], environment: Mapping[str, str], log: Log, screen: Screen, guard: Guard
    ) -> None:
        self.rank = rank
        self.end: End | None = None
        self.held: list[bytes] = []
        self.workdir: Path | None = None
        self._guard, self._log, self._screen = guard, log, screen
        self._output = Output(rank, log, screen)
        self._told = b""
        self._killed = False
        self._ended_at: float | None = None
        self._bar = rank == 0 and screen.shows_bars
        out, out_end = os.pipe()
        err, err_end = _terminal() if self._bar else os.pipe()
        report, report_end = os.pipe()
        self._out, self._err = out, err
        self._takers: dict[int, Callable[[bytes], None]] = {
            out: lambda data: self._output.feed(Screen.OUT, data),
            err: self._take_err,
            report: self._take_report,
        }
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "looper.cli", *words],
                stdin=subprocess.DEVNULL,
                stdout=out_end,
                stderr=err_end,
                pass_fds=(report_end,),
                env={**environment, LAUNCHER: str(os.getpid()), REPORT: str(report_end)},
                start_new_session=True,
            )
        except OSError:
            self._close()
            raise
        finally:
            for end in (out_end, err_end, report_end):
                os.close(end)
        guard.watch(self._process.pid)

    @property
    def files(self) -> list[int]:
        """The end of its pipe to read from, for `select`."""
        return list(self._takers)

    @property
    def draining(self) -> bool:
        """Whether the process has ended, and its output is still being read."""
        return self._ended_at is not None and self.end is None

    def read(self, file: int) -> None:
        """Reads one of its files, which has something or has ended."""
        try:
            data = os.read(file, 2**16)
        except OSError as error:
            if error.errno != errno.EIO:  # the end of a pseudo-terminal, on Linux
                raise
            data = b""
        self._takers[file](data)
        if not data:
            del self._takers[file]
            os.close(file)

    def poll(self) -> None:
        """Notices that the process has ended, kills what is left of its group, and sets `end` when all is read."""
        if self.end is not None:
            return
        if self._ended_at is None and self._process.poll() is not None:
            self._ended_at = time.monotonic()
            self._forget_group()
        if self._ended_at is not None:
            read = not {self._out, self._err} & set(self._takers)
            if read or time.monotonic() > self._ended_at + DRAIN_SECONDS:
                self._finish()

    def pass_on(self, number: int) -> None:
        """Sends a signal, if the process still runs."""
        if self._ended_at is None:
            self._process.send_signal(number)

    def kill(self) -> None:
        """Kills the process and those that it started, if it still runs."""
        if self._ended_at is None:
            self._killed = True
            kill_group(self._process.pid)

    def destroy(self) -> None:
        """Kills it and waits until it is gone, without reading on, if it has not ended: something went wrong here."""
        if self.end is None:
            self.kill()
            self._process.wait()
            self._forget_group()
            self._close()

    def fit_terminal(self) -> None:
        """Tells the bar that the terminal has another width."""
        if self._bar and self._err in self._takers:
            _fit(self._err)

    def _take_err(self, data: bytes) -> None:
        if self._bar and b"\n" in data:
            self._screen.bar(b"")  # lines that end are in its place
        self._output.feed(Screen.ERR, data)
        if self._bar:
            self._output.show_unfinished()

    def _take_report(self, data: bytes) -> None:
        self._told += data
        if self._told.endswith(b"\0"):
            path = os.fsdecode(self._told[:-1])
            self.workdir = Path(path) if path else None
            if self.workdir is None:
                self._log.close()
            else:
                self._log.open(self.workdir)

    def _forget_group(self) -> None:
        kill_group(self._process.pid)
        self._guard.forget(self._process.pid)

    def _finish(self) -> None:
        for file in {self._out, self._err} & set(self._takers):
            self._takers[file](b"")
        self._close()
        code = self._process.returncode
        if code == WRONG_INPUT:
            self.held = self._output.held
        else:
            self._output.release()
        self.end = End(self.rank, code, self._ended_at, last_words(self._output.said), self._killed)

    def _close(self) -> None:
        for file in self._takers:
            os.close(file)
        self._takers = {}
        self._log.close()


def _terminal() -> tuple[int, int]:
    """A pseudo-terminal of this terminal's width, which leaves line ends as they are: the ends to read and to write."""
    ours, theirs = os.openpty()
    modes = termios.tcgetattr(theirs)
    modes[1] &= ~termios.OPOST
    termios.tcsetattr(theirs, termios.TCSANOW, modes)
    _fit(ours)
    return ours, theirs


def _fit(terminal: int) -> None:
    columns, lines = os.get_terminal_size(Screen.ERR)
    size = struct.pack("HHHH", lines, max(columns - RANK_WIDTH, 1) if columns else 0, 0, 0)
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, size)
