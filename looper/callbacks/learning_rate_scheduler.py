"""Set the learning rate by a function of the epoch or the step."""

import inspect
from collections.abc import Callable

from looper.base.errors import InputError
from looper.base.schedule import Every
from looper.callbacks import learning_rate
from looper.run.callback import Callback, Logs, Run


class LearningRateScheduler(Callback):
    """Sets the learning rate before the first step of each epoch, or every so many steps.

    The learning rate is part of the checkpoint: a continued run goes on with it.

    Args:
        schedule: `schedule(epoch, lr)`, as Keras' callback takes it, or `schedule(epoch)`; returns the new learning
            rate. Epochs count from 0. With `every=Every(steps=...)` it gets the number of steps done.
        every: a period in epochs or steps.
        optimizer: the attribute of the optimizer, if it is not `self.optimizer` and there are several.

    Raises:
        InputError: if `every` is a time; when `fit` begins, if the optimizer has a learning rate schedule; when the
            function returns something else than a number.

    Example:
        >>> LearningRateScheduler(lambda epoch, lr: lr if epoch < 10 else 0.9 * lr).every
        Every(epochs=1)
    """

    every: Every

    def __init__(
        self, schedule: Callable[..., float], every: Every = Every(epochs=1), optimizer: str | None = None
    ) -> None:
        if not isinstance(every, Every) or every.period_seconds is not None:
            raise InputError(f"LearningRateScheduler(every={every!r}): expected Every(epochs=...) or Every(steps=...).")
        if not callable(schedule):
            raise InputError(f"schedule={schedule!r}: expected a function of the epoch, such as lambda epoch, lr: ...")
        self.schedule, self.every, self.optimizer = schedule, every, optimizer
        self._takes_rate = _positional(schedule) > 1

    def on_fit_begin(self, run: Run) -> None:
        self._rate = learning_rate.variable_of(run, self.optimizer, "LearningRateScheduler")
        if self.every.steps is not None and run.first_step == 0:
            self._set(0)

    def on_epoch_begin(self, epoch: int) -> None:
        if self.every.epochs is not None and epoch % self.every.epochs == 0:
            self._set(epoch)

    def on_step(self, step: int, logs: Logs) -> None:
        if self.every.steps is not None:
            self._set(step)

    def _set(self, position: int) -> None:
        before = learning_rate.read(self._rate)
        value = self.schedule(position, before) if self._takes_rate else self.schedule(position)
        try:
            value = float(value)
        except (TypeError, ValueError):
            raise InputError(
                f"the schedule of LearningRateScheduler returned {value!r} for {position}: expected a number."
            ) from None
        self._rate.assign(value)


def _positional(function: Callable[..., float]) -> int:
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    parameters = inspect.signature(function).parameters.values()
    many = any(p.kind is inspect.Parameter.VAR_POSITIONAL for p in parameters)
    return 2 if many else sum(p.kind in kinds for p in parameters)
