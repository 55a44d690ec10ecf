"""A `tf.data` dataset read many batches at a time: TensorFlow groups them, and no function is called per batch.

An iterator over chunks of one size can be saved and loaded into one over chunks of another, so that their size follows
the pace of the data in mid-pass. A chunk may also be given in pieces.
"""

import contextlib
import dataclasses
import time
from collections.abc import Callable, Sequence
from typing import Any

import tensorflow as tf

from looper.data.arrays import stacked
from looper.data.exact import draws_orders, stage_name, stages, why_not_saved, why_other_orders
from looper.data.source import untuned
from looper.data.stacks import Part, stacked_in_graph, why_not_kept, why_not_stacked

KEEP_BATCHES = ("prefetch", "options", "cache", "take", "skip")
"""Behind a `batch` they leave all batches full but the last one."""

NOTHING_TO_TUNE = frozenset(
    {"tensor_slice", "tensor", "range", "shuffle", "repeat", "batch", "rebatch", "take", "skip", "cache", "zip"}
    | {"concatenate", "options"}
)
"""Stages that tf.data runs one way only. With others it is left to tune them."""

WAIT_SECONDS = 0.1
"""How long a stack is waited for: one of so many seconds of data costs a call as little as a full one."""

WORTH_A_CHANGE = 500
"""Batches that must be left for a change of the chunks' size in mid-pass, which takes about 20 ms, to be worth it."""

MOVABLE = NOTHING_TO_TUNE - {"cache"} | {"map", "filter", "prefetch", "shard"}
"""Stages whose iterators TensorFlow 2.21 loads into others of the same process as they were: of all that were tried,
those with a cache may find nothing in it, and those that sample from several datasets do not end."""

UNKNOWN_PACE = 8
"""Batches in a chunk where the pace of the data is not known and the size cannot be changed in mid-pass."""

LEAST_MEASURED, MOST_GROWTH = 4, 16
"""The pace is that of so many batches at least, or of two that took long, without those of the first chunk, which may
have to fill a buffer; and chunks grow so many times at once: the first batches may have been made ahead."""


@dataclasses.dataclass(frozen=True)
class Chunking:
    """How a dataset is read in chunks.

    Attributes:
        dataset: of batches, without what reads ahead.
        rows: of a full batch.
        fixed: whether all batches are full. Otherwise the last one need not be: those are grouped by their rows, as
            TensorFlow loses a stack in which one batch is smaller.
        tuned: whether tf.data tunes it. If there is nothing to tune, nothing in it takes time.
        movable: whether the chunks' size can be changed in mid-pass without changing what comes.
        batch_bytes: the size of a full batch.
    """

    dataset: tf.data.Dataset
    rows: int
    fixed: bool
    tuned: bool
    movable: bool
    batch_bytes: int

    def first_size(self, most: int) -> int:
        """The batches of a chunk while the pace is not known, `most` at most."""
        return most if not self.tuned else 1 if self.movable else min(UNKNOWN_PACE, most)

    def chunks(self, batches: int) -> tf.data.Dataset:
        """The dataset in chunks of so many batches: stacked if they are `fixed`, else of rows one after another."""
        grouped = self.dataset.batch(batches) if self.fixed else self.dataset.rebatch(batches * self.rows)
        options = tf.data.Options()
        options.experimental_optimization.inject_prefetch = False  # one stack is read ahead, no more
        return (grouped if self.tuned else untuned(grouped)).with_options(options)


def chunking(dataset: tf.data.Dataset) -> Chunking | None:
    """How to read a dataset in chunks, or None: its batches are large, differ, or their sizes are not known.

    The classes' names, `_input_dataset` and `_batch_size` are private in TensorFlow 2.21; no public name tells of what
    a dataset is made. tests/test_private_names.py fails if one of them changes.

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
    sizes = {leaf.shape[0] for leaf in tf.nest.flatten(spec)}
    fixed = len(sizes) == 1 and None not in sizes
    rows = sizes.pop() if fixed else _rows_of_batches(dataset)
    if rows is None:
        return None
    batch_bytes = rows * sum(leaf.dtype.size * leaf.shape[1:].num_elements() for leaf in tf.nest.flatten(spec))
    if not stacked_in_graph(batch_bytes) or why_not_saved(dataset):
        return None
    if options.experimental_symbolic_checkpoint and not fixed:  # which `rebatch` cannot (TensorFlow 2.21)
        return None
    names = {stage_name(stage) for stage, _ in stages(dataset)}
    tuned = not names <= NOTHING_TO_TUNE or any("Parallel" in type(stage).__name__ for stage, _ in stages(dataset))
    later_passes = draws_orders(dataset) and dataset.cardinality() != tf.data.INFINITE_CARDINALITY
    movable = tuned and names <= MOVABLE and why_other_orders(dataset) is None and not later_passes
    return Chunking(dataset.with_options(options), rows, fixed, tuned, movable, batch_bytes)


def _rows_of_batches(dataset: Any) -> int | None:
    """The rows of all batches but the last one, if that is known."""
    while stage_name(dataset) in KEEP_BATCHES:
        dataset = dataset._input_dataset
    return int(dataset._batch_size) if type(dataset).__name__ == "_BatchDataset" else None  # not the parallel one


class Chunks:
    """An iterator over chunks.

    Attributes:
        iterator: that of TensorFlow; another one where `fit` has changed the size.
        size: batches in a full chunk.
        taken: batches of the pass that were read from it.
        failed: whether a batch could not be read: the iterator's place is no good any more.

    Args:
        chunking: how they are made.
        iterator: over `chunking.chunks(size)`.
        size: see above.
        move: from this object and another size to an iterator over chunks of that size at the same place.
        again: from how many batches were taken to an iterator over single batches behind them, or to None.
    """

    def __init__(
        self,
        chunking: Chunking,
        iterator: Any,
        size: int,
        move: Callable[["Chunks", int], Any],
        again: Callable[[int], Any],
    ) -> None:
        self._chunking, self._move, self._again = chunking, move, again
        self.iterator, self.size = iterator, size
        self.taken = 0
        self._read = 0  # chunks
        self.failed = False
        self._stays = False  # of this size
        self._error: tf.errors.OpError | None = None  # of the batch that could not be read, once it was met
        self._measured = (0.0, 0)  # seconds, and batches, since the size is what it is
        self._pace: float | None = None  # seconds per batch
        self._rest: Part | None = None  # of a chunk that was read

    def fit(self, most: int, left: int | None) -> None:
        """Chooses the size of the chunks to come by the pace so far.

        Args:
            most: batches that they may have.
            left: batches that are left in the pass, or None if that is not known.
        """
        if not self._chunking.movable or self._stays or self.failed or self._measured[1] < LEAST_MEASURED:
            return
        wanted = min(self.wanted(most), MOST_GROWTH * self.size)
        worth = wanted >= 2 * self.size and (left is None or left >= WORTH_A_CHANGE)
        if worth or 4 * wanted <= self.size:
            try:
                moved = self._move(self, wanted)
            except (tf.errors.OpError, ValueError, NotImplementedError, OSError):  # it cannot be saved, or nowhere
                self._stays = True
                return
            self.iterator, self.size, self._measured = moved, wanted, (0.0, 0)

    def wanted(self, most: int) -> int:
        """The size that fits the pace so far; the present one while that is not known."""
        if not self._chunking.tuned:
            return most
        fitting = self.size if self._pace is None else max(1, int(WAIT_SECONDS / 2 / max(self._pace, 1e-9)))
        return min(fitting, most)

    @property
    def steady_pace(self) -> float | None:
        """Seconds per batch; None if that is not known, or may be another one in the next pass, as with a cache."""
        return self._pace if self._chunking.movable else None

    def find_pace(self) -> float:
        """Reads a chunk more, for `next` to give, if data looks slow and only that tells. Returns how long it took."""
        began = time.monotonic()
        if self._pace is None and self._rest is None and self._measured[0] > WAIT_SECONDS and self._error is None:
            with contextlib.suppress(tf.errors.OpError):
                self._rest = self._read_chunk()
        return time.monotonic() - began

    @property
    def seconds(self) -> float:
        """How long the next batches will be waited for, as far as is known."""
        return (self._pace or 0.0) * self.size if self._rest is None else 0.0

    def next(self, most: int) -> Part | None:
        """The next batches, `most` at most; None at the end.

        Raises:
            tf.errors.OpError: if the data could not be read.
        """
        if self._rest is None and self._error is not None:
            raise self._error
        part = self._rest or self._read_chunk()
        if part is None:
            return None
        count = min(most, part.count)
        left = dataclasses.replace(part, start=part.start + count, count=part.count - count)
        self._rest = left if left.count else None
        return dataclasses.replace(part, count=count)

    def _read_chunk(self) -> Part | None:
        try:
            return self._next_chunk()
        except tf.errors.OpError as error:
            self._error, self.failed = error, True
            raise

    def _next_chunk(self) -> Part | None:
        began = time.monotonic()
        try:
            chunk = next(self.iterator, None)
        except tf.errors.OpError:
            found = None if self.size == 1 else self._again(self.taken)
            self.failed = True
            if found is None:
                raise
            self.iterator, self.size = found, 1  # the batches before it come one by one
            chunk = next(self.iterator, None)
        if chunk is None:
            return None
        first, rows = int(tf.nest.flatten(chunk)[0].shape[0]), self._chunking.rows
        batches = first if self._chunking.fixed else -(-first // rows)
        self.taken += batches
        if self._read:
            seconds, measured = self._measured
            self._measured = seconds + time.monotonic() - began, measured + batches
            if self._measured[1] >= LEAST_MEASURED or (self._measured[1] > 1 and self._measured[0] > WAIT_SECONDS):
                self._pace = self._measured[0] / self._measured[1]
        self._read += 1
        if self._chunking.fixed:
            return Part(chunk, [rows] * batches, 0, batches)
        with tf.device("CPU:0"):
            stack = tf.nest.map_structure(lambda leaf: stacked(leaf, batches, rows), chunk)
        return Part(stack, [rows] * (batches - 1) + [first - (batches - 1) * rows], 0, batches)

    def enter(self, batch: int) -> None:
        """Takes note that the iterator was put behind so many batches of the pass."""
        self.taken = batch

    def ahead(self) -> list[Any]:
        """The batches that were read and not given."""
        part = self._rest
        return [] if part is None else [part.batch(i) for i in range(part.start, part.start + part.count)]

    def take_ahead(self) -> list[Any]:
        """The same; they are somebody else's from now on."""
        ahead, self._rest = self.ahead(), None
        return ahead

    def skip(self, batches: int) -> None:
        """Goes past so many batches, or to the end."""
        while batches and (part := self.next(batches)) is not None:
            batches -= part.count


def of_chunks(chunks: Chunks, size: int, left: int | None) -> Callable[[], tuple[Part, bool]]:
    """Reads stacks of up to `size` batches.

    Args:
        chunks: what they are read from.
        size: batches in a stack.
        left: batches that are left in the pass; None if that is not known.
    """

    def read() -> tuple[Part, bool]:
        nonlocal left
        found: list[Part] = []
        filled, deadline = 0, time.monotonic() + WAIT_SECONDS
        while filled < size:
            chunks.fit(size, left)
            if found and time.monotonic() + chunks.seconds > deadline:
                break
            try:
                part = chunks.next(size - filled)
            except tf.errors.OpError:
                if not found:
                    raise
                break  # those before it come first, and then the same error
            if part is None:
                return _joined(found, size), False
            found.append(part)
            filled += part.count
            left = None if left is None else left - part.count
        return _joined(found, size), True

    return read


def _joined(parts: Sequence[Part], size: int) -> Part:
    """Parts as one, in a stack of `size` batches."""
    if not parts:
        return Part(None, [], 0, 0)
    filled = sum(part.count for part in parts)

    def join(*leaves: tf.Tensor) -> tf.Tensor:
        cut = [leaf[p.start : p.start + p.count] for leaf, p in zip(leaves, parts, strict=True)]
        whole = cut[0] if len(cut) == 1 else tf.concat(cut, 0)
        return tf.pad(whole, [[0, size - filled]] + [[0, 0]] * (whole.shape.rank - 1))

    sizes = [rows for part in parts for rows in part.sizes[part.start : part.start + part.count]]
    if len(parts) == 1 and len(parts[0].sizes) == size == filled:
        return parts[0]
    with tf.device("CPU:0"):
        stack = tf.nest.map_structure(join, *(part.stack for part in parts))
    return Part(stack, sizes + [0] * (size - filled), 0, filled)
