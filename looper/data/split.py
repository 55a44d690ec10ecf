"""`validation_split`: the last examples of arrays and indexable data, held out before any shuffling."""

import dataclasses
import math
from typing import Any

import tensorflow as tf

from looper.base.errors import InputError
from looper.data import leaves
from looper.data.arrays import count_all, is_arrays
from looper.data.augment import Augmented
from looper.data.indexed import RowRange, is_map_dataset
from looper.data.python import without_lists


def split(data: Any, fraction: float) -> tuple[Any, Any]:
    """Training and validation data, where the latter is the last `fraction` of the examples.

    The boundary is `floor(examples * (1 - fraction))`, as in Keras' `fit`.

    Args:
        data: arrays or an indexable source, as `fit` takes them.
        fraction: above 0 and below 1.

    Raises:
        InputError: if the data is of another kind, or one of the two is empty.

    Example:
        >>> train, held_out = split((tf.range(10), tf.range(10)), 0.25)
        >>> train[0].numpy().tolist(), held_out[1].numpy().tolist()
        ([0, 1, 2, 3, 4, 5, 6], [7, 8, 9])
    """
    if isinstance(data, Augmented):
        first, last = split(data.data, fraction)
        return dataclasses.replace(data, data=first), dataclasses.replace(data, data=last)
    by_example = is_map_dataset(data)
    arrays = data if by_example else without_lists(data)
    if isinstance(data, tf.data.Dataset) or not (by_example or is_arrays(arrays)):
        raise InputError(
            f"validation_split={fraction} is for arrays and indexable data, and this is {type(data).__name__}: give "
            "eval_data= instead."
        )
    examples = len(data) if by_example else count_all(arrays)
    boundary = math.floor(examples * (1.0 - fraction))
    if boundary in (0, examples):
        raise InputError(f"validation_split={fraction} of {examples} examples leaves nothing on one side.")

    def rows(start: int, stop: int) -> Any:
        if by_example:
            return RowRange(data, start, stop)
        return tf.nest.map_structure(lambda leaf: _rows(leaf, start, stop), arrays)

    return rows(0, boundary), rows(boundary, examples)


def _rows(leaf: Any, start: int, stop: int) -> Any:
    if leaves.is_read_lazily(leaf):
        return RowRange(leaf, start, stop)
    if isinstance(leaf, tf.SparseTensor):
        first = [start] + [0] * (len(leaf.shape) - 1)
        return tf.sparse.slice(leaf, first, [stop - start, *leaf.shape[1:]])
    if hasattr(leaf, "tocoo"):
        return leaf.tocsr()[start:stop]
    return (leaf.iloc if hasattr(leaf, "iloc") else leaf)[start:stop]
