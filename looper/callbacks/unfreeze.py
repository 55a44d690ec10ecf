"""Unfreeze layers while training, group by group."""

import math
import numbers
import sys
from collections.abc import Sequence
from typing import Any

import tensorflow as tf
from tqdm import tqdm

from looper.base.errors import InputError
from looper.base.lines import warn
from looper.base.say import Quiet
from looper.base.schedule import At, Every
from looper.recipe.freezing import acts_as_inference, meant, unfreeze
from looper.recipe.learning_rates import groups_of
from looper.recipe.optimizers import members
from looper.run.callback import Callback, Logs, Run


class Unfreeze(Callback):
    """Unfreezes a group of layers each time that it is due, the last group last.

    Freeze the layers in `build`, with `looper.freeze`. What was trained before goes on with the optimizer's moments,
    what comes begins with new ones; the step is compiled anew once each time. A group that is due at an evaluation is
    unfrozen after it. A run that is continued has unfrozen what it had.

    Args:
        at: when: a period in epochs or steps, or certain steps (`looper.base.schedule.At`).
        layers: a group or a list of groups. A group is a layer, a name or pattern such as "conv5_*", a tuple of them,
            or a number: the layer at this place of `model.layers` and all after it. None is the whole model.
        learning_rate: the learning rate of each group, or one for all; None is that of the other layers. It holds at
            the moment of unfreezing: from there it moves as the optimizer's does, by its schedule or a callback.
        batch_norm: False leaves batch normalization frozen: see `looper.unfreeze`.
        model: the attribute of the model that the layers are in, if it is not `self.model` and there are several.
        optimizer: the attribute of the optimizer that trains them and whose learning rate theirs is a multiple of, if
            it is not `self.optimizer` and there are several.

    Raises:
        InputError: if `at` is a time, or there are not as many learning rates as groups; when `fit` begins, if a layer
            is not in the model or is not frozen.

    Example:
        >>> callback = Unfreeze(at=Every(epochs=2), layers=["conv5_*", "conv4_*"], learning_rate=[1e-4, 1e-5])
        >>> callback.groups
        ['conv5_*', 'conv4_*']
    """

    def __init__(
        self,
        at: Every | At,
        layers: Any = None,
        learning_rate: float | Sequence[float] | None = None,
        batch_norm: bool = True,
        model: str | None = None,
        optimizer: str | None = None,
    ) -> None:
        if not isinstance(at, Every | At) or (isinstance(at, Every) and at.period_seconds is not None):
            raise InputError(
                f"Unfreeze(at={at!r}): expected looper.Every(epochs=...), Every(steps=...) or looper.At(...)."
            )
        self.every = at
        self.groups = list(layers) if isinstance(layers, list) else [layers]
        if not self.groups:
            raise InputError("Unfreeze(layers=[]): expected at least one group of layers.")
        rates: list[Any] = (
            list(learning_rate) if isinstance(learning_rate, list | tuple) else [learning_rate] * len(self.groups)
        )
        if len(rates) != len(self.groups):
            raise InputError(f"Unfreeze has {len(self.groups)} groups and {len(rates)} learning rates: give one each.")
        for rate in rates:
            if rate is not None and not (
                isinstance(rate, numbers.Real) and not isinstance(rate, bool) and 0 < float(rate) < math.inf
            ):
                raise InputError(f"Unfreeze(learning_rate={rate!r}): expected a positive number, such as 1e-5.")
        self.rates, self.batch_norm, self.model, self.optimizer = rates, batch_norm, model, optimizer
        self._epochs = 0

    def on_fit_begin(self, run: Run) -> None:
        self._model = run.one_of("model", self.model, "Unfreeze")
        if self.optimizer is not None or any(rate is not None for rate in self.rates):
            self._optimizer = run.one_of("optimizer", self.optimizer, "Unfreeze")
        if any(rate is not None for rate in self.rates):
            _learning_rate(self._optimizer)
        for group in self.groups:
            layers = meant(self._model, "since", *_border_and_layers(group))
            if run.first_step == 0 and not any(acts_as_inference(layer) or not layer.trainable for layer in layers):
                raise InputError(
                    f"Unfreeze(layers={group!r}): nothing there is frozen; freeze it in build, with looper.freeze(...)."
                )
        trained = self._due(run.last_step - 1, (run.epochs or math.inf) - 1) if run.last_step else len(self.groups)
        if trained < len(self.groups):
            warn(
                f"Unfreeze: {len(self.groups) - trained} of {len(self.groups)} groups are due after the last step, and "
                "never trained: train longer, or unfreeze more often."
            )

    def on_epoch_end(self, epoch: int, logs: Logs) -> None:
        self._epochs = epoch + 1

    def on_change(self, step: int) -> bool:
        changed = False
        for group, rate in list(zip(self.groups, self.rates, strict=True))[: self._due(step, self._epochs)]:
            unfrozen = self._unfreeze(group, rate)
            changed = changed or bool(unfrozen)
            if unfrozen:
                layers = f"{len(unfrozen)} layers" if len(unfrozen) > 3 else ", ".join(unfrozen)
                at = "" if rate is None else f", learning rate {rate:g}"
                tqdm.write(f"looper: unfrozen after step {step}: {layers}{at}", file=Quiet(sys.stderr))
        return changed

    def _due(self, step: int, epochs: float) -> int:
        """How many groups are, by now: told from the step, so that a continued run needs no state."""
        if isinstance(self.every, At):
            return sum(at <= step for at in self.every.steps)
        if self.every.steps is not None:
            return step // self.every.steps
        return len(self.groups) if epochs == math.inf else int(epochs // self.every.epochs)

    def _unfreeze(self, group: Any, rate: float | None) -> list[str]:
        model = self._model
        before = {id(variable) for variable in model.trainable_variables}
        unfrozen = unfreeze(model, *_border_and_layers(group), batch_norm=self.batch_norm)
        if unfrozen and rate is not None:
            current = _learning_rate(self._optimizer)
            if not current > 0:
                raise InputError(
                    f"Unfreeze(learning_rate={rate}): the optimizer's learning rate is {current} at this step, and a "
                    "group's is a multiple of it: unfreeze earlier, or with another schedule."
                )
            groups = groups_of(self._optimizer, make=True)
            for variable in model.trainable_variables:
                if id(variable) not in before:
                    groups.scale(variable, rate / current)
            groups.install()
        return unfrozen


def _border_and_layers(group: Any) -> tuple[int | None, Any]:
    return (int(group), None) if isinstance(group, numbers.Integral) else (None, group)


def _learning_rate(optimizer: Any) -> float:
    found = members(optimizer)
    if len(found) > 1:
        raise InputError(
            f"Unfreeze sets a group's learning rate, and the MultiOptimizer has {len(found)} to relate it to: leave "
            "learning_rate out, and scale them in build with looper.scale_learning_rate."
        )
    return float(tf.convert_to_tensor(found[0].learning_rate))
