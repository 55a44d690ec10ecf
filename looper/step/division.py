"""How a step divides batches among replicas and micro-batches: each part by its own length."""

import contextlib
from collections.abc import Mapping, Sequence
from typing import Any

import tensorflow as tf

from looper.base import batches
from looper.base.batches import Length, Parts
from looper.recipe import losses


class Division:
    """What a step needs to know of the parts of its batches.

    A scalar that a recipe returns is a mean over the examples that it sees, and counts as many. Where parts are of
    different lengths, it is not known of which: such a scalar is right only where all replicas and micro-batches see
    equally many of each part.

    Attributes:
        parts: the declared parts that the batches have.
        means: the names of such scalars, known once the step was traced.

    Args:
        parts: see above.
        replicas, accumulate: that a batch is divided among, and micro-batches on each of them.
    """

    def __init__(self, parts: Parts, replicas: int, accumulate: int = 1) -> None:
        self.parts = tuple(parts)
        self._replicas, self._accumulate = replicas, accumulate
        self.means: dict[str, None] = {}

    def checked(self, batch: Any) -> Any:
        """A global batch, if it can be divided: see `looper.base.batches.checked`."""
        if self._replicas * self._accumulate == 1:
            return batch
        # on several replicas the batch is where the data is, to be divided from there
        with tf.device("CPU:0") if self._replicas > 1 else contextlib.nullcontext():
            return batches.checked(batch, self.parts)

    def without_micro_batches(self) -> "Division":
        """How evaluation divides the same batches."""
        return Division(self.parts, self._replicas)

    def note_means(self, logs: Mapping[str, object], examples: tf.Tensor) -> None:
        """Takes note of what of a loss and logs is a scalar over all parts; a number is the same for each example."""
        for name, value in logs.items():
            if not isinstance(value, int | float) and any(t.mean for t in losses.as_terms(name, value, examples)):
                self.means[name] = None

    def means_checked(self, lengths: Sequence[Length], tensors: Any) -> Any:
        """Some tensors, which can be had only if the scalars noted are right for a global batch of such parts.

        Raises:
            InputError: if it is known that they are not.
        """
        if not self.means or len(lengths) == 1 or self._replicas * self._accumulate == 1:
            return tensors
        text = [
            f"{' and '.join(self.means)} is a scalar, and the batch's parts of ",
            lengths,
            " examples do not divide evenly among replicas and micro-batches: return the values, not their mean, or a "
            "pair (mean, number of examples)",
        ]
        return batches.only_if(self._divides(lengths), text, tensors)

    def _divides(self, lengths: Sequence[Length]) -> bool | tf.Tensor:
        """Whether parts are of the same length, or make equal slices: of these none is empty, see `Pipeline`."""
        if all(isinstance(length, int) for length in lengths):
            replicas = self._replicas if min(lengths) >= self._replicas else 1  # which is given the whole batch then
            slices = replicas * min(max(min(lengths) // replicas, 1), self._accumulate)
            return len(set(lengths)) == 1 or all(length % slices == 0 for length in lengths)
        of_each = tf.stack(lengths)
        least = tf.reduce_min(of_each)
        replicas = tf.where(least >= self._replicas, self._replicas, 1)
        slices = replicas * tf.clip_by_value(least // replicas, 1, self._accumulate)
        return tf.reduce_all(of_each == of_each[0]) | tf.reduce_all(of_each % slices == 0)
