"""The facts that the checks look at, and the findings that they make."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import keras
import tensorflow as tf

from looper.audit.record import UNSPECIFIED, Call, Phase, Recorder
from looper.audit.tree import Tree

Severity = Literal["error", "warning", "note"]


SEVERITIES: tuple[Severity, ...] = ("error", "warning", "note")


@dataclasses.dataclass(frozen=True)
class Finding:
    """Something to look at.

    Attributes:
        severity: "error": training or evaluation is not what it is written to be; "warning": likely a mistake, right in
            some recipes; "note": good to know.
        kind: which check found it, such as "never-trained".
        path: the layer, variable or method.
        meaning: what is the case, one sentence.
        remedy: what to do, one sentence.
        also: other paths with the same finding.
    """

    severity: Severity
    kind: str
    path: str
    meaning: str
    remedy: str
    also: tuple[str, ...] = ()

    def __str__(self) -> str:
        more = f" (and {len(self.also)} more: {listed_paths(self.also)})" if self.also else ""
        return f"{self.severity}: {self.path}{more}: {self.meaning} {self.remedy}"


@dataclasses.dataclass
class Facts:
    """The facts that the checks look at.

    Attributes:
        tree: the recipe's layers.
        training: what was recorded of a training step.
        evaluation: the same of an evaluation step, or None if there was none.
        own: the methods that the recipe overrides: "compute_loss", "train_step", "eval_step".
        trainable: the variables that the trainer counts as trainable.
        captured: all variables that the training step uses.
        replica_batch: examples per replica and micro-batch, or None if unknown.
        zero: trainable variables whose gradient was exactly zero on the batch.
        varying: the call whose outputs were the first to differ between two evaluations of one batch, "eval_step" if
            it is not known, or None if they were equal.
        idle_metrics: metrics of the trainer that no step of "training", or of "evaluation", updates.
        stopped: whether a trace was stopped by a flag given as a tensor.
        dropped: for calls of dropout layers, by their `id`: the share of elements that was dropped, and of how many.
        not_evaluated: why there was no evaluation step, though one was tried; or "".
    """

    tree: Tree
    training: Recorder
    evaluation: Recorder | None
    own: frozenset[str]
    trainable: Sequence[Any]
    captured: Sequence[tf.Variable]
    replica_batch: int | None = None
    zero: Sequence[Any] = ()
    varying: "Call | str | None" = None
    idle_metrics: Mapping[Phase, Sequence[keras.Metric]] = dataclasses.field(default_factory=dict)
    stopped: bool = False
    dropped: Mapping[int, tuple[float, float]] = dataclasses.field(default_factory=dict)
    not_evaluated: str = ""

    @property
    def calls(self) -> list[Call]:
        return [*self.training.calls, *(self.evaluation.calls if self.evaluation else [])]


def flag(value: Any) -> bool | str | None:
    """A `training` value as True, False, None or "tensor"; numbers count as Python counts them."""
    if value is None or value is UNSPECIFIED:
        return None
    return "tensor" if isinstance(value, tf.Tensor | tf.Variable | keras.Variable) else bool(value)


def is_frozen(layer: Any) -> bool:
    return isinstance(layer, keras.Layer) and not layer.trainable


def listed_paths(paths: Sequence[str]) -> str:
    paths = list(dict.fromkeys(paths))
    shown = ", ".join(paths[:3])
    return f"{shown} and {len(paths) - 3} more" if len(paths) > 3 else shown
