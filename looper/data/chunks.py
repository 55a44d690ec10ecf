"""A `tf.data` dataset read many batches at a time: TensorFlow groups its rows, and no function is called per batch.

What follows a batch of n rows in a dataset is grouped anew to c * n rows, a chunk. An iterator over chunks of one size
can be saved and loaded into one over chunks of another, so that c follows the pace of the data in mid-pass. A chunk may
also be given in pieces.
"""

import dataclasses
import time
from collections.abc import Callable
from typing import Any

import tensorflow as tf

from looper.base.batches import count_examples
from looper.data.arrays import stacked
from looper.data.exact import stage_name, stages, why_not_saved
from looper.data.source import untuned
from looper.data.stacks import STACK_SECONDS, Part, stacked_in_graph, why_not_kept, why_not_stacked

KEEP_BATCHES = ("prefetch", "options", "cache", "take", "skip")
"""Behind a `batch` they leave all batches full but the last one."""

NOTHING_TO_TUNE = frozenset(
    {"tensor_slice", "tensor", "range", "shuffle", "repeat", "batch", "rebatch", "take", "skip", "cache", "zip"}
    | {"concatenate", "options"}
)
"""Stages that tf.data runs one way only. With others it is left to tune them."""

WORTH_A_CHANGE = 500
"""Batches that must be left for a change of the chunks' size in mid-pass, which takes about 20 ms, to be worth it."""

UNMEASURED = 2
"""The chunk of an iterator that is the first to be timed: the one before may have to fill a buffer."""


@dataclasses.dataclass(frozen=True)
class Chunking:
    """How a dataset is read in chunks.

    Attributes:
        dataset: what is grouped: examples, or batches to be grouped anew.
        of_examples: whether it is examples.
        rows: of a full batch.
        drop: whether the dataset leaves out a last batch that is not full.
        tuned: whether tf.data tunes it.
        batch_bytes: the size of a full batch.
    """

    dataset: tf.data.Dataset
    of_examples: bool
    rows: int
    drop: bool
    tuned: bool
    batch_bytes: int

    def chunks(self, batches: int) -> tf.data.Dataset:
        """The dataset in chunks of so many batches, of rows one after another."""
        # in chunks of a batch they are the dataset's own, and have its shapes
        group = self.dataset.batch if self.of_examples else self.dataset.rebatch
        grouped = group(batches * self.rows, drop_remainder=self.drop and batches == 1)
        options = tf.data.Options()
        options.experimental_optimization.inject_prefetch = False  # one stack is read ahead, no more
        return (grouped if self.tuned else untuned(grouped)).with_options(options)


def chunking(dataset: tf.data.Dataset) -> Chunking | None:
    """How to read a dataset in chunks, or None: its batches are large, differ, or their sizes are not known.

    The classes' names, `_input_dataset`, `_batch_size` and `_drop_remainder` are private in TensorFlow 2.21; no public
    name tells of what a dataset is made. tests/test_private_names.py fails if one of them changes.

    Example:
        >>> how = chunking(tf.data.Dataset.range(10).batch(4).prefetch(1))
        >>> how.rows, [chunk.numpy().tolist() for chunk in how.chunks(2)]
        (4, [[0, 1, 2, 3, 4, 5, 6, 7], [8, 9]])
        >>> chunking(tf.data.Dataset.range(10).batch(4).repeat())
    """
    spec, options = dataset.element_spec, dataset.options()
    if why_not_kept(spec) or why_not_stacked(spec) or not all(leaf.shape.rank for leaf in tf.nest.flatten(spec)):
        return None
    while stage_name(dataset) in ("prefetch", "options"):  # the stack that is read ahead is enough
        dataset = dataset._input_dataset
    below = dataset
    while stage_name(below) in KEEP_BATCHES:
        below = below._input_dataset
    if type(below).__name__ == "_BatchDataset":  # not the parallel one
        rows, drop, of_examples = int(below._batch_size), bool(below._drop_remainder), below is dataset
    else:
        sizes = {leaf.shape[0] for leaf in tf.nest.flatten(spec)}
        rows, drop, of_examples = sizes.pop() or 0, True, False
        if sizes or not rows:
            return None
    each = [leaf.dtype.size * leaf.shape[1:].num_elements() for leaf in tf.nest.flatten(spec)]
    if not stacked_in_graph(rows * sum(each)) or why_not_saved(dataset):
        return None
    return Chunking(
        (dataset._input_dataset if of_examples else dataset).with_options(options),
        of_examples,
        rows,
        drop,
        tuned=any(
            stage_name(stage) not in NOTHING_TO_TUNE or "Parallel" in type(stage).__name__
            for stage, _ in stages(dataset)
        ),
        batch_bytes=rows * sum(each),
    )


class Chunks:
    """An iterator over chunks.

    Attributes:
        iterator: that of TensorFlow; another one after `resize`.
        size: batches in a full chunk.

    Args:
        chunking: how they are made.
        iterator: over `chunking.chunks(size)`.
        size: see above.
        move: from this object and another size to an iterator over chunks of that size at the same place; None if
            there can be none.
    """

    def __init__(
        self, chunking: Chunking, iterator: Any, size: int, move: Callable[["Chunks", int], Any] | None
    ) -> None:
        self._chunking, self._move = chunking, move
        self.iterator, self.size = iterator, size
        self._read = 0  # chunks
        self._pace: float | None = None  # seconds per batch
        self._rest: tuple[list[tf.Tensor], int] | None = None  # of a chunk that was read: rows, and how many batches

    @property
    def rows(self) -> int:
        """Of a full batch."""
        return self._chunking.rows

    def resize(self, size: int) -> None:
        """Goes on in chunks of another size, if it can."""
        if size != self.size and self._move is not None:
            self.iterator, self.size = self._move(self, size), size

    def fit(self, most: int, left: int | None) -> None:
        """Chooses the size of the chunks to come by the pace so far.

        Args:
            most: batches that they may have.
            left: batches that are left in the pass, or None if that is not known.
        """
        wanted = self.wanted(most)
        worth = wanted >= 2 * self.size and (left is None or left >= WORTH_A_CHANGE)
        if worth or 4 * wanted <= self.size:
            self.resize(wanted)

    def wanted(self, most: int) -> int:
        """The size that fits the pace so far; the present one while that is not known."""
        fitting = self.size if self._pace is None else max(1, int(STACK_SECONDS / 2 / max(self._pace, 1e-9)))
        return min(fitting, most)

    @property
    def seconds(self) -> float:
        """How long the next batches will be waited for, as far as is known."""
        return (self._pace or 0.0) * self.size if self._rest is None else 0.0

    def next(self, most: int) -> tuple[list[tf.Tensor], int] | None:
        """The next batches, `most` at most: the rows of each of their tensors, and how many they are; None at the end.

        Raises:
            tf.errors.OpError: if the data could not be read.
        """
        leaves, batches = self._rest or self._next_chunk()
        if not batches:
            return None
        self._rest = ([leaf[most * self.rows :] for leaf in leaves], batches - most) if batches > most else None
        given = min(most, batches)
        whole = int(leaves[0].shape[0]) <= given * self.rows
        return (leaves if whole else [leaf[: given * self.rows] for leaf in leaves]), given

    def _next_chunk(self) -> tuple[list[tf.Tensor], int]:
        began = time.monotonic()
        chunk = next(self.iterator, None)
        if chunk is None:
            return [], 0
        leaves = tf.nest.flatten(chunk)
        rows = int(leaves[0].shape[0])
        batches = rows // self.rows if self._chunking.drop else -(-rows // self.rows)
        self._read += 1
        if self._read >= UNMEASURED and batches:
            self._pace = (time.monotonic() - began) / batches
        return leaves, batches

    def ahead(self, element_spec: Any) -> list[Any]:
        """The batches that were read and not given, in the structure of this spec."""
        if self._rest is None:
            return []
        leaves, batches = self._rest
        part = _part([leaves], batches, batches, self.rows, element_spec)
        return [part.batch(i) for i in range(batches)]

    def drop_ahead(self) -> None:
        """Forgets those batches: somebody else has them now."""
        self._rest = None

    def skip(self, batches: int) -> None:
        """Goes past so many batches, or to the end; nothing was read yet."""
        while batches and (found := self.next(batches)) is not None:
            batches -= found[1]


def of_chunks(chunks: Chunks, size: int, left: int | None, element_spec: Any) -> Callable[[], tuple[Part, bool]]:
    """Reads stacks of up to `size` batches.

    Args:
        chunks: what they are read from.
        size: batches in a stack.
        left: batches that are left in the pass; None if that is not known.
        element_spec: of a batch.
    """

    def read() -> tuple[Part, bool]:
        nonlocal left
        found: list[list[tf.Tensor]] = []
        filled, more, deadline = 0, True, time.monotonic() + STACK_SECONDS
        while filled < size:
            chunks.fit(size, left)
            if found and time.monotonic() + chunks.seconds > deadline:
                break
            chunk = chunks.next(size - filled)
            if chunk is None:
                more = False
                break
            found.append(chunk[0])
            filled += chunk[1]
            left = None if left is None else left - chunk[1]
        with tf.device("CPU:0"):
            return (_part(found, filled, size, chunks.rows, element_spec) if found else Part(None, [], 0, 0)), more

    return read


def _part(found: list[list[tf.Tensor]], filled: int, size: int, rows: int, element_spec: Any) -> Part:
    """A stack of `size` batches of so many rows, of which chunks fill some."""
    last = sum(int(count_examples(chunk[0])) for chunk in found) - (filled - 1) * rows

    whole = [chunks[0] if len(chunks) == 1 else tf.concat(chunks, 0) for chunks in zip(*found, strict=True)]
    leaves = [stacked(rows_of_all, size, rows) for rows_of_all in whole]
    sizes = [rows] * (filled - 1) + [last] + [0] * (size - filled)
    return Part(tf.nest.pack_sequence_as(element_spec, leaves), sizes, 0, filled)
