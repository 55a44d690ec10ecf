"""The methods of a recipe that looper calls."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

from looper.base.batches import Parts


@dataclasses.dataclass(frozen=True)
class Hooks:
    """A recipe's methods and settings.

    Attributes:
        name: of its class.
        own: the names of the methods that it overrides.
        build, compute_loss, train_step, transform_gradients, after_update, eval_step, predict_step: its methods.
        reading: a context that gives, at its end, which Python numbers of the recipe were read in it.
        attribute: one of its attributes now, by name.
    """

    name: str
    own: frozenset[str]
    build: Callable[[], None]
    compute_loss: Callable[[Any, bool], Any]
    train_step: Callable[[Any], Mapping[str, Any]]
    transform_gradients: Callable[[list[Any], list[Any]], Sequence[Any]]
    after_update: Callable[[], None]
    eval_step: Callable[[Any], Mapping[str, Any]]
    predict_step: Callable[[Any], Any]
    reading: Callable[[], AbstractContextManager[dict[str, int | float]]]
    attribute: Callable[..., Any]

    @property
    def parts(self) -> Parts:
        """Its batches' parts of lengths of their own."""
        return self.attribute("parts")

    @property
    def defaults(self) -> Mapping[str, Any]:
        """Options of its own."""
        return self.attribute("defaults")

    @property
    def train_data(self) -> Callable[..., Any]:
        """Its own training data."""
        return self.attribute("train_data")

    @property
    def eval_data(self) -> Callable[..., Any]:
        """Its own evaluation data."""
        return self.attribute("eval_data")

    @property
    def own_train_step(self) -> Callable[[Any], Any] | None:
        """The recipe's `train_step`, if it has its own."""
        return self.train_step if "train_step" in self.own else None

    @property
    def own_steps(self) -> frozenset[str]:
        """Those of `compute_loss`, `train_step` and `eval_step` that it overrides."""
        return self.own & {"compute_loss", "train_step", "eval_step"}
