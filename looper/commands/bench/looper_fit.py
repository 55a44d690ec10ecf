"""looper's side: `fit` as users have it, with progress bar, TensorBoard, metrics.jsonl and checkpoints."""

import dataclasses
import io
import re
import time
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from looper.base.schedule import Every
from looper.callbacks import LambdaCallback, ProgressBar, Run
from looper.commands.bench.messages import Channel, LeftOutError
from looper.commands.bench.pace import Bursts, fitting
from looper.commands.bench.subject import COMPARED, Subject, report

NEVER = 1 << 40
"""Steps that no measurement does."""

ENOUGH = "bench has seen enough"


class Terminal(io.TextIOBase):
    """A terminal that shows nothing, so that a real progress bar runs."""

    def isatty(self) -> bool:
        return True

    def write(self, text: str) -> int:
        return len(text)


class LooperFit:
    """looper in one mode.

    Epochs end as they do in the recipe, with a log; that it evaluates after them is left out.

    Args:
        subject: the recipe.
        workdir: a directory for the run.
        mode: "graph", "xla_step", "xla_loop" or "eager".
    """

    def __init__(self, subject: Subject, workdir: Path, mode: str) -> None:
        self._subject, self._workdir, self._mode = subject, workdir, mode
        self._fits = 0

    def start(self) -> dict[str, Any]:
        """Runs the first steps. Returns what `subject.report` makes of them."""
        self._trainer = self._subject.trainer(self._mode, self._workdir)
        self._data = self._subject.data(self._trainer)
        moments = [time.perf_counter()]
        losses: list[Any] = []

        def reached(logs: Mapping[str, float]) -> bool:
            self._check_mode([str(warning.message) for warning in found])
            moments.append(time.perf_counter())
            losses.append(logs.get("loss"))
            return len(losses) < COMPARED

        with warnings.catch_warnings(record=True) as found:
            warnings.simplefilter("always")
            self._length = self._fit(1, reached, log_every=Every(steps=1)).steps_per_epoch
        return report(self._trainer, moments[1] - moments[0], None if None in losses else losses, self._length)

    def serve(self, channel: Channel, burst_seconds: float) -> None:
        """Runs a burst for each request, until there shall be no more."""
        steps = fitting(self._seconds, burst_seconds, self._length)
        bursts = Bursts(channel, steps, self._length)
        self._fit(steps, lambda logs: bursts.reached(steps))

    def _seconds(self, steps: int) -> float:
        """Seconds between two boundaries so many steps apart; the smaller of two, as an epoch may end in one."""
        moments: list[float] = []

        def reached(logs: Mapping[str, float]) -> bool:
            moments.append(time.perf_counter())
            return len(moments) < 4

        self._fit(steps, reached)
        return min(moments[2] - moments[1], moments[3] - moments[2])

    def _fit(self, steps: int, reached: Callable[[Mapping[str, float]], bool], **changed: Any) -> Run:
        """Trains on. Every so many steps, when looper has read what they returned, `reached` says whether to go on."""

        def on_step(step: int, logs: Mapping[str, float]) -> None:
            if not reached(logs):
                boundary.run.stop(ENOUGH)

        boundary = LambdaCallback(every=Every(steps=steps), on_step=on_step)
        self._fits += 1
        # more than before: an early stop holds for the same
        end: dict[str, Any] = {"steps": NEVER + self._fits, "epochs": None}
        plain: dict[str, Any] = {"eval_every": Every(steps=NEVER), "max_time": None, "resume": "auto", "progress": True}
        options = dataclasses.replace(self._subject.fit_options, **end, **plain, **changed)
        terminal: Any = Terminal()  # no TextIO by its class, which a progress bar does not mind
        bar = ProgressBar(stream=terminal)
        self._trainer.fit(self._data, **vars(options), callbacks=[boundary, bar])
        if boundary.run.stop_reason != ENOUGH:
            raise LeftOutError("training ended by itself during the measurement")
        return boundary.run

    def _check_mode(self, messages: list[str]) -> None:
        for message in messages:
            refused = re.fullmatch(r"execution='\w+': (.*); training goes on with 'graph'\.", message, re.S)
            if refused:
                raise LeftOutError(refused[1])
