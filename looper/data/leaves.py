"""Leaves of somebody's data, and the tensors that are made of them, as Keras' `fit` makes them."""

import dataclasses
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from looper.base.errors import InputError, first_line

IN_MEMORY = ("numpy", "tensorflow", "keras", "pandas", "scipy", "torch", "jax", "jaxlib")
"""Packages whose arrays are in memory; any other array is read batch by batch."""


@dataclasses.dataclass(frozen=True, eq=False)
class SparseRows:
    """A `tf.SparseTensor` whose rows can be gathered.

    Attributes:
        places: ragged int64, for each row the other indices of its values, `[rows, (values), rank - 1]`.
        values: ragged, for each row its values.
        others: the static shape after the first axis.
    """

    places: tf.RaggedTensor
    values: tf.RaggedTensor
    others: tuple[int, ...]


def is_array(leaf: Any) -> bool:
    """Whether a leaf has a shape with a first axis."""
    return len(getattr(leaf, "shape", None) or ()) > 0


def is_read_lazily(leaf: Any) -> bool:
    """Whether an array is to be read batch by batch: memory-mapped, HDF5, or of a package that is not known.

    Example:
        >>> is_read_lazily(np.zeros(3)), is_read_lazily([1, 2])
        (False, False)
    """
    if isinstance(leaf, np.memmap):
        return True
    known = any(kind.__module__.partition(".")[0] in IN_MEMORY for kind in type(leaf).__mro__)
    return is_array(leaf) and not known and hasattr(leaf, "__getitem__")


def count(leaf: Any) -> int:
    """The length of a leaf's first axis."""
    return int(leaf.shape[0])


def in_memory(leaf: Any) -> tf.Tensor | tf.RaggedTensor | SparseRows:
    """A whole leaf as what rows can be gathered from.

    Floats become Keras' floatx, as in `fit`: NumPy makes float64 where nobody asked for it. Object arrays of strings
    become `tf.string`.

    Raises:
        InputError: if TensorFlow has no dtype for it.

    Example:
        >>> in_memory(np.ones(2)).dtype.name, in_memory(np.array(["a", "b"], object)).dtype.name
        ('float32', 'string')
    """
    tensor = as_tensor(leaf)
    tensor = tf.cast(tensor, keras.config.floatx()) if tensor.dtype.is_floating else tensor
    if not isinstance(tensor, tf.SparseTensor):
        return tensor
    tensor = tf.sparse.reorder(tensor)
    rows, total = tensor.indices[:, 0], tensor.dense_shape[0]
    places = tf.RaggedTensor.from_value_rowids(tensor.indices[:, 1:], rows, total)
    values = tf.RaggedTensor.from_value_rowids(tensor.values, rows, total)
    return SparseRows(places, values, tuple(int(size) for size in tensor.dense_shape[1:]))


def gather(column: Any, index: tf.Tensor) -> Any:
    """The rows of an `in_memory` column, for an int64 index `[n]`: dense, ragged or sparse with `n` rows."""
    if not isinstance(column, SparseRows):
        return tf.gather(column, index)
    places, values = tf.gather(column.places, index), tf.gather(column.values, index)
    rows = tf.cast(values.value_rowids(), tf.int64)
    indices = tf.concat([rows[:, None], places.values], 1)
    shape = tf.concat([tf.shape(index, tf.int64), tf.constant(column.others, tf.int64)], 0)
    sparse = tf.SparseTensor(indices, values.values, shape)
    sparse.set_shape([index.shape[0], *column.others])
    return sparse


def as_tensor(leaf: Any) -> Any:
    """A dense, ragged or sparse tensor of an array, tensor, DataFrame, Series, SciPy matrix or PyTorch tensor."""
    if isinstance(leaf, tf.RaggedTensor | tf.SparseTensor):
        return leaf
    if hasattr(leaf, "tocoo"):  # a SciPy matrix
        coo = leaf.tocoo()
        return tf.SparseTensor(np.stack([coo.row, coo.col], 1).astype("int64"), coo.data, coo.shape)
    return _dense(leaf)


def as_numpy(leaf: Any) -> Any:
    """A NumPy array of a DataFrame, Series, PyTorch tensor (found by its methods) or list; other things as they are.

    Example:
        >>> as_numpy([1, 2]).tolist()
        [1, 2]
    """
    if hasattr(leaf, "detach"):
        return leaf.detach().cpu().numpy()
    if hasattr(leaf, "to_numpy"):
        return leaf.to_numpy()
    return leaf if hasattr(leaf, "shape") else np.asarray(leaf)


def _dense(leaf: Any) -> tf.Tensor:
    array = as_numpy(leaf)
    columns = getattr(leaf, "dtypes", None)
    try:
        if (
            isinstance(array, np.ndarray)
            and array.dtype.hasobject
            and all(isinstance(value, str) for value in array.flat)
        ):
            return tf.convert_to_tensor(array, tf.string)
        return tf.convert_to_tensor(array)
    except (ValueError, TypeError) as error:
        if columns is not None and getattr(columns, "nunique", lambda: 1)() > 1:
            kinds = ", ".join(f"{name}: {dtype}" for name, dtype in columns.items())
            raise InputError(
                f"the DataFrame has columns that make no one array ({kinds}): give a dict of columns, such as "
                "dict(frame), or only the numeric ones."
            ) from None
        raise InputError(
            f"an array of dtype {getattr(leaf, 'dtype', '?')} cannot be used: {first_line(error)}"
        ) from None
