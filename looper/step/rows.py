"""Gradients of tables in which each row stands once."""

import functools
from collections.abc import Sequence
from typing import Any

import tensorflow as tf

from looper.base import xla

DENSE = 1 << 16
"""The most elements of a table whose gradient is made dense in an XLA program, which would sort to find equal rows."""


LARGE = 1 << 20
"""The fewest elements of a table whose gradient is added up and reduced as rows, which are not a table's half then."""


def stays_in_rows(gradient: Any) -> bool:
    """Whether a gradient is better added up and reduced as rows than as a table: how many rows depends on the batch.

    Example:
        >>> rows = tf.IndexedSlices(tf.ones([3, 1]), tf.constant([5, 0, 5]), tf.constant([LARGE, 1]))
        >>> stays_in_rows(rows), stays_in_rows(tf.ones([8, 1]))
        (True, False)
    """
    return isinstance(gradient, tf.IndexedSlices) and (gradient.shape.num_elements() or 0) >= LARGE


def added(gradients: Sequence[Any]) -> Any:
    """The sum of gradients of one variable: rows one after another if all are rows, else a tensor.

    Example:
        >>> rows = tf.IndexedSlices(tf.ones([1, 1]), tf.constant([1]), tf.constant([2, 1]))
        >>> added([rows, rows]).indices.numpy().tolist(), added([rows, tf.ones([2, 1])]).numpy().tolist()
        ([1, 1], [[1.0], [2.0]])
    """
    if len(gradients) == 1:
        return gradients[0]
    if not all(isinstance(gradient, tf.IndexedSlices) for gradient in gradients):
        return functools.reduce(tf.add, map(tf.convert_to_tensor, gradients))
    values, indices = (tf.concat([getattr(g, name) for g in gradients], 0) for name in ("values", "indices"))
    return tf.IndexedSlices(values, indices, gradients[0].dense_shape)


def with_shape(gradient: Any, shape: Sequence[int]) -> Any:
    """A gradient of a variable of this shape, which rows that went through a loop or a reduction do not know any more.

    Example:
        >>> rows = tf.IndexedSlices(tf.ones([1, 1]), tf.constant([1]))
        >>> with_shape(rows, (8, 1)).shape
        TensorShape([8, 1])
    """
    if not isinstance(gradient, tf.IndexedSlices):
        return gradient
    return tf.IndexedSlices(gradient.values, gradient.indices, tf.constant(list(shape), tf.int32))


def shapes_in_a_loop(gradient: Any) -> list[tf.TensorShape]:
    """What stays the same of the shapes of a gradient's tensors while others are `added` to it in a loop.

    Example:
        >>> shapes_in_a_loop(tf.IndexedSlices(tf.ones([3, 2]), tf.constant([5, 0, 5]), tf.constant([8, 2])))
        [TensorShape([None, 2]), TensorShape([None]), TensorShape([2])]
    """
    if not isinstance(gradient, tf.IndexedSlices):
        return [gradient.shape]
    values, _, shape = tf.nest.flatten(gradient, expand_composites=True)
    return [tf.TensorShape([None, *values.shape[1:]]), tf.TensorShape([None]), shape.shape]


def sum_repeated(gradient: tf.Tensor | tf.IndexedSlices) -> tf.Tensor | tf.IndexedSlices:
    """The gradient with the rows that occur several times added up, such as those of an `Embedding`'s repeated indices.

    Keras 3.15's adaptive optimizers add the squares of such rows, where a dense gradient has the square of their sum;
    Keras 2 added them up first (`_deduplicate_sparse_grad`).

    Args:
        gradient: a tensor, which is returned as it is, or slices.

    Returns:
        Slices with each row once; in an XLA program, whose shapes are fixed, as many as before: rows of zeros at index
        0 take the place of those that were added to others. A small table's are a tensor there.

    Example:
        >>> found = sum_repeated(tf.IndexedSlices(tf.ones([3, 1]), tf.constant([5, 0, 5]), tf.constant([8, 1])))
        >>> found.indices.numpy().tolist(), found.values.numpy().tolist()
        ([5, 0], [[2.0], [1.0]])
    """
    if not isinstance(gradient, tf.IndexedSlices):
        return gradient
    if not xla.traces():
        rows, place = tf.unique(gradient.indices)
        values = tf.math.unsorted_segment_sum(gradient.values, place, tf.size(rows))
    elif 0 < (gradient.shape.num_elements() or 0) <= DENSE:
        return tf.convert_to_tensor(gradient)
    else:
        rows, values = _of_fixed_shape(gradient.indices, gradient.values)
    return tf.IndexedSlices(values, rows, gradient.dense_shape)


def _of_fixed_shape(indices: tf.Tensor, values: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    count = tf.size(indices)
    order = tf.argsort(indices, stable=True)
    ordered = tf.gather(indices, order)
    first = tf.concat([tf.ones_like(ordered[:1], tf.bool), ordered[1:] != ordered[:-1]], 0)
    place = tf.cumsum(tf.cast(first, tf.int32)) - 1
    values = tf.math.unsorted_segment_sum(tf.gather(values, order), place, count)
    return tf.math.unsorted_segment_sum(tf.where(first, ordered, tf.zeros_like(ordered)), place, count), values
