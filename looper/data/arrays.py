"""Arrays in memory, shuffled by a seeded permutation of their indices: any position is reached at once."""

from typing import Any

import keras
import numpy as np
import tensorflow as tf

from looper.errors import InputError, first_line

CHUNK_BYTES = 4 << 20
"""Batches are gathered in chunks of about this size: a call of a function in the input pipeline has its cost."""


class ArraySource:
    """Batches of arrays: an array, or nested tuples and dicts of arrays with the same first axis.

    Example `i` of pass `p` is element `permutation(seed, p)[i]` (`tf.random.experimental.index_shuffle`), which does
    not depend on how the examples are batched or on where a run was stopped.

    Attributes:
        element_spec: `tf.TensorSpec`s of a batch; the first axis is None if the last batch is smaller.
        length: batches in a pass.
        examples: examples in a pass.

    Raises:
        InputError: if there are no examples, the lengths differ, or a leaf is not an array.

    Example:
        >>> source = ArraySource((np.arange(6.0), np.arange(6)), batch_size=4, shuffle=False, seed=0)
        >>> iterator = source.open(0, 0)
        >>> [next(iterator)[0].numpy().tolist() for _ in range(3)]
        [[0.0, 1.0, 2.0, 3.0], [4.0, 5.0], [0.0, 1.0, 2.0, 3.0]]
    """

    def __init__(self, arrays: Any, *, batch_size: int, shuffle: bool, seed: int) -> None:
        leaves = tf.nest.flatten(arrays)
        sizes = {_size(leaf) for leaf in leaves}
        if len(sizes) != 1:
            shapes = tf.nest.map_structure(lambda a: tuple(a.shape), arrays)
            raise InputError(f"the arrays have different numbers of examples: shapes {shapes}.")
        self.examples = sizes.pop()
        if self.examples == 0:
            raise InputError("the data is empty: the arrays have 0 examples.")
        self._tensors = tf.nest.map_structure(_tensor, arrays)
        self._batch_size, self._shuffle, self._seed = batch_size, shuffle, seed
        self.length = -(-self.examples // batch_size)
        self.element_spec = self._dataset(0, 0).element_spec
        self.endless, self.repeats = False, True
        self.smallest_batch = self.examples % batch_size or batch_size

    def open(self, number: int, batch: int) -> Any:
        """An iterator that starts at batch `batch` of pass `number` and goes on to the next pass, without end."""
        return iter(self._dataset(number, batch))

    def describe(self) -> dict[str, Any]:
        return {"batch_size": self._batch_size, "examples": self.examples, "shuffle": self._shuffle}

    def _dataset(self, number: int, batch: int) -> tf.data.Dataset:
        size, total = self._batch_size, self.examples
        bytes_per_batch = size * sum(t.dtype.size * int(np.prod(t.shape[1:])) for t in tf.nest.flatten(self._tensors))
        batches = int(np.clip(CHUNK_BYTES // max(bytes_per_batch, 1), 1, 32))  # in a chunk
        chunks = -(-self.length // batches)  # in a pass; the last one may be smaller

        def gather(count: tf.Tensor) -> dict[str, Any]:
            start = count % chunks * batches * size
            index = tf.range(start, tf.minimum(start + batches * size, total))
            if self._shuffle:
                seed = tf.stack([tf.constant(self._seed & 0xFFFFFFFF, tf.int64), count // chunks])
                index = tf.random.experimental.index_shuffle(index, seed, tf.constant(total - 1, tf.int64))
            return {"chunk": tf.nest.map_structure(lambda t: tf.gather(t, index), self._tensors)}

        def split(gathered: dict[str, Any]) -> tf.data.Dataset:
            return tf.data.Dataset.from_tensors(gathered["chunk"]).rebatch(size, drop_remainder=total % size == 0)

        counts = tf.data.Dataset.range(number * chunks + batch // batches, tf.int64.max)
        return counts.map(gather).prefetch(1).flat_map(split).skip(batch % batches).prefetch(2)


def is_arrays(data: Any) -> bool:
    """Whether every leaf of a nested structure has a shape with a first axis.

    Example:
        >>> is_arrays({"x": np.zeros((3, 2))}), is_arrays("text"), is_arrays(())
        (True, False, False)
    """
    leaves = tf.nest.flatten(data)
    return bool(leaves) and all(len(getattr(leaf, "shape", ())) > 0 for leaf in leaves)


def _size(leaf: Any) -> int:
    return int(leaf.shape[0])


def _tensor(leaf: Any) -> tf.Tensor:
    try:
        tensor = tf.convert_to_tensor(leaf)
    except (ValueError, TypeError) as error:
        raise InputError(
            f"an array of dtype {getattr(leaf, 'dtype', '?')} cannot be used: {first_line(error)}"
        ) from None
    # as Keras does: NumPy makes float64 where nobody asked for it
    return tf.cast(tensor, keras.config.floatx()) if tensor.dtype == tf.float64 else tensor
