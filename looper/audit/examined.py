"""What is looked at when a recipe's steps are run to be examined, and put back."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import keras
import tensorflow as tf

from looper.audit.tree import Tree
from looper.saved.variables import State


@dataclasses.dataclass(frozen=True)
class Examined:
    """A recipe.

    Attributes:
        tree: its layers.
        trainable: the variables that it counts as trained.
        make_state: makes the list of all state, of the variables that a step was seen to use.
        compiled: whether to compile the steps.
        own: the methods that it overrides.
        metrics: those that it is to update itself.
    """

    tree: Tree
    trainable: Sequence[Any]
    make_state: Callable[[Sequence[tf.Variable]], State]
    compiled: bool
    own: frozenset[str]
    metrics: Sequence[keras.Metric]
