"""Keras' side: `compile` and `fit` of the same model, loss, optimizer and metrics, where they say all of the recipe."""

import contextlib
import itertools
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras

from looper.commands.bench.looper_fit import Terminal
from looper.commands.bench.messages import Channel, LeftOutError
from looper.commands.bench.pace import Bursts, fitting
from looper.commands.bench.subject import COMPARED, Subject, overrides, report
from looper.data.arrays import ArraySource
from looper.data.dataset import DatasetSource
from looper.data.feed import replayed
from looper.data.py_dataset import PyDatasetSource
from looper.recipe import precision

CANDIDATES = (10, 32, 100)
"""Steps per execution of which the fastest is taken."""

FOREVER = 1 << 40
"""Epochs that no measurement does."""


class Boundary(keras.callbacks.Callback):
    """Calls a function whenever at least so many steps were done since it was last called.

    Args:
        steps: how many.
        length: batches in an epoch, or None for data without an end.
        reached: takes the loss and the steps since the last call; returns whether to go on.
    """

    def __init__(self, steps: int, length: int | None, reached: Callable[[float, int], bool]) -> None:
        super().__init__()
        self._steps, self._length, self._reached = steps, length, reached
        self._last = self._before = 0
        self._over = False

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        in_epoch = batch + 1 if self._length is None else min(batch + 1, self._length)
        done = self._before + in_epoch
        if done - self._last >= self._steps and not self._over:
            self._over = not self._reached(float(logs["loss"]), done - self._last)
            self._last = done
            self.model.stop_training = self._over

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        self._before += self._length or 0


class KerasFit:
    """Keras' `fit` with its progress bar and TensorBoard callback; it saves and evaluates nothing.

    Args:
        subject: the recipe.
        workdir: a directory for TensorBoard.
        many: whether to take the fastest of several numbers of steps per execution, in place of 1.
    """

    def __init__(self, subject: Subject, workdir: Path, *, many: bool) -> None:
        self._subject, self._workdir = subject, workdir
        self._per_execution = CANDIDATES[0] if many else 1
        self._many = many

    def start(self) -> dict[str, Any]:
        """Runs the first steps. Returns what `subject.report` makes of them."""
        trainer = self._trainer = self._subject.trainer("graph")
        self._subject.check_plain(trainer, "Keras' fit")
        if overrides(trainer, "compute_loss"):
            raise LeftOutError("the recipe has its own compute_loss, which Keras' fit does not know")
        if not isinstance(trainer.model, keras.Model) or trainer.loss is None:
            raise LeftOutError("the recipe has no keras.Model and loss to compile")
        for name in ("clip_norm", "clip_value"):
            if (value := getattr(self._subject.trainer_options, name)) is not None:
                raise LeftOutError(f"{name}={value} is looper's; give the optimizer its own for Keras' fit")
        data = self._subject.data(trainer)
        source = self._subject.source(data)
        self._length = source.length
        self._data = self._arguments(self._subject.arrays(data), source)
        first = list(itertools.islice(source.open(0, 0), COMPARED))
        moments, losses = [time.perf_counter()], []

        def reached(loss: float, steps: int) -> bool:
            moments.append(time.perf_counter())
            losses.append(loss)
            return False

        self._compile()
        for batch in first:
            self._fit(Boundary(1, 1, reached), x=replayed([batch], source.element_spec))
        return report(trainer, moments[1] - moments[0], losses, self._length)

    def serve(self, channel: Channel, burst_seconds: float) -> None:
        """Runs a burst for each request, until there shall be no more."""
        if self._many:
            self._choose(burst_seconds)
        steps = fitting(self._seconds, burst_seconds, self._length)
        bursts = Bursts(channel, steps, self._length, steps_per_execution=self._per_execution)
        self._fit(Boundary(steps, self._length, lambda loss, ran: bursts.reached(ran)), **self._data)

    def _arguments(self, data: Any, source: Any) -> dict[str, Any]:
        """The data as `fit` is given it; arrays with their batch size."""
        if isinstance(source, DatasetSource | PyDatasetSource):
            return {"x": data}
        if isinstance(source, ArraySource) and isinstance(data, tuple | list) and len(data) in (2, 3):
            names = dict(zip(("x", "y", "sample_weight"), data, strict=False))
            size = self._subject.fit_options.batch_size or 32
            return {**names, "batch_size": size, "shuffle": self._subject.fit_options.shuffle}
        raise LeftOutError(f"Keras' fit does not take this data ({type(data).__name__})")

    def _compile(self) -> None:
        trainer = self._trainer
        with precision.scope(self._subject.trainer_options.precision):
            trainer.model.compile(
                optimizer=trainer.optimizer,
                loss=trainer.loss,
                loss_weights=trainer.loss_weights,
                metrics=trainer.metrics or None,
                weighted_metrics=trainer.weighted_metrics or None,
                steps_per_execution=self._per_execution,
            )

    def _choose(self, burst_seconds: float) -> None:
        """Takes the number of steps per execution with which a step is fastest."""
        times: dict[int, float] = {}
        for self._per_execution in CANDIDATES:
            self._compile()
            steps = fitting(self._seconds, burst_seconds, self._length)
            times[self._per_execution] = self._seconds(steps) / steps
        self._per_execution = min(times, key=times.get)
        self._compile()

    def _seconds(self, steps: int) -> float:
        """Seconds for so many steps; the smaller of two, as an epoch may end in one."""
        moments: list[float] = []
        per_step: list[float] = []

        def reached(loss: float, ran: int) -> bool:
            moments.append(time.perf_counter())
            if len(moments) > 1:
                per_step.append((moments[-1] - moments[-2]) / ran)
            return len(per_step) < 2

        self._fit(Boundary(steps, self._length, reached), **self._data)
        return min(per_step) * steps

    def _fit(self, boundary: Boundary, **data: Any) -> None:
        weights = self._subject.fit_options.class_weight
        board = keras.callbacks.TensorBoard(str(self._workdir))
        with precision.scope(self._subject.trainer_options.precision), contextlib.redirect_stdout(Terminal()):
            self._trainer.model.fit(
                **data, epochs=FOREVER, class_weight=weights, verbose=1, callbacks=[board, boundary]
            )
