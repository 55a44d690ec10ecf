"""Run Keras' own callbacks."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import keras
import tensorflow as tf

from looper.base.errors import InputError
from looper.base.schedule import Every
from looper.callbacks import learning_rate
from looper.recipe.losses import FunctionLoss
from looper.run.callback import Callback, Logs, Run, identity_of
from looper.run.watch import WRITERS, as_keras


class KerasCallback(Callback):
    """Runs callbacks of Keras with the same effect as under `fit` of a Keras model.

    They get the trainer's model, compiled for this while with the trainer's optimizer, loss and copies of its metrics:
    `self.model.optimizer.learning_rate = ...`, `self.model.stop_training = True`, `set_weights`, `save` and so on reach
    all replicas. `logs` have Keras' names (`loss`, `accuracy`, `val_loss`) and values: means over the epoch so far. For
    that, metrics in all logs are those of the epoch so far, not since the last log.

    Hooks of epochs, evaluation (`on_test_begin`, `on_test_end`) and training are called when Keras calls them. Hooks
    of training batches are called at boundaries, for the last batch before it, as Keras does with
    `steps_per_execution`: `every=Every(steps=1)` makes that each batch. For a callback that saves or writes every so
    many batches (`save_freq=`, `update_freq=`) they are called then. Those of evaluated batches and of prediction are
    not called; `evaluate` and `predict` take callbacks of their own. A callback that stops in mid-epoch gets its
    `on_epoch_end` without an evaluation.

    Keras' callbacks have no state that could be saved. In a continued run they start anew, with `on_train_begin`; an
    epoch that is continued in its middle has a second `on_epoch_begin`, which leaves the learning rate as it was.
    For early stopping that is continued exactly, and the like, take looper's own callbacks.

    Args:
        callbacks: one `keras.callbacks.Callback`, or several, called in this order.
        every: when to call the hooks of batches; None means at each log boundary, or as often as one of them saves or
            writes.

    Raises:
        InputError: if something else is given, or a `ProgbarLogger` (looper has a bar of its own); when `fit` begins,
            if the trainer has no `keras.Model` called `model`; with a workdir, for `BackupAndRestore`, and for
            `SwapEMAWeights(swap_on_epoch=True)`, whose averages would be saved as the weights.

    Example:
        >>> KerasCallback(keras.callbacks.TerminateOnNaN()).callbacks[0].raise_error
        False
    """

    def __init__(
        self, callbacks: keras.callbacks.Callback | Sequence[keras.callbacks.Callback], every: Every | None = None
    ) -> None:
        self.callbacks: list[Any] = list(callbacks) if isinstance(callbacks, list | tuple) else [callbacks]
        for callback in self.callbacks:
            if not isinstance(callback, keras.callbacks.Callback):
                raise InputError(
                    f"KerasCallback: {callback!r} is {type(callback).__name__}; expected a Keras callback."
                )
            if isinstance(callback, keras.callbacks.ProgbarLogger):
                raise InputError("ProgbarLogger: looper draws a progress bar of its own; leave Keras' out.")
        self.every = self._frequency() if every is None else every
        sees_nan = self._has(keras.callbacks.TerminateOnNaN)
        self.needs = ("epoch_metrics", "nonfinite_loss") if sees_nan else ("epoch_metrics",)
        self._epoch: int | None = None  # the one that has begun
        self._began = 0  # at which step

    def title(self) -> str:
        return ", ".join(type(callback).__name__ for callback in self.callbacks)

    def identity(self) -> str:
        return f"KerasCallback({', '.join(map(identity_of, self.callbacks))})"

    def on_fit_begin(self, run: Run) -> None:
        if not isinstance(run.model, keras.Model):
            raise InputError(f"Keras callbacks need self.model: it is {type(run.model).__name__}, not a keras.Model.")
        if run.workdir is not None:
            self._check_checkpoints()
        if run.workers > 1 and self._has(keras.callbacks.BackupAndRestore):
            raise InputError(
                f"BackupAndRestore puts back the weights of one worker, and there are {run.workers}: give the Trainer "
                "workdir= instead."
            )
        if run.averaged:
            self._check_averages()
        self._step = self._ended_at = run.first_step
        self._epoch, self._began = None, 0
        self._epoch_ended = False
        self._evaluated: dict[str, float] = {}
        self._logs: dict[str, float] = {}
        self._compile(run)
        self._set_modes(run)
        try:
            self._begin(run)
        except BaseException:
            self._put_back()
            raise

    def _begin(self, run: Run) -> None:
        called = [callback for callback in self.callbacks if run.is_chief or not isinstance(callback, WRITERS)]
        self._list = keras.callbacks.CallbackList(
            called, add_history=True, model=run.model, epochs=_epochs(run), steps=run.steps_per_epoch, verbose=0
        )
        self._list.on_train_begin()
        if run.model._initial_epoch:  # private (Keras 3.15): BackupAndRestore tells fit with it where to begin
            run.begin_at_epoch(run.model._initial_epoch)
            self._step = run.first_step

    def restore(self, state: Mapping[str, Any]) -> None:
        if state["epoch"] is not None:
            rate = getattr(self.run.optimizer, "learning_rate", None)
            before = learning_rate.read(rate) if isinstance(rate, keras.Variable) else None
            self._list.on_epoch_begin(state["epoch"])
            if before is not None:
                rate.assign(before)
            self._epoch, self._began = state["epoch"], state["began"]
            self._begin_batch()

    def state(self) -> dict[str, Any]:
        return {"epoch": self._epoch, "began": self._began}

    def on_epoch_begin(self, epoch: int) -> None:
        self._epoch, self._began = epoch, self._step
        self._list.on_epoch_begin(epoch)
        self._begin_batch()

    def on_execution(self, step: int) -> None:
        self._step = step

    def on_step(self, step: int, logs: Logs) -> None:
        self._end_batch()

    def on_epoch_end(self, epoch: int, logs: Logs) -> None:
        if self._ended_at != self._step:
            self._end_batch()
        self._epoch_ended = True

    def on_eval_begin(self, step: int) -> None:
        self._list.on_test_begin()

    def on_eval_end(self, step: int, logs: Logs) -> None:
        evaluated = {name.removeprefix("eval/"): value for name, value in logs.items()}
        self._evaluated = as_keras(evaluated)
        self._list.on_test_end(dict(self._evaluated))

    def on_boundary_end(self, step: int) -> None:
        if self._epoch is not None and (self._epoch_ended or self.run.model.stop_training):
            logs = as_keras(self.run.epoch_logs)
            self._logs = logs | {f"val_{name}": value for name, value in self._evaluated.items()}
            self._list.on_epoch_end(self._epoch, dict(self._logs))
            self._epoch = None
        elif self._epoch is not None and self._ended_at == step:
            self._begin_batch()
        self._epoch_ended, self._evaluated = False, {}
        if self.run.model.stop_training and not self.run.stop_reason:
            self.run.stop("a Keras callback set model.stop_training")

    def on_fit_end(self) -> None:
        if not self.run.interrupted:  # Keras' fit does not end its callbacks either when it is interrupted
            self._list.on_train_end(dict(self._logs))
        self._put_back()

    def on_exception(self, error: BaseException) -> None:
        self._put_back()

    def _begin_batch(self) -> None:
        self._list.on_train_batch_begin(self._step - self._began)

    def _end_batch(self) -> None:
        self._ended_at = self._step
        self._list.on_train_batch_end(self._step - self._began - 1, as_keras(self.run.epoch_logs))

    def _compile(self, run: Run) -> None:
        before = dict(vars(run.model))
        names = {id(metric): name for name, metric in run.metrics.items()}
        copies = {kind: _copies(given, names) for kind, given in run.compiled_metrics.items()}
        # as functions they are saved with the model by names that Keras knows
        loss = tf.nest.map_structure(lambda one: one.function if isinstance(one, FunctionLoss) else one, run.loss)
        run.model.compile(optimizer=run.optimizer, loss=loss, **copies, auto_scale_loss=False)
        changed = {name for name, value in vars(run.model).items() if before.get(name, self) is not value}
        self._compiled = changed | {"_initial_epoch", "stop_training"}
        self._before = before
        run.model.stop_training = False
        run.model._initial_epoch = None

    def _put_back(self) -> None:
        """Undoes `compile`."""
        now = vars(self.run.model)
        for name in self._compiled:
            now.pop(name, None)
            if name in self._before:
                now[name] = self._before[name]

    def _set_modes(self, run: Run) -> None:
        """Sets mode="auto" of monitoring callbacks, which Keras looks up in metrics that its own steps have built."""
        # private (Keras 3.15): metrics tell only there whether they are to grow
        directions = {name: getattr(metric, "_direction", None) for name, metric in run.metrics.items()}
        for callback in self.callbacks:
            direction = directions.get(str(getattr(callback, "monitor", "")).removeprefix("val_"))
            if direction and getattr(callback, "mode", None) == "auto":
                callback.mode = "max" if direction == "up" else "min"

    def _check_checkpoints(self) -> None:
        if self._has(keras.callbacks.BackupAndRestore):
            raise InputError("BackupAndRestore and workdir= both continue a run: leave one of them out.")
        for callback in self.callbacks:
            if isinstance(callback, keras.callbacks.SwapEMAWeights) and callback.swap_on_epoch:
                raise InputError(
                    "SwapEMAWeights(swap_on_epoch=True) leaves the averages in the model when the checkpoint is saved: "
                    "leave swap_on_epoch or workdir= out."
                )

    def _check_averages(self) -> None:
        """With the Trainer's `ema`, evaluations are of weights that Keras' callbacks do not see."""
        for callback in self.callbacks:
            keeps = isinstance(callback, keras.callbacks.EarlyStopping) and callback.restore_best_weights
            if keeps or isinstance(callback, keras.callbacks.ModelCheckpoint):
                raise InputError(
                    f"{type(callback).__name__} keeps the weights as they are, and ema= evaluates their averages: take "
                    f"looper.callbacks.{'EarlyStopping' if keeps else 'Checkpoint'}."
                )

    def _frequency(self) -> Every | None:
        """Batches that Keras' own callbacks count between two of their files; None if they do not."""
        names = ("save_freq", "update_freq")
        found = [getattr(callback, name, None) for callback in self.callbacks for name in names]
        batches = [n for n in found if isinstance(n, int) and not isinstance(n, bool) and n > 0]
        return Every(steps=math.gcd(*batches)) if batches else None

    def _has(self, kind: type[keras.callbacks.Callback]) -> bool:
        return any(isinstance(callback, kind) for callback in self.callbacks)


def _copies(given: Any, names: Mapping[int, str], inner: bool = False) -> Any:
    """Copies of metrics in the structure that Keras' `compile` takes: None stands for an output without any."""
    if isinstance(given, Mapping):
        return {key: _copies(one, names, inner=True) for key, one in given.items()}
    if isinstance(given, list | tuple):
        return [_copies(one, names, inner=True) for one in given if not (inner and one is None)]
    return given and _copy(names.get(id(given), given.name), given)


def _copy(name: str, metric: keras.Metric) -> keras.Metric:
    """A metric like it, for the model's configuration; a stand-in for one that cannot be made from its own."""
    try:
        return type(metric).from_config(metric.get_config())
    except (TypeError, ValueError, NotImplementedError):
        return keras.metrics.Mean(name=name)


def _epochs(run: Run) -> int:
    if run.epochs is not None:
        return run.epochs
    return 1 if run.steps_per_epoch is None else -(-run.last_step // run.steps_per_epoch)
