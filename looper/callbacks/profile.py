"""Profile some steps with TensorFlow's profiler."""

from pathlib import Path

import tensorflow as tf

from looper.base.errors import InputError
from looper.base.schedule import At
from looper.run.callback import Callback, Logs, Run


class Profile(Callback):
    """Writes a profile of the steps after `steps[0]` up to `steps[1]`, for TensorBoard's profile tab.

    Executions are cut at these two steps. Reading it takes the package `xprof`.

    Args:
        steps: the step after which it begins, counted from the very first, and the last one in it.
        directory: where to write; default: the workdir.

    Raises:
        InputError: if `steps` are no such numbers; when `fit` begins, if there is neither a directory nor a workdir.

    Example:
        >>> Profile((10, 20)).every
        At(steps=(10, 20))
    """

    chief_only = True

    def __init__(self, steps: tuple[int, int] = (10, 20), directory: str | Path | None = None) -> None:
        whole = isinstance(steps, tuple | list) and [type(step) for step in steps] == [int, int]
        if not whole or not 0 <= steps[0] < steps[1]:
            raise InputError(f"Profile(steps={steps!r}): expected two steps, such as (10, 20).")
        self.first, self.last = steps
        self.every = At(tuple(steps))
        self.directory = None if directory is None else Path(directory)
        self._running = False

    def on_fit_begin(self, run: Run) -> None:
        if self.directory is None and run.workdir is None:
            raise InputError("the Profile callback needs a directory: give the Trainer workdir= or it directory=.")
        self._begin_at(run.first_step)

    def on_step(self, step: int, logs: Logs) -> None:
        self._begin_at(step)
        if step == self.last:
            self._end()

    def on_fit_end(self) -> None:
        self._end()

    def on_exception(self, error: BaseException) -> None:
        self._end()

    def _begin_at(self, step: int) -> None:
        if step == self.first:
            tf.profiler.experimental.start(str(self.directory or self.run.workdir))
            self._running = True

    def _end(self) -> None:
        if self._running:
            self._running = False
            tf.profiler.experimental.stop()
