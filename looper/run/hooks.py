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
        parts: its batches' parts of lengths of their own.
        defaults: options of its own.
        build, compute_loss, train_step, transform_gradients, after_update, eval_step, predict_step, train_data,
            eval_data: its methods.
        reading: a context that gives, at its end, which Python numbers of the recipe were read in it.
        number: such a number now, by name.
    """

    name: str
    own: frozenset[str]
    parts: Parts
    defaults: Mapping[str, Any]
    build: Callable[[], None]
    compute_loss: Callable[[Any, bool], Any]
    train_step: Callable[[Any], Mapping[str, Any]]
    transform_gradients: Callable[[list[Any], list[Any]], Sequence[Any]]
    after_update: Callable[[], None]
    eval_step: Callable[[Any], Mapping[str, Any]]
    predict_step: Callable[[Any], Any]
    train_data: Callable[..., Any]
    eval_data: Callable[..., Any]
    reading: Callable[[], AbstractContextManager[dict[str, int | float]]]
    number: Callable[..., Any]

    @property
    def own_train_step(self) -> Callable[[Any], Any] | None:
        """The recipe's `train_step`, if it has its own."""
        return self.train_step if "train_step" in self.own else None

    @property
    def own_steps(self) -> frozenset[str]:
        """Those of `compute_loss`, `train_step` and `eval_step` that it overrides."""
        return self.own & {"compute_loss", "train_step", "eval_step"}
