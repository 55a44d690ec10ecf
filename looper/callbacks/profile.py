"""Profile some steps with TensorFlow's profiler."""

import sys
from pathlib import Path
from typing import Any

import tensorflow as tf
from tqdm import tqdm

from looper.base.errors import InputError
from looper.base.say import Quiet
from looper.base.schedule import At
from looper.callbacks.trace_summary import STEP, TraceSummary, read_trace
from looper.run.callback import Callback, Logs, Run
from looper.run.events import text


class Profile(Callback):
    """Traces the steps after `steps[0]` up to `steps[1]`, and says what they spent their time on.

    Each of them is an execution of its own, of a program that ran before, with a marker around it. Where this process
    begins at `steps[0]`, the first step, which compiles, is left out. Tracing adds to the time of what the host does;
    that of the operations is right. The terminal shows the longest operations; TensorBoard's profile tab shows the rest
    and takes the package `xprof`, which `pip install 'looper-tf[profile]'` adds.

    Attributes:
        summary: what was found, a `looper.callbacks.trace_summary.TraceSummary`; None before, and if nothing was.

    Args:
        steps: the step after which it begins, counted from the very first, and the last one in it.
        directory: where to write; default: the workdir.

    Raises:
        InputError: if `steps` are no such numbers; when `fit` begins, if there is neither a directory nor a workdir.

    Example:
        >>> Profile((10, 20)).one_by_one
        range(10, 20)
    """

    chief_only = True

    def __init__(self, steps: tuple[int, int] = (10, 20), directory: str | Path | None = None) -> None:
        whole = isinstance(steps, tuple | list) and [type(step) for step in steps] == [int, int]
        if not whole or not 0 <= steps[0] < steps[1]:
            raise InputError(f"Profile(steps={steps!r}): expected two steps, such as (10, 20).")
        self.first, self.last = steps
        self.every = At(tuple(steps))
        self.one_by_one = range(self.first, self.last)
        self.directory = None if directory is None else Path(directory)
        self.summary: TraceSummary | None = None
        self._running = False
        self._marker: Any = None

    def on_fit_begin(self, run: Run) -> None:
        if self.directory is None and run.workdir is None:
            raise InputError("the Profile callback needs a directory: give the Trainer workdir= or it directory=.")
        if run.last_step is not None and run.first_step < run.last_step <= self.first:
            raise InputError(
                f"Profile(steps={(self.first, self.last)}) begins after step {self.first}, and training ends at step "
                f"{run.last_step}: give earlier steps."
            )

    def on_execution(self, step: int) -> None:
        begins_here = step == self.first + 1 == self.run.first_step + 1  # then this was the one that compiled
        if self._running and step < self.last:  # the last one ends with `_end`, when the device has done it
            self._end_step()
            self._begin_step(step)
        elif begins_here and step < self.last:
            self._begin(step)

    def on_step(self, step: int, logs: Logs) -> None:
        if step == self.first:
            self._begin(step)
        elif step == self.last:
            self._end()

    def on_fit_end(self) -> None:
        self._end()

    def on_exception(self, error: BaseException) -> None:
        self._end()

    def _begin(self, step: int) -> None:
        tf.profiler.experimental.start(str(self.directory or self.run.workdir))
        self._running = True
        self._begin_step(step)

    def _begin_step(self, step: int) -> None:
        self._marker = tf.profiler.experimental.Trace(STEP, step_num=step + 1, _r=1)
        self._marker.__enter__()

    def _end_step(self) -> None:
        if self._marker is not None:
            self._marker.__exit__(None, None, None)
            self._marker = None

    def _end(self) -> None:
        if not self._running:
            return
        self._running = False
        self._end_step()
        tf.profiler.experimental.stop()
        self.summary = read_trace(self.directory or self.run.workdir)
        if self.summary is not None:
            said = str(self.summary)
            tqdm.write(said, file=Quiet(sys.stdout))
            if self.run.events is not None:
                lines = "\n".join(f"    {line}" for line in said.splitlines())
                self.run.events.add("train", self.last, text("profile", lines))
