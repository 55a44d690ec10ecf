"""Signals, as something that a loop can wait for: none is lost, whenever it comes."""

import contextlib
import os
import signal
from typing import Any

STOPS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
"""Signals that ask the workers to stop."""
PASSED_ON = (signal.SIGUSR1, signal.SIGUSR2)
"""Signals that are for the workers, whatever they mean there."""


class Signals:
    """Collects the signals of this process, within a `with` of the main thread.

    Attributes:
        stop: the last one that asked to stop, or None.
        interrupts: how many were Ctrl-C.
    """

    def __init__(self) -> None:
        self.stop: int | None = None
        self.interrupts = 0
        self._arrived: list[int] = []
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "Signals":
        self._read, self._write = os.pipe()
        os.set_blocking(self._read, False)
        os.set_blocking(self._write, False)
        self._wakeup_before = signal.set_wakeup_fd(self._write, warn_on_full_buffer=False)
        for number in (*STOPS, *PASSED_ON, signal.SIGCHLD, signal.SIGWINCH):
            if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:  # nohup ignores it
                self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(self._wakeup_before)
        os.close(self._read)
        os.close(self._write)

    def _note(self, number: int, _: object) -> None:
        self._arrived.append(number)
        if number in STOPS:
            self.stop = number
        self.interrupts += number == signal.SIGINT

    def fileno(self) -> int:
        """The file that can be read when a signal has come, for `select`."""
        return self._read

    def take(self) -> list[int]:
        """The signals that came since the last call."""
        with contextlib.suppress(BlockingIOError):
            os.read(self._read, 4096)
        count = len(self._arrived)
        arrived, self._arrived[:count] = self._arrived[:count], []
        return arrived
