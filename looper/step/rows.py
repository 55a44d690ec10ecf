"""Gradients of tables in which each row stands once."""

import tensorflow as tf

from looper.base import xla

DENSE = 1 << 16
"""The most elements of a table whose gradient is made dense in an XLA program, which would sort to find equal rows."""


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
