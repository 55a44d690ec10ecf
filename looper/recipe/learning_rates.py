"""Learning rates of some variables alone, and from when on an optimizer counts their steps.

Discriminative fine-tuning gives layers a learning rate of their own (Howard and Ruder, "Universal Language Model
Fine-tuning for Text Classification", 2018, section 3.2), as parameter groups do elsewhere. And a layer that is trained
from the middle of a run on has new moments there: Adam's correction of their bias must count its own steps, or its
first updates are several times too large.
"""

import functools
import math
import numbers
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import keras
import tensorflow as tf

from looper.base.errors import InputError
from looper.base.names import as_tf
from looper.recipe.layers import Which, find, walk
from looper.recipe.optimizers import inner, members


def scale_learning_rate(optimizer: Any, model: keras.Layer, factors: Mapping[Which | tuple[Which, ...], float]) -> None:
    """Gives layers a learning rate of `factor` times the optimizer's, weight decay included.

    The optimizer's own learning rate, its schedule and what callbacks set go on to hold for all.

    Args:
        optimizer: any Keras optimizer; of a `MultiOptimizer`, each scales its own learning rate.
        model: where the layers are.
        factors: by layer, name or pattern such as "conv5_*", or a tuple of them: at least 0. Later ones replace earlier
            ones for the same layers; layers that are not named keep what they had, which is 1 at first.

    Raises:
        InputError: if a layer is not in the model, or a factor is no number of at least 0.

    Example:
        >>> layers = [keras.layers.Dense(1, name="body"), keras.layers.Dense(1, name="head")]
        >>> model = keras.Sequential([keras.Input((1,)), *layers])
        >>> optimizer = keras.optimizers.SGD(1.0)
        >>> scale_learning_rate(optimizer, model, {"body": 0.1})
        >>> before = [float(v[0]) for v in model.get_weights()[1::2]]
        >>> optimizer.apply([keras.ops.ones_like(v) for v in model.trainable_variables], model.trainable_variables)
        >>> [round(b - float(v[0]), 3) for b, v in zip(before, model.get_weights()[1::2])]
        [0.1, 1.0]
    """
    if not isinstance(optimizer, keras.optimizers.Optimizer) or not isinstance(model, keras.Layer):
        given = f"scale_learning_rate({type(optimizer).__name__}, {type(model).__name__}, ...)"
        raise InputError(f"{given}: expected a Keras optimizer, the model, and a dict of layers and factors.")
    if not isinstance(factors, Mapping):
        raise InputError(f"factors={factors!r}: expected a dict of layers, such as {{'base': 0.1}}.")
    places = {id(layer): i for i, layer in enumerate(walk(model).values())}
    found: list[tuple[Any, float]] = []
    for which, factor in factors.items():
        if not isinstance(factor, numbers.Real) or isinstance(factor, bool) or not 0 <= factor < math.inf:
            raise InputError(f"the factor of {which!r} is {factor!r}: expected a number of at least 0, such as 0.1.")
        found += [(layer, float(factor)) for layer in find(model, which)]
    groups = groups_of(optimizer, make=True)
    for layer, factor in found:
        groups.scale(layer, factor, place=places[id(layer)])
    groups.install()


class Groups:
    """The settings of one optimizer's variables. Layers may get their variables later.

    Args:
        optimizer: the optimizer, never a `LossScaleOptimizer` around it.
    """

    def __init__(self, optimizer: Any) -> None:
        self._optimizer = optimizer
        self._scaled: list[tuple[Any, float, int | None]] = []  # layers and variables, the later ones count
        self._began: dict[int, tuple[Any, int]] = {}  # the variable too: ids of what is gone are used again
        self._known: dict[int, tuple[Any, float]] = {}

    def scale(self, thing: Any, factor: float, place: int | None = None) -> None:
        """Sets the factor of a layer's variables, or of one variable. `place` is how `described` calls the layer."""
        self._scaled = [one for one in self._scaled if one[0] is not thing] + [(thing, factor, place)]
        self._known.clear()

    def begin(self, variable: Any, iteration: int) -> None:
        """Counts a variable's steps from the optimizer's `iteration` on."""
        for form in _forms(variable):
            self._began[id(form)] = (form, iteration)

    def settings(self, variable: Any) -> tuple[float, int]:
        """The factor of a variable's learning rate, and the optimizer's iteration from which its steps are counted."""
        if id(variable) not in self._known:
            for thing, factor, _ in self._scaled:
                for one in thing.variables if isinstance(thing, keras.Layer) else [thing]:
                    self._known |= {id(form): (form, factor) for form in _forms(one)}
            self._known.setdefault(id(variable), (variable, 1.0))
        return self._known[id(variable)][1], self._began.get(id(variable), (None, 0))[1]

    def described(self) -> dict[str, float]:
        """The layers' factors by their places in the model: names may be automatic, and differ between processes."""
        return {str(place): factor for _, factor, place in self._scaled if place is not None}

    def install(self) -> None:
        """Makes the optimizer act on the settings; again after it was built, when it may have other members."""
        for member in members(self._optimizer):
            if getattr(vars(member).get("update_step"), "func", None) is not _update:
                vars(member)["update_step"] = functools.partial(_update, member, self, member.update_step)
                vars(member)["_apply_weight_decay"] = functools.partial(_decay, member, self)


def groups_of(optimizer: Any, make: bool = False) -> Groups | None:
    """The settings of an optimizer's variables; None if there are none, unless `make`."""
    optimizer = inner(optimizer)
    if make and _NAME not in vars(optimizer):
        vars(optimizer)[_NAME] = Groups(optimizer)
    return vars(optimizer).get(_NAME)


def begin(optimizer: Any, variables: Sequence[Any]) -> None:
    """Counts the steps of variables that an optimizer was just built for from now on.

    Keras 3.15 counts all variables' steps in one `iterations`. Nadam's new variables go by that count: its bias
    correction is a product of its own, which all variables share.
    """
    wanted = {id(as_tf(variable)) for variable in variables}
    for member in members(optimizer):
        counted = wanted and member.built and not isinstance(member, keras.optimizers.Nadam)
        done = int(tf.convert_to_tensor(member.variables[0])) if counted else 0
        for variable in member._trainable_variables if done else ():
            if id(as_tf(variable)) in wanted:
                groups_of(optimizer, make=True).begin(variable, done)
    if groups_of(optimizer) is not None:
        groups_of(optimizer).install()


def read(optimizer: Any, names: Mapping[str, Any]) -> dict[str, list[float]]:
    """Factor and first iteration by a variable's name, where they are not the defaults, for a checkpoint."""
    groups = groups_of(optimizer)
    if groups is None:
        return {}
    found = {name: list(groups.settings(_forms(variable)[0])) for name, variable in names.items()}
    return {name: settings for name, settings in found.items() if settings != [1.0, 0]}


def put_back(
    optimizer: Any, saved: Mapping[str, Sequence[float]], names: Mapping[str, Any], factors: bool = True
) -> None:
    """Sets what `read` returned; without `factors` only from when on steps are counted."""
    if read(optimizer, names) == {name: list(settings) for name, settings in saved.items()}:
        return
    groups = groups_of(optimizer, make=True)
    for name, variable in names.items():
        factor, began = saved.get(name, (1.0, 0))
        groups.begin(variable, int(began))
        if factors:
            groups.scale(variable, factor)
    groups.install()


_NAME = "_looper_groups"


def _forms(variable: Any) -> tuple[Any, ...]:
    """The forms in which an optimizer may be given a variable: on several replicas each has one of its own."""
    variable = as_tf(variable)
    return (variable, *getattr(variable, "values", ()))


def _update(
    optimizer: Any, groups: Groups, step: Callable[..., Any], gradient: Any, variable: Any, learning_rate: Any
) -> Any:
    """Stands in for an optimizer's `update_step`, which Keras documents as what an optimizer overrides."""
    factor, began = groups.settings(as_tf(variable))
    if factor != 1.0:
        learning_rate = keras.ops.multiply(learning_rate, factor)
    counted = optimizer._iterations
    if began:
        # Keras 3.15 reads it through `optimizer.iterations`, a property of the class
        vars(optimizer)["_iterations"] = tf.convert_to_tensor(counted) - began
    try:
        return step(gradient, variable, learning_rate)
    finally:
        vars(optimizer)["_iterations"] = counted


def _decay(optimizer: Any, groups: Groups, variables: Sequence[Any]) -> None:
    """Weight decay as Keras 3.15 does it, with each variable's own learning rate.

    Optimizers decay in a private method, apart from `update_step`, and some have one of their own; all read
    `learning_rate`, which is a property of the class. tests/test_private_names.py fails if the names change.
    """
    apply: Callable[[Sequence[Any]], None] = functools.partial(type(optimizer)._apply_weight_decay, optimizer)
    by_factor: dict[float, list[Any]] = {}
    for variable in variables:
        by_factor.setdefault(groups.settings(as_tf(variable))[0], []).append(variable)
    for factor, group in by_factor.items():
        if factor == 1.0:
            apply(group)
            continue
        # from the class each time: the replicas take turns in here, and one may have set it already
        vars(optimizer)["_get_current_learning_rate"] = lambda factor=factor: keras.ops.multiply(
            type(optimizer)._get_current_learning_rate(optimizer), factor
        )
        try:
            apply(group)
        finally:
            vars(optimizer).pop("_get_current_learning_rate", None)
