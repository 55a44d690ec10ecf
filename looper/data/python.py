"""Sources that Python makes batch by batch, read through one `tf.data` pipeline, as compiled steps need it."""

from collections.abc import Iterator
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from looper.base import memory
from looper.base.errors import InputError, first_line
from looper.data import leaves
from looper.data.source import Source, untuned


class PythonSource(Source):
    """Batches of a Python iterator per pass. A subclass says what `_batches` of a pass there are.

    The pipeline is built once, because `tf.data` keeps each Python function that it is given for good; an iterator
    that is opened on it takes the Python iterator that was made for it. Python runs in a thread of TensorFlow's, two
    batches ahead of training; for data that is made `on_demand` it runs when the batch is asked for.

    Args:
        examples: one or two batches, for the shapes: an axis in which they differ may have any length.
        on_demand: see `Source`.
    """

    def __init__(self, examples: list[Any], on_demand: bool = False) -> None:
        self.element_spec, self.on_demand = _spec(examples), on_demand
        self._next: Iterator[Any] | None = None
        read = tf.data.Dataset.from_generator(self._read, output_signature=self.element_spec)
        self._dataset = untuned(read if on_demand else read.prefetch(2))

    def open(self, number: int, batch: int) -> Any:
        self._next = self._batches(number, batch)
        return iter(self._dataset)

    def _batches(self, number: int, batch: int) -> Iterator[Any]:
        """The batches of pass `number` from `batch` on, as `tidy` makes them."""
        raise NotImplementedError

    def _read(self) -> Iterator[Any]:
        memory.keep_freed()  # TensorFlow has just told the C library not to
        batches, self._next = self._next, None
        while True:
            try:
                batch = next(batches)
            except StopIteration:
                return
            except InputError as error:
                raise ValueError(f"looper: {_plain(error).rstrip('.')}") from error
            except Exception as error:
                raise ValueError(f"looper: the data raised {type(error).__name__}: {_plain(error)}") from error
            yield _conform(batch, self.element_spec)


def tidy(batch: Any) -> Any:
    """A batch as `tf.data` takes it: tuples and dicts, as `without_lists` makes them, of arrays and tensors.

    Example:
        >>> x, y = tidy([np.ones((2, 3)), [0, 1]])
        >>> x.shape, y.tolist()
        ((2, 3), [0, 1])
    """
    return tf.nest.map_structure(_leaf, without_lists(batch))


def without_lists(data: Any) -> Any:
    """Nested data with tuples in place of lists, which `tf.data` takes for one tensor each.

    A list of numbers, or of lists of them, becomes an array, any other list a tuple (Keras takes several inputs as a
    list, and PyTorch's loaders yield lists); a None at the end of a tuple is left out.

    Example:
        >>> (a, b), y = without_lists([[np.ones(2), np.zeros(2)], [0, 1]])
        >>> a.tolist(), y.tolist()
        ([1.0, 1.0], [0, 1])
    """
    if isinstance(data, dict):
        return {key: without_lists(value) for key, value in data.items()}
    if isinstance(data, list) and data and _is_numbers(data[0]):
        try:
            return _leaf(data)
        except ValueError:
            raise InputError(
                f"a list of {len(data)} items is no array: its lists differ in length. Pad them, or give a "
                "tf.ragged.constant."
            ) from None
    if isinstance(data, tuple | list):
        items = list(data)
        while items and items[-1] is None:
            items.pop()
        return tuple(without_lists(item) for item in items)
    return data


def _is_numbers(item: Any) -> bool:
    """Whether an item of a list is a number, a text, or a list of such: then the list is one array."""
    return isinstance(item, int | float | str | np.generic) or (
        isinstance(item, list) and bool(item) and _is_numbers(item[0])
    )


def has_state(thing: Any) -> bool:
    """Whether an object has `state()` and `restore(state)`."""
    return callable(getattr(thing, "state", None)) and callable(getattr(thing, "restore", None))


def _leaf(leaf: Any) -> Any:
    if isinstance(leaf, tf.Tensor | tf.RaggedTensor | tf.SparseTensor) or hasattr(leaf, "tocoo"):
        return leaves.as_tensor(leaf)
    array = leaves.as_numpy(leaf)
    return leaves.as_tensor(array).numpy() if array.dtype.hasobject else array


def _spec(batches: list[Any]) -> Any:
    """The common spec of batches, which may have any number of examples; floats become Keras' floatx."""

    def merged(*tensors: Any) -> Any:
        first = tf.type_spec_from_value(tensors[0])
        shapes = [tuple(tensor.shape) for tensor in tensors]
        if not shapes[0]:
            raise InputError("the data yields scalars, not batches: it must yield whole batches, such as (x, y).")
        shape = [sizes[0] if len(set(sizes)) == 1 else None for sizes in zip(*shapes, strict=True)]
        shape[0] = None
        dtype = keras.config.floatx() if first.dtype.is_floating else first.dtype
        if isinstance(first, tf.RaggedTensorSpec):
            return tf.RaggedTensorSpec(shape, dtype, first.ragged_rank, first.row_splits_dtype)
        return (tf.SparseTensorSpec if isinstance(first, tf.SparseTensorSpec) else tf.TensorSpec)(shape, dtype)

    try:
        return tf.nest.map_structure(merged, *batches)
    except (ValueError, TypeError) as error:
        raise InputError(f"the first two batches of the data are not alike: {_plain(error)}.") from None


def _conform(batch: Any, spec: Any) -> Any:
    """The batch with floats of the spec's dtype. Raises what `steps.explained` makes an `InputError` of."""

    def conform(leaf: Any, expected: Any) -> Any:
        dtype = tf.as_dtype(leaf.dtype)
        alike = dtype == expected.dtype or (dtype.is_floating and expected.dtype.is_floating)
        if not alike or not expected.shape.is_compatible_with(leaf.shape):
            is_now, was = (f"{tf.as_dtype(x.dtype).name}{tuple(x.shape)}" for x in (leaf, expected))
            raise ValueError(f"looper: the data yields a batch of {is_now} where the first ones were {was}")
        if dtype == expected.dtype:
            return leaf
        return (
            leaf.astype(expected.dtype.as_numpy_dtype)
            if isinstance(leaf, np.ndarray)
            else tf.cast(leaf, expected.dtype)
        )

    try:
        tf.nest.assert_same_structure(batch, spec)
    except (ValueError, TypeError):
        raise ValueError("looper: the data yields batches of different structures") from None
    return tf.nest.map_structure(conform, batch, spec)


def _plain(error: Exception) -> str:
    """An error's first line, without what `steps.explained` cuts at."""
    return first_line(error).replace("]", ")").replace("[", "(")
