"""Batches: how many examples one has, and a run of them. Dense, ragged and sparse tensors alike."""

from typing import Any

import tensorflow as tf


def count_examples(batch: Any) -> tf.Tensor:
    """The number of examples of a batch: the length of its first tensor's first axis, int32 scalar.

    Example:
        >>> int(count_examples({"words": tf.ragged.constant([[1, 2], [3]])}))
        2
    """
    first = tf.nest.flatten(batch)[0]
    if isinstance(first, tf.RaggedTensor):
        return tf.cast(first.nrows(), tf.int32)
    if isinstance(first, tf.SparseTensor):
        return tf.cast(first.dense_shape[0], tf.int32)
    return tf.shape(first)[0]


def take(batch: Any, start: tf.Tensor, stop: tf.Tensor) -> Any:
    """The examples of a batch from `start` up to `stop`, int32 scalars.

    Example:
        >>> take((tf.range(4), tf.ragged.constant([[1, 2], [3], [], [4]])), 1, 3)[1].to_list()
        [[3], []]
    """
    return tf.nest.map_structure(lambda tensor: _rows(tensor, start, stop), batch)


def _rows(tensor: Any, start: tf.Tensor, stop: tf.Tensor) -> Any:
    if not isinstance(tensor, tf.SparseTensor):
        return tensor[start:stop]
    shape, others = tensor.shape, tensor.dense_shape[1:]
    start, stop = tf.cast(start, tf.int64), tf.cast(stop, tf.int64)
    first = tf.concat([[start], tf.zeros_like(others)], 0)
    rows = tf.sparse.slice(tensor, first, tf.concat([[stop - start], others], 0))
    rows.set_shape([None, *shape[1:]])  # which the slice does not know of
    return rows


def of_any_size(spec: tf.TypeSpec) -> tf.TypeSpec:
    """The spec of a tensor of batches that have any number of examples.

    Example:
        >>> of_any_size(tf.TensorSpec([8, 3]))
        TensorSpec(shape=(None, 3), dtype=tf.float32, name=None)
    """
    shape = [None, *spec.shape[1:]]
    if isinstance(spec, tf.RaggedTensorSpec):
        return tf.RaggedTensorSpec(shape, spec.dtype, spec.ragged_rank, spec.row_splits_dtype)
    return type(spec)(shape, spec.dtype)
