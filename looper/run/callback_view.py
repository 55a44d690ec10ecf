"""What callbacks know of one `fit`, and may do in it."""

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from looper.base.errors import InputError, nearest
from looper.base.ledger import Ledger
from looper.recipe.metrics import Window
from looper.run.components import Components
from looper.run.events import Events
from looper.saved.variables import State

if TYPE_CHECKING:
    from looper.run.callback import Callback

Logs = Mapping[str, float]


@dataclasses.dataclass(eq=False)
class Facts:
    """What does not change in one `fit`.

    Attributes:
        model: the trainer's model (None if the recipe has none under this name).
        optimizer: the trainer's optimizer, or None.
        loss, metrics: the trainer's loss, or None, and its Keras metrics by the names that they are logged under.
        compiled_metrics: the same as `metrics` and `weighted_metrics` of Keras' `compile`.
        models, optimizers: the trainer's Keras models and optimizers by the names of their attributes.
        workdir: the run's directory, or None.
        events: TensorBoard's files in it, or None.
        config: everything that tells this run from another, as written to `config.json`.
        last_step: the step at which `fit` will end, or None if it depends on data of unknown length.
        epochs: the number of epochs to train until, or None.
        steps_per_epoch: or None if unknown.
        log_names: the names that training will log, and evaluation with `eval/` before them; empty in eager mode,
            where they are not known before the first step.
        callback_logs: the names that callbacks declare to log.
        needs: what its callbacks need: see `Callback.needs`.
        audit: the `looper.audit.Report` of the compiled steps, or None if they were not compiled.
        choice: the `looper.step.autotune.Choice` of how the steps are run, or None if it was not made in this fit.
        averaged: whether evaluations are of averaged weights, by the Trainer's `ema`.
        workers: how many processes train together.
        is_chief: whether this one is the one that writes files; with one worker it always is. `events` takes what is
            added on the others and drops it.
        trainer: the same object in each `fit` of one trainer, another one in those of others.
    """

    model: Any
    optimizer: Any
    loss: Any
    metrics: Mapping[str, Any]
    compiled_metrics: Mapping[str, Any]
    models: Mapping[str, Any]
    optimizers: Mapping[str, Any]
    workdir: Path | None
    events: Events | None
    config: Mapping[str, Any]
    last_step: int | None
    epochs: int | None
    steps_per_epoch: int | None
    log_names: frozenset[str]
    callback_logs: frozenset[str]
    needs: frozenset[str]
    audit: Any
    choice: Any
    averaged: bool
    workers: int
    is_chief: bool
    trainer: object

    def __setattr__(self, name: str, value: Any) -> None:
        """Each is set once, by looper."""
        if name not in self.__dataclass_fields__ or name in vars(self):
            raise InputError(
                f"run.{name} = {value!r}: a callback changes a run with run.stop(reason), run.save() and run.log(name, "
                "value), and says in `needs` what the steps are to do for it."
            )
        super().__setattr__(name, value)


class Now:
    """What changes in one `fit`: what callbacks have asked for, and how far it is.

    Attributes:
        first_step, first_epoch: the step at which this process began, and the epochs that were done then.
        stop_reason: why training is to end at this boundary, or None.
        save_asked: whether a checkpoint is to be written at this boundary.
        interrupted: whether training was cut short by a signal or `max_time`, and is to go on later.
        epoch_logs: means over the epoch so far, at each boundary; the metrics among them since the last log, but at the
            end of an epoch.
        logged: what callbacks have logged, and nobody was given yet.
    """

    def __init__(self, first_step: int, first_epoch: int) -> None:
        self.first_step, self.first_epoch = first_step, first_epoch
        self.stop_reason: str | None = None
        self.save_asked = self.interrupted = False
        self.epoch_logs: Logs = {}
        self.logged: dict[str, float] = {}

    def begin_at(self, step: int, epoch: int) -> None:
        """This process begins somewhere else than it was told at first."""
        self.first_step, self.first_epoch = step, epoch

    def stop(self, reason: str | None) -> None:
        """Training is to end, for a reason; None takes that back."""
        self.stop_reason = reason

    def ask_save(self, asked: bool = True) -> None:
        """A checkpoint is to be written; False: it was."""
        self.save_asked = asked

    def interrupt(self, reason: str | None) -> None:
        """Training is cut short, to go on later; a signal needs no reason."""
        self.interrupted = True
        self.stop_reason = reason or self.stop_reason

    def see(self, epoch_logs: Logs) -> None:
        """The means over the epoch so far are these."""
        self.epoch_logs = epoch_logs

    def log(self, name: str, value: float) -> None:
        """A callback logs a number."""
        self.logged[name] = value

    def take_logged(self) -> dict[str, float]:
        """What callbacks have logged; it is given to all now."""
        logged, self.logged = self.logged, {}
        return logged


class Access:
    """The variables that there are, as callbacks read and write them.

    Args:
        components: whose they are.
        window: the sums of the logs, which are put back with them.
        state: all of them; another one when the steps are compiled anew.
    """

    def __init__(self, components: Components, window: Window, state: State) -> None:
        self._components, self._window = components, window
        self.renew(state)

    def renew(self, state: State) -> None:
        """There are other variables now."""
        self._state, self._layers = state, self._components.state_of_layers()

    def weights(self) -> dict[str, Any]:
        """See `Run.weights`."""
        return self._layers.snapshot()

    def set_weights(self, values: Mapping[str, Any]) -> None:
        """See `Run.set_weights`."""
        # a layer that was frozen then has no average among them: it was the weight itself
        averages = {f"average/{name}": value for name, value in values.items()}
        known = {name: averages[name] for name in self._layers.variables if name in averages}
        self._layers.restore(known | dict(values))

    def snapshot(self) -> Any:
        """See `Run.snapshot`."""
        return self._state.snapshot(), self._window.state()

    def restore(self, snapshot: Any) -> None:
        """See `Run.restore`."""
        variables, window = snapshot
        self._state.restore(variables)
        self._window.restore(window)


@dataclasses.dataclass(eq=False)
class Run(Facts):
    """One `fit`, as its callbacks see it: its facts, and what they may do.

    Attributes:
        now: what changes in it.
        access: the variables.
        predict: the trainer's `predict`.
        compute_loss: the loss of a batch, as `Trainer.compute_loss` returns it with `training=False`; leaves the
            metrics as they are.
        begin_at_epoch: makes training begin at an epoch, counted from 0. For use in `on_fit_begin`.
        ledger: where the time has gone so far; what the device measures is in it since the last boundary.
        input_wait: seconds that steps have waited for data so far, or None if no callback needs it.
    """

    now: Now
    access: Access
    predict: Callable[..., Any]
    compute_loss: Callable[[Any], Any]
    begin_at_epoch: Callable[[int], None]
    ledger: Ledger
    input_wait: Callable[[], float] | None

    @property
    def first_step(self) -> int:
        """The step at which this process began."""
        return self.now.first_step

    @property
    def first_epoch(self) -> int:
        """The epochs that were done when this process began."""
        return self.now.first_epoch

    @property
    def stop_reason(self) -> str | None:
        """Why training is to end at this boundary, or None."""
        return self.now.stop_reason

    @property
    def save_asked(self) -> bool:
        """Whether a checkpoint is to be written at this boundary."""
        return self.now.save_asked

    @property
    def interrupted(self) -> bool:
        """Whether training was cut short by a signal or `max_time`, and is to go on later."""
        return self.now.interrupted

    @property
    def epoch_logs(self) -> Logs:
        """Means over the epoch so far, at each boundary; metrics since the last log, but at the end of an epoch."""
        return self.now.epoch_logs

    def each(self, callbacks: "Sequence[Callback]") -> "Iterator[Callback]":
        """Callbacks one after the other; what is done until the next is asked for is counted as the time of each.

        Those that only write are left out where this worker is not the chief.
        """
        for callback in callbacks:
            if callback.chief_only and not self.is_chief:
                continue
            with self.ledger.section("callbacks", callback.title()):
                yield callback

    def weights(self) -> dict[str, Any]:
        """The values of the model's variables by name, as tensors."""
        return self.access.weights()

    def set_weights(self, values: Mapping[str, Any]) -> None:
        """Puts such values back, on all replicas."""
        self.access.set_weights(values)

    def snapshot(self) -> Any:
        """Keeps all that training has changed (variables, seeds, optimizer, sums of the logs), on the device."""
        return self.access.snapshot()

    def restore(self, snapshot: Any) -> None:
        """Puts a snapshot back. The step and the data's position stay as they are."""
        self.access.restore(snapshot)

    def save(self) -> None:
        """Asks for a checkpoint at the end of this boundary, when all callbacks have seen it."""
        self.now.ask_save()

    def stop(self, reason: str) -> None:
        """Ends training at this boundary, after the other callbacks; `reason` is shown."""
        self.now.stop(reason)

    def log(self, name: str, value: Any) -> None:
        """Logs a number of a callback's own, such as the score of a probe or a distance between distributions.

        At the end of this boundary all callbacks get it in `on_log`, so that it stands in the history, TensorBoard,
        `metrics.jsonl` and the terminal. A callback that declares its names, as in `logs = ("probe/accuracy",)`, has
        them accepted as monitors when `fit` begins, and gets columns in the CSV file. On several workers it must, and
        all get the chief's values. What is logged in `on_fit_end` comes too late for files of one row a run or epoch.

        Args:
            name: as it is to stand in the logs; a name that begins with `eval/` is drawn among evaluations.
            value: a number, or a scalar tensor or array.

        Raises:
            InputError: if training or evaluation logs something of this name, or the value is no number; if the name is
                not declared, on several workers.

        Example:
            >>> import keras, looper, numpy as np
            >>> x, y = np.ones((8, 2), "float32"), np.ones((8, 1), "float32")
            >>> class Spread(looper.callbacks.Callback):
            ...     logs = ("spread",)
            ...     def on_epoch_end(self, epoch, logs):
            ...         self.run.log("spread", self.run.predict(x).std())
            >>> make = lambda: keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
            >>> trainer = looper.Trainer(model=make, optimizer="sgd", loss="mse")
            >>> stop = looper.callbacks.EarlyStopping("spread", patience=2)
            >>> trainer.fit((x, y), epochs=9, callbacks=[Spread(), stop], progress=False)["spread"]
            [0.0, 0.0, 0.0]
        """
        if self.workers > 1 and name not in self.callback_logs:
            raise InputError(
                f"run.log({name!r}, ...): on several workers a callback declares what it logs, logs = ({name!r},), so "
                "that all get the chief's value."
            )
        if name in self.log_names - self.callback_logs or name in ("step", "epoch") or name.startswith("epoch/"):
            raise InputError(
                f"run.log({name!r}, ...): training logs that itself; give it another name, as 'probe/loss'."
            )
        try:
            self.now.log(name, float(value))
        except (TypeError, ValueError):
            raise InputError(f"run.log({name!r}, {value!r}): expected a number.") from None

    def one_of(self, kind: Literal["model", "optimizer"], name: str | None, callback: str) -> Any:
        """The model or optimizer that a callback is for.

        Args:
            kind: which of the two.
            name: of the trainer's attribute; None is `self.model` or `self.optimizer`, or the only one that there is.
            callback: whose option it is, for the message.

        Raises:
            InputError: if there is none of this name, or several and no name.
        """
        known: Mapping[str, Any] = self.models if kind == "model" else self.optimizers
        own = self.model if kind == "model" else self.optimizer
        if name is None and (own is not None or len({id(thing) for thing in known.values()}) == 1):
            return next(iter(known.values())) if own is None else own
        if name is None:
            choice = f": give {kind}=, one of {', '.join(map(repr, known))}" if known else ""
            raise InputError(f"{callback} is for self.{kind}, and the recipe has none of this name{choice}.")
        if name not in known:
            raise InputError(f"{callback}({kind}={name!r}): {nearest(str(name), known)}.")
        return known[name]

    def check_workdir(self, callback: str) -> None:
        """Raises `InputError`, in the callback's name, if the run has no directory."""
        if self.workdir is None:
            raise InputError(f"the {callback} callback needs a directory: give the Trainer workdir=.")

    def check_monitor(self, monitor: str, logs: Logs | None = None) -> None:
        """Raises `InputError`, with the nearest name, if nothing called `monitor` is or will be logged."""
        names = set(logs or ()) | self.log_names
        if names and monitor.startswith("eval/") and not any(name.startswith("eval/") for name in names):
            raise InputError(f"monitor={monitor!r} is not logged, because nothing is evaluated: give fit eval_data=.")
        renamed = monitor.replace("val_", "eval/", 1) if monitor.startswith("val_") else monitor
        if renamed != monitor and renamed in names:
            raise InputError(f"monitor={monitor!r} is not logged: did you mean {renamed!r}?")
        if names and monitor not in names:
            raise InputError(f"monitor={monitor!r} is not logged: {nearest(monitor, names)}.")
