"""Looks, while a run trains, whether replicas hold what they are to have alike."""

from typing import Any

import numpy as np
import tensorflow as tf

from looper.audit.replicas import kept_alike
from looper.audit.tree import Tree
from looper.base.errors import InputError
from looper.base.lines import warn
from looper.base.names import as_tf, path_of
from looper.run.components import Components

LARGEST = 1e-4
"""The largest difference of two replicas' values that counts as rounding, as a fraction of their norm."""


class Alike:
    """Compares this process's replicas.

    Args:
        strategy: whose replicas they are.
        components: the recipe's.
        tree: its layers.
    """

    def __init__(self, strategy: tf.distribute.Strategy, components: Components, tree: Tree) -> None:
        self._strategy, self._components, self._tree = strategy, components, tree
        self._own = {id(thing): name for name, thing in components.named()}
        self._told: set[str] = set()

    def check(self) -> None:
        """Compares now, and warns once of each variable that differs.

        Raises:
            InputError: if one that is trained does.
        """
        trained = self._components.trainable_variables()
        variable = next(filter(self._differs, trained), None)
        if variable is not None:
            raise InputError(
                f"{self._name(variable)} is trained, and has other values on each replica: a step assigned to it, or "
                "updated it, with what one replica has alone. Change it in after_update(self), or from "
                "self.all_reduce(x) or self.all_gather(x)."
            )
        others = kept_alike(self._components.attributes(), trained)
        for name in map(self._name, filter(self._differs, others)):
            if name not in self._told:
                self._told.add(name)
                warn(
                    f"{name} has other values on each replica, and a checkpoint keeps those of the first: assign what "
                    "self.all_gather(x) or self.all_reduce(x) gives."
                )

    def _name(self, variable: Any) -> str:
        return self._own.get(id(variable)) or self._tree.name(as_tf(variable)) or path_of(variable)

    def _differs(self, variable: Any) -> bool:
        first, *others = self._strategy.experimental_local_results(as_tf(variable))
        value = first.numpy()
        return any(are_apart(value, other.numpy()) for other in others)


def are_apart(one: np.ndarray, other: np.ndarray) -> bool:
    """Whether two replicas' values differ by more than rounding; what is not finite has to be the same.

    Example:
        >>> are_apart(np.array([1.0, np.nan]), np.array([1.0, np.nan])), are_apart(np.array([1.0]), np.array([np.inf]))
        (False, True)
    """
    if np.array_equal(one, other):  # nearly always, and the rest takes 20 times as long
        return False
    if one.dtype.kind not in "fV":  # V: bfloat16, which NumPy does not know
        return True
    one, other = one.astype("float64"), other.astype("float64")
    finite = np.isfinite(one)
    if not np.array_equal(finite, np.isfinite(other)):
        return True
    if not np.array_equal(one[~finite], other[~finite], equal_nan=True):
        return True
    return bool(np.linalg.norm(one[finite] - other[finite]) > LARGEST * np.linalg.norm(one[finite]))
