"""Checkpoints are written by a thread, while the loop trains on."""

import contextlib
import dataclasses
import os
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from looper.base.lines import warn

LOW, NORMAL = 19, 0
"""Of a thread's priority, as `nice` counts it."""

PATIENCE = 0.25
"""Seconds that the loop waits before a checkpoint is written with normal priority."""


@dataclasses.dataclass(frozen=True)
class Saved:
    """A checkpoint that stands under its name.

    Attributes:
        step: when its state was taken.
        path: its directory.
    """

    step: int
    path: Path


class Saver:
    """Writes one checkpoint at a time.

    Example:
        >>> saver = Saver()
        >>> saver.submit(3, lambda given_up: Path("step_3"))
        >>> saver.finish()
        Saved(step=3, path=PosixPath('step_3'))
        >>> saver.finish()
        >>> saver.close()
    """

    def __init__(self) -> None:
        self._pool: ThreadPoolExecutor | None = None
        self._running: tuple[int, Future] | None = None
        self._thread: int | None = None  # as the system counts it
        self._given_up = threading.Event()

    def submit(self, step: int, write: Callable[[threading.Event], Path], here: bool = False) -> None:
        """Has a checkpoint written. What was submitted before must have been taken by `finish`.

        Args:
            step: when its state was taken.
            write: writes it; the event tells it to wait for nobody any more.
            here: whether to write it at once in this thread, whose priority is normal: only root may raise one again.
        """
        assert self._running is None, "the checkpoint before was not taken"
        if here:
            self._running = (step, _done(write, self._given_up))
            return
        if self._pool is None:
            self._pool = ThreadPoolExecutor(1, "looper-saver", self._begin)
        self._running = (step, self._pool.submit(write, self._given_up))

    def finish(self, wait: bool = True) -> Saved | None:
        """What was submitted, when it is written; None if nothing was, or it is not written yet.

        Args:
            wait: whether to wait for it.

        Raises:
            SaveError: if it could not be written.
        """
        if self._running is None or not (wait or self._running[1].done()):
            return None
        self.settle()
        (step, future), self._running = self._running, None
        return Saved(step, future.result())

    def settle(self) -> None:
        """Waits until nothing is being written; `finish` tells how it went."""
        if self._running is None:
            return
        with contextlib.suppress(TimeoutError):
            self._running[1].exception(PATIENCE)
        if not self._running[1].done():
            self._prefer(NORMAL)
            self._running[1].exception()
            self._prefer(LOW)

    def close(self, given_up: bool = False) -> None:
        """Waits, and lets the thread go; `submit` makes another one. A failure that nobody asked about is a warning.

        Args:
            given_up: whether training has failed: then other workers are not waited for.
        """
        if given_up:
            self._given_up.set()
        try:
            self.finish()
        except Exception as error:
            warn(f"{type(error).__name__}: {error}")
        finally:
            self._running = None
            self._given_up = threading.Event()
            if self._pool is not None:
                self._pool.shutdown()
                self._pool = None

    def _begin(self) -> None:
        self._thread = threading.get_native_id()
        self._prefer(LOW)

    def _prefer(self, priority: int) -> None:
        """Sets the thread's priority, where threads have their own (Linux), and where that is allowed."""
        with contextlib.suppress(OSError, AttributeError):
            os.setpriority(os.PRIO_PROCESS, self._thread, priority)


def _done(write: Callable[[threading.Event], Path], given_up: threading.Event) -> Future:
    """What a call returned or raised."""
    future: Future = Future()
    try:
        future.set_result(write(given_up))
    except Exception as error:
        future.set_exception(error)
    return future
