"""Arrays in memory, shuffled by a seeded permutation of their indices: any position is reached at once."""

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf

from looper.base.errors import InputError
from looper.data import leaves
from looper.data.source import Source, untuned
from looper.data.stacks import Part, why_not_kept

CHUNK_BYTES = 4 << 20
"""Batches are gathered in chunks of about this size: a call of a function in the input pipeline has its cost."""

Transform = Callable[[Any, tf.Tensor, tf.Tensor, Callable[[tf.Tensor], Any]], Any]
"""`(rows, index, pass, fetch) -> rows`, with the rows' `index` in the arrays; `fetch(index)` gets more rows."""


class ArraySource(Source):
    """Batches of arrays: an array, or nested tuples and dicts of arrays with the same first axis.

    Example `i` of pass `p` is element `permutation(seed, p)[i]` (`tf.random.experimental.index_shuffle`), which does
    not depend on how the examples are batched or on where a run was stopped.

    Arrays are NumPy arrays, tensors (ragged and sparse ones too), pandas DataFrames and Series, SciPy matrices.

    Attributes:
        element_spec: specs of a batch; the first axis is None if the last batch is smaller.
        length: batches in a pass.
        examples: examples in a pass.
        batch_bytes: the size of a full batch if whole stacks can be read: of dense numbers, without a `transform`.

    Args:
        arrays: see above.
        batch_size: examples in a batch.
        shuffle: whether to permute.
        seed: of the permutation.
        transform: see `Transform`; it must treat each row by itself.

    Raises:
        InputError: if there are no examples, the lengths differ, or a leaf is not an array.

    Example:
        >>> source = ArraySource((np.arange(6.0), np.arange(6)), batch_size=4, shuffle=False, seed=0)
        >>> iterator = source.open(0, 0)
        >>> [next(iterator)[0].numpy().tolist() for _ in range(3)]
        [[0.0, 1.0, 2.0, 3.0], [4.0, 5.0], [0.0, 1.0, 2.0, 3.0]]
    """

    repeats, goes_on = True, True

    def __init__(
        self, arrays: Any, *, batch_size: int, shuffle: bool, seed: int, transform: Transform | None = None
    ) -> None:
        self.examples = count_all(arrays)
        self._columns = tf.nest.map_structure(leaves.in_memory, arrays)
        self.batch_size, self._shuffle, self._seed, self.transform = batch_size, shuffle, seed, transform
        self.length = -(-self.examples // batch_size)
        self.smallest_batch = self.examples % batch_size or batch_size
        self.largest_batch = min(self.examples, batch_size)
        self.element_spec = self._spec()
        if transform is None and why_not_kept(self.element_spec) is None:
            self.batch_bytes = min(batch_size, self.examples) * self._bytes_per_example()
            self.opens_anywhere = True

    def open(self, number: int, batch: int) -> Any:
        """An iterator that starts at batch `batch` of pass `number` and goes on to the next pass, without end."""
        number = number if self._shuffle or self.transform is not None else 0  # else all passes are the same
        return iter(self._dataset(number, batch) if number or batch else self._from_start)

    def open_stacks(self, number: int, batch: int, size: int) -> Callable[[], tuple[Part, bool]] | None:
        """Reads whole stacks at once; with a `transform`, batches are better made several at a time."""
        if self.batch_bytes is None:
            return None
        each, total, length = self.largest_batch, self.examples, self.length
        tensors = len(tf.nest.flatten(self._columns))
        position = number * length + batch

        def read() -> tuple[Part, bool]:
            nonlocal position
            number, batch = divmod(position, length)
            count = min(size, length - batch)
            start, stop = batch * each, min((batch + count) * each, total)
            position += count
            sizes = [min(each, stop - first) for first in range(start, stop, each)] + [0] * (size - count)
            # operation by operation: to compile the few takes longer than most runs need for theirs
            with tf.device("CPU:0"):
                rows = self.rows(tf.range(start, stop, dtype=tf.int64), tf.constant(number, tf.int64))
                stack = tf.nest.map_structure(lambda column: stacked(column, size, each), rows)
            return Part(stack, [(n,) * tensors for n in sizes] if self.parts else sizes, 0, count), True

        return read

    def describe(self) -> dict[str, Any]:
        config = {"batch_size": self.batch_size, "examples": self.examples, "shuffle": self._shuffle}
        return config if self.transform is None else config | {"augmentation": str(self.transform)}

    @functools.cached_property
    def _from_start(self) -> tf.data.Dataset:
        """Made once: a function that is given to `Dataset.map` stays in TensorFlow's memory for good."""
        return self._dataset(0, 0)

    def _spec(self) -> Any:
        """That of `_dataset`, which is made only where an iterator is asked for: it takes as long as many steps."""
        columns = tf.nest.flatten(self._columns)
        if self.transform is not None or not all(isinstance(column, tf.Tensor) for column in columns):
            return self._from_start.element_spec
        size = None if self.examples % self.batch_size else self.batch_size
        return tf.nest.map_structure(lambda x: tf.TensorSpec([size, *x.shape[1:]], x.dtype), self._columns)

    def _fetch(self, index: tf.Tensor) -> Any:
        return tf.nest.map_structure(lambda column: leaves.gather(column, index), self._columns)

    def rows(self, places: tf.Tensor, number: tf.Tensor) -> Any:
        """The rows at some places of pass `number`; without a `transform` it may be one for each place."""
        index = permuted(places, self._seed, number, self.examples) if self._shuffle else places
        rows = self._fetch(index)
        return rows if self.transform is None else self.transform(rows, index, number, self._fetch)

    def _dataset(self, number: int, batch: int) -> tf.data.Dataset:
        size, total = self.batch_size, self.examples
        batches = int(np.clip(CHUNK_BYTES // max(size * self._bytes_per_example(), 1), 1, 32))  # in a chunk
        chunks = -(-self.length // batches)  # in a pass; the last one may be smaller

        @tf.autograph.experimental.do_not_convert  # an error of ours stays what it is
        def gather(count: tf.Tensor) -> dict[str, Any]:
            start = count % chunks * batches * size
            index = tf.range(start, tf.minimum(start + batches * size, total))
            return {"chunk": self.rows(index, count // chunks)}

        def split(gathered: dict[str, Any]) -> tf.data.Dataset:
            return tf.data.Dataset.from_tensors(gathered["chunk"]).rebatch(size, drop_remainder=total % size == 0)

        counts = tf.data.Dataset.range(number * chunks + batch // batches, tf.int64.max)
        at_once = None if self.transform is None else tf.data.AUTOTUNE
        gathered = counts.map(gather, num_parallel_calls=at_once, deterministic=None if at_once is None else True)
        dataset = gathered.prefetch(1).flat_map(split).skip(batch % batches).prefetch(2)
        return untuned(dataset) if at_once is None else dataset

    def _bytes_per_example(self) -> int:
        def of(column: Any) -> int:
            if isinstance(column, tf.Tensor):
                return column.dtype.size * int(np.prod(column.shape[1:]))
            values = column.values if isinstance(column, leaves.SparseRows) else column
            return values.dtype.size * int(tf.size(values.flat_values)) // self.examples

        return sum(map(of, tf.nest.flatten(self._columns)))


def stacked(column: tf.Tensor, size: int, each: int) -> tf.Tensor:
    """Rows as a stack `[size, each, ...]`; what is missing is 0.

    Example:
        >>> stacked(tf.constant([1, 2, 3]), 2, 2).numpy().tolist()
        [[1, 2], [3, 0]]
    """
    missing = size * each - column.shape[0]
    if missing:
        column = tf.pad(column, [[0, missing]] + [[0, 0]] * (column.shape.rank - 1))
    return tf.reshape(column, [size, each, *column.shape[1:]])


def permuted(index: tf.Tensor, seed: int, number: tf.Tensor | int, total: int) -> tf.Tensor:
    """The places `index` (int64) of pass `number`, or of one for each, in the seeded permutation of `total` examples.

    Example:
        >>> sorted(permuted(tf.range(5, dtype=tf.int64), 0, 3, 5).numpy().tolist())
        [0, 1, 2, 3, 4]
    """
    first, number = tf.constant(seed & 0xFFFFFFFF, tf.int64), tf.cast(number, tf.int64)
    most = tf.constant(total - 1, tf.int64)
    if number.shape.rank == 0:
        return tf.random.experimental.index_shuffle(index, tf.stack([first, number]), most)
    # TensorFlow 2.21 means to take a pair for each index, and pads them along the wrong axis with the same number
    begin = tf.fill(tf.shape(number), tf.constant(498247692, tf.int64))
    triples = tf.stack([begin, tf.fill(tf.shape(number), first), number], 1)
    return tf.raw_ops.RandomIndexShuffle(index=index, seed=triples, max_index=most, rounds=4)


def count_all(arrays: Any) -> int:
    """The number of examples of nested arrays. Raises `InputError` if it is 0 or they differ in it."""
    sizes = {leaves.count(leaf) for leaf in tf.nest.flatten(arrays)}
    if len(sizes) != 1:
        shapes = tf.nest.map_structure(lambda a: tuple(a.shape), arrays)
        raise InputError(f"the arrays have different numbers of examples: shapes {shapes}.")
    if sizes == {0}:
        raise InputError("the data is empty: the arrays have 0 examples.")
    return sizes.pop()


def is_arrays(data: Any) -> bool:
    """Whether every leaf of a nested structure has a shape with a first axis.

    Example:
        >>> is_arrays({"x": np.zeros((3, 2))}), is_arrays("text"), is_arrays(())
        (True, False, False)
    """
    flat = tf.nest.flatten(data)
    return bool(flat) and all(leaves.is_array(leaf) for leaf in flat)
