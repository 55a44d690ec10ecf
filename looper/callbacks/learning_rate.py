"""Reads and sets the learning rate of a trainer's optimizer, for the callbacks that change it."""

from typing import Any

import keras

from looper.base.errors import InputError
from looper.recipe.optimizers import members
from looper.run.callback import Run


def variable(optimizer: Any, wanted_by: str) -> keras.Variable:
    """The optimizer's learning rate, which can be assigned to on all replicas.

    Args:
        optimizer: one of the trainer's; a `LossScaleOptimizer` stands for the one inside.
        wanted_by: the callback's name, for the message.

    Raises:
        InputError: if it has a schedule, or several learning rates.

    Example:
        >>> rate = variable(keras.optimizers.SGD(0.5), "Mine")
        >>> _ = rate.assign(0.25)
        >>> read(rate)
        0.25
    """
    found = members(optimizer)
    if len(found) > 1:
        raise InputError(
            f"{wanted_by} sets one learning rate, and the MultiOptimizer has {len(found)}: set those of its members, "
            "optimizer.optimizers, in a callback of your own."
        )
    rate = found[0].learning_rate
    if not isinstance(rate, keras.Variable):
        raise InputError(
            f"{wanted_by} sets the learning rate, but the optimizer has a schedule for it: give the optimizer a "
            f"number, such as learning_rate=1e-3, or leave {wanted_by} out."
        )
    return rate


def variable_of(run: Run, name: str | None, wanted_by: str) -> keras.Variable:
    """That of the trainer's optimizer with this attribute's name: see `Run.one_of`, and `variable`."""
    return variable(run.one_of("optimizer", name, wanted_by), wanted_by)


def read(rate: keras.Variable) -> float:
    """Its value, which is the same on all replicas."""
    return float(keras.ops.convert_to_numpy(rate))
