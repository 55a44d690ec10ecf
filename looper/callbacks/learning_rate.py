"""Reads and sets the learning rate of a trainer's optimizer, for the callbacks that change it."""

from typing import Any

import keras

from looper.base.errors import InputError
from looper.recipe.optimizers import members


def variable(optimizer: Any, wanted_by: str) -> keras.Variable:
    """The optimizer's learning rate, which can be assigned to on all replicas.

    Args:
        optimizer: the trainer's optimizer; a `LossScaleOptimizer` stands for the one inside.
        wanted_by: the callback's name, for the message.

    Raises:
        InputError: if there is no optimizer, it has a schedule, or several learning rates.

    Example:
        >>> rate = variable(keras.optimizers.SGD(0.5), "Mine")
        >>> _ = rate.assign(0.25)
        >>> read(rate)
        0.25
    """
    if optimizer is None:
        raise InputError(f"{wanted_by} sets the learning rate of self.optimizer, and the recipe has none of this name.")
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


def read(rate: keras.Variable) -> float:
    """Its value, which is the same on all replicas."""
    return float(keras.ops.convert_to_numpy(rate))
