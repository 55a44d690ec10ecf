"""Single batches that somebody else's loop trains on: their tensors and structure, and what a step on one returned."""

import math
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from looper.base.errors import InputError
from looper.data import Source, tidy
from looper.recipe import metrics
from looper.run.loop import nonfinite


class BatchSource(Source):
    """Batches of one structure that are given one by one.

    Args:
        element_spec: of a batch.
        examples: in each batch, or None if they differ.
    """

    def __init__(self, element_spec: Any, examples: int | None) -> None:
        self.element_spec, self.smallest_batch, self.largest_batch = element_spec, examples, examples


def converted(batch: Any, floats: tf.DType) -> tuple[Any, list[Any]]:
    """A batch of tensors in the structure that data yields it in, with floats of one dtype; and its leaves.

    Example:
        >>> (x, y), _ = converted((np.ones((2, 3)), [0, 1]), tf.float32)
        >>> x.dtype.name, y.numpy().tolist()
        ('float32', [0, 1])
    """
    if type(batch) is tuple and all(isinstance(x, np.ndarray) and x.dtype.kind in "biuf" for x in batch):
        leaves = [_tensor(leaf, floats) for leaf in batch]  # what comes most often, and at once
        return tuple(leaves), leaves
    batch = tidy(batch)
    leaves = [_tensor(leaf, floats) for leaf in tf.nest.flatten(batch)]
    return tf.nest.pack_sequence_as(batch, leaves), leaves


def _tensor(leaf: Any, floats: tf.DType) -> Any:
    if isinstance(leaf, np.ndarray):
        return tf.constant(leaf, floats if leaf.dtype.kind == "f" else None)
    return tf.cast(leaf, floats) if leaf.dtype.is_floating and leaf.dtype != floats else leaf


def structure_of(batch: Any, leaves: Sequence[Any]) -> tuple[Hashable, tuple[int, ...]]:
    """The structure of a batch but for its number of examples, and the leaves' first axes.

    Raises:
        InputError: if the batch has no tensor, or one without a first axis.
    """
    shapes = [leaf.shape.as_list() for leaf in leaves]
    if not shapes or not all(shapes):
        raise InputError(
            "train_on_batch() takes one batch of examples, such as (x, y) of arrays: this one has scalars."
        )
    flat = type(batch) is tuple and len(batch) == len(leaves)
    shape = len(batch) if flat else str(tf.nest.map_structure(lambda _: 0, batch))
    kinds = tuple(
        (type(leaf), leaf.dtype.as_datatype_enum, *sizes[1:]) for leaf, sizes in zip(leaves, shapes, strict=True)
    )
    return (shape, kinds), tuple(sizes[0] for sizes in shapes)


def results(row: np.ndarray, names: Sequence[str], values: Mapping[str, float], step: int) -> dict[str, float]:
    """The logs of step `step`, which returned a row, with the metrics and settings that were read after it.

    Raises:
        InputError: if the batch has no examples.
        NonFiniteLossError: if the loss or a gradient is not finite.
    """
    if not row[0]:
        raise InputError(f"a batch has no examples (step {step}): leave it out.")
    if not all(map(math.isfinite, row.tolist())):
        error = nonfinite(row[None], names, step - 1)
        if error is not None:
            raise error
    return metrics.means(row.astype(np.float64), names) | dict(values)
