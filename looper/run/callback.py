"""The base class of callbacks, and what a callback may know and do."""

import copy
import math
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from looper.base.errors import InputError, NonFiniteLossError, nearest
from looper.base.names import MOST_ITEMS
from looper.base.schedule import At, Every
from looper.run.callback_view import Logs, Run

NEEDS = {
    "input_wait": "steps measure how long they wait for their batches, logged as `input_wait`",
    "skip_nonfinite": "updates with gradients that are not finite are skipped, and counted as `skipped_steps`",
    "nonfinite_loss": "a loss that is not finite is no error: the callback sees it in the logs",
    "epoch_metrics": "metrics are emptied when an epoch begins, rather than at each log",
    "raw_evaluation": "with `ema`, the weights as they are are evaluated, too",
}
"""What a callback may need, and what is done for it."""


class Callback:
    """Something to do while training. Override what you need.

    The order of calls:

        on_fit_begin(run)
        (restore(state)                              if the run is continued)
        for each execution of the compiled steps:
            before the first of an epoch: on_epoch_begin(epoch)
            on_execution(step)                       no logs: nothing was read from the device
            if a loss was not finite: on_nonfinite(error), and nothing more of these steps
            at a log boundary, or when `every` is due:
                on_step(step, logs)                  means since the last log
            at the end of an epoch:   on_epoch_end(epoch, logs)
            around an evaluation:     on_eval_begin(step), on_eval_end(step, logs)
            if a callback called run.log:  on_log(step, logs)
            when on_step was called:  on_change(step)    may change what is trained; the step is compiled anew
            at each boundary of these, and before a checkpoint: on_boundary_end(step)
            at a checkpoint:          on_save(step, path)      its state was taken
            when it is written:       on_saved(step, path)     some boundary later
        on_fit_end()                                 or on_exception(error)

    `logs` are floats, the same for all callbacks. Names of an evaluation begin with `eval/`. An epoch that is continued
    in its middle has no second `on_epoch_begin`.

    A callback goes on in each `fit` of one trainer with the state that it has. Given to another trainer, it begins with
    the state that it had when it was used first.

    Attributes:
        every: when to call `on_step`: a period, certain steps (`looper.At`), or None for each log boundary.
        one_by_one: steps that are executions of their own, counted from 0: nothing is read after them, as it is at the
            boundaries that `every` makes.
        run: the current `Run`.
        logs: the names of what it logs by `run.log`, so that a monitor may have them.
        needs: what the steps and evaluations are to do for it, of `looper.run.callback.NEEDS`; what callbacks need that
            it holds in attributes is done, too.
        chief_only: of several workers, whether only the chief calls it: for one that writes and neither evaluates,
            predicts nor changes anything. All others are called on every worker, with the same logs.

    Example:
        >>> class Stop(Callback):
        ...     def on_step(self, step, logs):
        ...         if logs["loss"] < 0.1:
        ...             self.run.stop("the loss is low enough")
    """

    every: Every | At | None = None
    one_by_one: range = range(0)
    logs: Sequence[str] = ()
    needs: Collection[str] = ()
    chief_only: bool = False
    run: Run
    _first: Mapping[str, Any] | None = None  # its state when it was used first
    _trainer: object = None  # whose `fit` it was in last

    def title(self) -> str:
        """Whose time the ledger counts its methods as."""
        return type(self).__name__

    def identity(self) -> str:
        """What its state in a checkpoint belongs to: its class and, if it has them, what it watches and how.

        A run that is continued gives the state to the callback of the same identity. Of several with the same, the
        order decides.

        Example:
            >>> Callback().identity()
            'Callback'
        """
        return identity_of(self)

    def begin(self, run: Run) -> None:
        """Begins a `fit`: looper calls it, and it calls `on_fit_begin`."""
        self.run = run
        self.on_fit_begin(run)
        if type(self).state is Callback.state:
            return
        if self._first is None:
            self._first = copy.deepcopy(self.state())
        elif self._trainer is not run.trainer:
            self.restore(copy.deepcopy(self._first))
        self._trainer = run.trainer

    def on_fit_begin(self, run: Run) -> None:
        """Training is about to begin (or to go on). `self.run` is `run` from here on."""

    def on_epoch_begin(self, epoch: int) -> None:
        """An epoch is about to begin; `epoch` counts from 0."""

    def on_execution(self, step: int) -> None:
        """An execution was dispatched; `step` steps are behind. Must not read anything from the device."""

    def on_nonfinite(self, error: NonFiniteLossError) -> bool:
        """A step's loss or gradient was not finite. Returns whether the steps since the last boundary were undone.

        If no callback has, training ends with the error.
        """
        return False

    def on_step(self, step: int, logs: Logs) -> None:
        """A boundary."""

    def on_epoch_end(self, epoch: int, logs: Logs) -> None:
        """An epoch ended; `epoch` counts from 0.

        Losses, other means and metrics in `logs` are those over the epoch. A metric of a class of one's own, and one
        that holds more than 4,096 numbers, is among them only if the epoch was one window: `log_every=Every(epochs=1)`.
        """

    def on_eval_begin(self, step: int) -> None:
        """An evaluation is about to begin."""

    def on_eval_end(self, step: int, logs: Logs) -> None:
        """An evaluation ended."""

    def on_predict_begin(self, step: int) -> None:
        """`Trainer.predict`, which was given this callback, is about to begin."""

    def on_predict_end(self, step: int) -> None:
        """`Trainer.predict`, which was given this callback, has all outputs."""

    def on_log(self, step: int, logs: Logs) -> None:
        """Callbacks have logged these numbers with `run.log`, at this boundary or when training ended."""

    def on_change(self, step: int) -> bool:
        """The time to change what is trained, such as which layers. Returns whether anything was changed.

        The optimizer then gets variables for what is new, keeping those of what stays, and the step is compiled anew.
        """
        return False

    def on_boundary_end(self, step: int) -> None:
        """All that was due at this boundary is done, but for the checkpoint."""

    def on_save(self, step: int, path: Path) -> None:
        """The state for a checkpoint was taken. It will be written to `path`, by a thread, after this."""

    def on_saved(self, step: int, path: Path) -> None:
        """A checkpoint is written: its files can be read at `path`. `step` is that of its state, and lies behind.

        All workers call it at the same boundary, and at the end of training for the last one.
        """

    def on_fit_end(self) -> None:
        """Training ended as planned, or was stopped in an orderly way."""

    def on_exception(self, error: BaseException) -> None:
        """Training ended with an error."""

    def state(self) -> dict[str, Any]:
        """The state that must survive a restart: nested dicts and lists of JSON values and numeric arrays.

        It is asked for from the end of `on_fit_begin` on.
        """
        return {}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Puts back what `state` returned; called after `on_fit_begin`."""


def identity_of(thing: Any) -> str:
    """The class of a callback and, if it has them as texts, its `monitor` and `mode`, in parentheses.

    Example:
        >>> import keras
        >>> identity_of(keras.callbacks.EarlyStopping("val_loss", mode="min"))
        'EarlyStopping(val_loss, min)'
    """
    watched = [value for name in ("monitor", "mode") if isinstance(value := getattr(thing, name, None), str)]
    return f"{type(thing).__name__}({', '.join(watched)})" if watched else type(thing).__name__


def all_needs(callbacks: Iterable[Callback]) -> frozenset[str]:
    """What callbacks need, and the callbacks that they hold in their attributes: one may call others.

    Example:
        >>> class Both(Callback):
        ...     def __init__(self, *parts):
        ...         self.parts = parts
        >>> class Waiting(Callback):
        ...     needs = {"input_wait"}
        >>> set(all_needs([Both(Waiting(), Callback())]))
        {'input_wait'}
    """
    found: set[str] = set()
    seen: dict[int, Callback] = {}
    waiting = list(callbacks)
    while waiting:
        callback = waiting.pop()
        if id(callback) not in seen:
            seen[id(callback)] = callback
            found.update(callback.needs)
            waiting += _held(vars(callback).values())
    return frozenset(found)


def _held(values: Iterable[Any]) -> Iterator[Callback]:
    """The callbacks among values, and in lists, tuples and dicts of them."""
    for value in values:
        if isinstance(value, Callback):
            yield value
        elif isinstance(value, dict | list | tuple) and len(value) <= MOST_ITEMS:
            yield from _held(value.values() if isinstance(value, dict) else value)


class Best:
    """Keeps the best value of one log.

    Attributes:
        monitor: the log's name.
        mode: "min" or "max".
        value, step: the best value so far and its step, or None.

    Args:
        monitor: the log's name.
        mode: "min", "max", or "auto": max for names with `accuracy`, `auc`, `precision`, `recall`, `f1`, `score` or
            `iou` in them, otherwise min.
        min_delta: how much better a value must be to count.

    Example:
        >>> best = Best("eval/accuracy")
        >>> best.better(0.5, step=1), best.better(0.4, step=2), best.step
        (True, False, 1)
    """

    GROWING = ("accuracy", "acc", "auc", "precision", "recall", "f1", "score", "iou", "dice", "r2")

    def __init__(self, monitor: str, mode: str = "auto", min_delta: float = 0.0) -> None:
        if mode not in ("min", "max", "auto"):
            raise InputError(f"mode={mode!r}: {nearest(mode, ('min', 'max', 'auto'))}.")
        self.monitor = monitor
        grows = mode == "max" or (mode == "auto" and any(word in monitor.lower() for word in self.GROWING))
        self.mode, self._sign = ("max", 1.0) if grows else ("min", -1.0)
        self._min_delta = abs(min_delta)
        self.value: float | None = None
        self.step: int | None = None

    def better(self, value: float, step: int) -> bool:
        """Whether `value` is better than all before, which it then replaces. NaN and the worst infinity never are."""
        if value != value or self._sign * value == -math.inf:
            return False
        if self.value is not None and not self._sign * (value - self.value) > self._min_delta:
            return False
        self.value, self.step = value, step
        return True

    def state(self) -> dict[str, Any]:
        return {"value": self.value, "step": self.step}

    def restore(self, state: Mapping[str, Any]) -> None:
        self.value, self.step = state["value"], state["step"]
