"""Data that is read by index: memory-mapped arrays, HDF5 datasets, sequences of examples, map datasets."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import tensorflow as tf

from looper.base.errors import InputError
from looper.data import leaves
from looper.data.arrays import Transform, count_all, permuted
from looper.data.python import PythonSource, tidy


class IndexedSource(PythonSource):
    """Batches gathered by index, in the same order as `ArraySource`; only a batch's rows are read.

    Args:
        data: nested tuples and dicts of arrays of which some are read lazily (by an index array, ascending and without
            repetitions, as HDF5 wants it); or an object with `len()` and `[i]` that returns an example, such as a list
            of `(x, y)` or a `torch.utils.data.Dataset` (found by these methods; `__getitems__(indices)` is used if it
            is there). Examples are stacked.
        batch_size: examples in a batch.
        shuffle: whether to permute.
        seed: of the permutation.
        transform: see `looper.data.arrays.Transform`.
        on_demand: see `Source`.

    Raises:
        InputError: if there are no examples, or they are not alike.

    Example:
        >>> source = IndexedSource([(1.0, 0), (2.0, 1), (3.0, 0)], batch_size=2, shuffle=False, seed=0)
        >>> [y.numpy().tolist() for x, y in source.open(0, 0)]
        [[0, 1], [0]]
    """

    repeats = True

    def __init__(
        self,
        data: Any,
        *,
        batch_size: int,
        shuffle: bool,
        seed: int,
        transform: Transform | None = None,
        on_demand: bool = False,
    ) -> None:
        self._by_example = is_map_dataset(data)
        self.examples = len(data) if self._by_example else count_all(data)
        if self.examples == 0:
            raise InputError(f"the data is empty: {type(data).__name__} has 0 examples.")
        self._data = data
        if not self._by_example:
            self._data = tf.nest.map_structure(lambda x: x if leaves.is_read_lazily(x) else leaves.in_memory(x), data)
        self.batch_size, self._shuffle, self._seed, self.transform = batch_size, shuffle, seed, transform
        self.length = -(-self.examples // batch_size)
        self.smallest_batch = self.examples % batch_size or batch_size
        self.largest_batch = min(self.examples, batch_size)
        super().__init__([self._batch(0, 0)], on_demand)

    def _batches(self, number: int, batch: int) -> Iterator[Any]:
        return (self._batch(number, i) for i in range(batch, self.length))

    def _batch(self, number: int, batch: int) -> Any:
        index = np.arange(batch * self.batch_size, min((batch + 1) * self.batch_size, self.examples))
        with tf.device("CPU:0"):
            return self.rows(tf.constant(index, tf.int64), tf.constant(number, tf.int64))

    def rows(self, places: tf.Tensor, number: tf.Tensor) -> Any:
        """As those of an `ArraySource`, read now."""
        index = permuted(places, self._seed, number, self.examples) if self._shuffle else places
        rows = self._fetch(index)
        return rows if self.transform is None else self.transform(rows, index, number, self._fetch)

    def _fetch(self, index: Any) -> Any:
        index = np.asarray(index)
        if not self._by_example:
            return tf.nest.map_structure(lambda column: _rows(column, index), self._data)
        if hasattr(self._data, "__getitems__"):
            examples = list(self._data.__getitems__(index.tolist()))
        else:
            examples = [self._data[i] for i in index.tolist()]
        return stacked([tidy(example) if tf.nest.is_nested(example) else example for example in examples], index)

    def describe(self) -> dict[str, Any]:
        config = {"batch_size": self.batch_size, "examples": self.examples, "shuffle": self._shuffle}
        return config if self.transform is None else config | {"augmentation": str(self.transform)}


def is_map_dataset(data: Any) -> bool:
    """Whether something is a sequence of examples: `len()` and `[i]`, and no array, dict, tuple, text or structure.

    A list is one if its first item is a tuple or a dict, or not an array; a list of arrays is a structure of arrays.

    Example:
        >>> is_map_dataset([(np.ones(3), 1)]), is_map_dataset([np.ones(3)]), is_map_dataset("text")
        (True, False, False)
    """
    if isinstance(data, str | bytes | dict | tuple | set) or leaves.is_array(data):
        return False
    if isinstance(data, list):
        return bool(data) and isinstance(data[0], tuple | dict)
    return hasattr(data, "__len__") and hasattr(data, "__getitem__")


def stacked(examples: list[Any], index: np.ndarray) -> Any:
    """A batch of examples. Raises `InputError` if they are not alike."""
    try:
        return tf.nest.map_structure(lambda *column: tidy(np.stack([leaves.as_numpy(x) for x in column])), *examples)
    except (ValueError, TypeError):
        shapes = {str(tf.nest.map_structure(lambda x: np.shape(x), example)) for example in examples}
        shown = " and ".join(sorted(shapes)[:2])
        raise InputError(f"the examples of a batch have different shapes, such as {shown}: pad them.") from None


def _rows(column: Any, index: np.ndarray) -> Any:
    if not leaves.is_read_lazily(column):
        return leaves.gather(column, tf.constant(index, tf.int64))
    if len(index) == 1 or (np.diff(index) == 1).all():
        return tidy(np.asarray(column[int(index[0]) : int(index[-1]) + 1]))
    unique, place = np.unique(index, return_inverse=True)
    return tidy(np.asarray(column[unique])[place])


class RowRange:
    """The examples `start` up to `stop` of something indexable, not read.

    Example:
        >>> rows = RowRange([10, 20, 30, 40], 1, 3)
        >>> len(rows), rows[1]
        (2, 30)
    """

    def __init__(self, data: Any, start: int, stop: int) -> None:
        self._data, self._start, self._stop = data, start, stop
        if leaves.is_array(data):
            self.shape, self.dtype = (stop - start, *data.shape[1:]), data.dtype

    def __len__(self) -> int:
        return self._stop - self._start

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            start, stop, step = index.indices(len(self))
            return self._data[start + self._start : stop + self._start : step]
        return self._data[index + self._start]
