"""`tf.data` datasets: a new iterator for each pass, whose position is saved with `tf.train.Checkpoint`."""

import contextlib
import shutil
import tempfile
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import tensorflow as tf

from looper.base.batches import Parts
from looper.base.errors import InputError, first_line
from looper.base.lines import warn
from looper.data import advice
from looper.data.chunks import Chunks, chunking
from looper.data.exact import draws_orders, why_not_saved, why_other_in_each_process, why_other_orders
from looper.data.source import Source


class DatasetSource(Source):
    """A `tf.data.Dataset` of batches.

    A dataset with `reshuffle_each_iteration` draws a pass's order when its iterator is made, from a counter that only
    this process has. So passes are opened in order, and a run that continues at pass n makes n iterators first: the
    continued run has the same orders if there is one shuffle, and no repeat after it.
    (One iterator over `dataset.repeat()` would be simpler, but TensorFlow 2.21 restores it to a different order if
    the shuffle buffer has run empty when it is saved, as at the end of a pass. tests/data/test_data.py shows it.)

    If it is known of what size its batches are, and that they are small, it can be read in `Chunks`, which is several
    times as fast. The number of batches in a chunk follows the pace, and is kept from pass to pass.

    Attributes:
        element_spec: of a batch.
        length: batches in a pass, None if unknown or endless.
        endless: whether it never ends.
        batch_bytes: the size of a full batch, if it can be read in `Chunks`; else None.

    Args:
        dataset: of batches.
        repeats: see `Source`.

    Raises:
        InputError: if it is known to be empty, or yields scalars.
    """

    def __init__(self, dataset: tf.data.Dataset, repeats: bool = False) -> None:
        cardinality = int(dataset.cardinality())
        if cardinality == 0:
            raise InputError("the data is empty: the dataset has 0 batches.")
        self._dataset, self.repeats = dataset.prefetch(2), repeats
        self.element_spec = dataset.element_spec
        self.length = cardinality if cardinality > 0 else None
        self.endless = cardinality == tf.data.INFINITE_CARDINALITY
        self._chunking = chunking(dataset)
        self.batch_bytes = None if self._chunking is None else self._chunking.batch_bytes
        self._last: Chunks | None = None  # that were made
        self._mark: Any = None  # a place in the present pass: its path, and how many batches lie before it
        self._opened = 0
        self._made_early: Any = None  # the iterator of a pass that has not begun

    def set_parts(self, parts: Parts) -> None:
        super().set_parts(parts)
        if parts:  # of batches that are not rows of one length
            self.read_singly()

    def read_singly(self) -> None:
        self._chunking = self.batch_bytes = None

    def open(
        self, number: int, batch: int = 0, load: Callable[[Any], None] | None = None, chunked: int | None = None
    ) -> Any:
        """An iterator over pass `number`, which must not lie before one that was opened.

        Args:
            number: the pass, from 0.
            batch: how many of its batches to leave out.
            load: puts the iterator at that batch; None reads past the batches.
            chunked: the most batches in one of the `Chunks` that are wanted; None for none. They are returned, too, if
                the pass was made with them already, and are not if it was made without.
        """
        if number < self._opened - (self._made_early is not None) - 1:
            warn(
                "the data was put back to an earlier pass in the same process: a dataset that shuffles itself draws "
                "other orders from here on than in a new process."
            )
        while self._opened < number:
            self._make(chunked)
        iterator = self._make(chunked)
        if isinstance(iterator, Chunks):
            self._last = iterator
        if batch and load is not None:
            with self._counter_kept(chunked):
                load(in_tensorflow(iterator))
            if isinstance(iterator, Chunks):
                iterator.enter(batch)
        elif isinstance(iterator, Chunks):
            iterator.skip(batch)
        else:
            for _ in range(batch):
                next(iterator, None)
        return iterator

    def _make(self, chunked: int | None) -> Any:
        self._opened += 1
        iterator, self._made_early = self._made_early, None
        if iterator is None and chunked is not None:
            size = self._chunking.first_size(chunked) if self._last is None else self._last.wanted(chunked)
            self._mark = None
            return Chunks(self._chunking, iter(self._chunking.chunks(size)), size, self._moved, self._single)
        return iter(self._dataset) if iterator is None else iterator

    @contextlib.contextmanager
    def _counter_kept(self, chunked: int | None) -> Iterator[None]:
        """Undoes what loading an iterator does to the counter that later passes draw their order from.

        Loading a fresh iterator sets the counter to where it was when that iterator was made; loading one whose
        shuffle buffer has run empty counts one up instead. So the next pass's iterator is made first, and loaded last.
        """
        following = self._make(chunked)
        with tempfile.TemporaryDirectory() as folder:
            fresh = tf.train.Checkpoint(iterator=in_tensorflow(following)).write(str(Path(folder) / "following"))
            yield
            tf.train.Checkpoint(iterator=in_tensorflow(following)).read(fresh)
        self._made_early = following
        self._opened -= 1

    def _moved(self, chunks: Chunks, size: int) -> Any:
        """An iterator over chunks of another size at the same place."""
        folder = tempfile.mkdtemp()
        weakref.finalize(chunks, shutil.rmtree, folder, ignore_errors=True)
        place = tf.train.Checkpoint(iterator=chunks.iterator).write(str(Path(folder) / "place"))
        iterator = iter(self._chunking.chunks(size))
        tf.train.Checkpoint(iterator=iterator).read(place)
        self._mark = place, chunks.taken
        return iterator

    def _single(self, taken: int) -> Any:
        """An iterator over the batches of the present pass behind so many of them, to find the one that fails.

        It goes to where chunks got another size last, and on from there. None if it cannot: the pass has an order of
        its own, and none of its places is known.
        """
        if self._mark is None and draws_orders(self._dataset):
            return None
        iterator, begin = iter(self._chunking.chunks(1)), 0
        if self._mark is not None:
            place, begin = self._mark
            tf.train.Checkpoint(iterator=iterator).read(place)
        for _ in range(taken - begin):
            next(iterator)
        return iterator

    def inexact(self) -> str | None:
        reason = why_other_orders(self._dataset)
        return reason and f"a run that is continued draws other orders from this dataset than this one: {reason}."

    def why_unalike(self) -> str | None:
        return why_other_in_each_process(self._dataset)

    def why_not_saved(self) -> str | None:
        """Why TensorFlow cannot save the place in it, as far as one can see."""
        return why_not_saved(self._dataset)

    def remedies(self) -> list[str]:
        return advice.remedies(self._dataset)

    def describe(self) -> dict[str, Any]:
        spec = tf.nest.map_structure(lambda s: f"{s.dtype.name}{s.shape}", self.element_spec)
        return {"batches": "endless" if self.endless else self.length, "elements": str(spec)}


def in_tensorflow(iterator: Any) -> Any:
    """TensorFlow's iterator of what `DatasetSource.open` returns."""
    return iterator.iterator if isinstance(iterator, Chunks) else iterator


def saving_error(iterator: Any) -> str | None:
    """Tries to save an iterator; returns why TensorFlow cannot, or None if it can."""
    with tempfile.TemporaryDirectory() as folder:
        try:
            tf.train.Checkpoint(iterator=iterator).write(str(Path(folder) / "iterator"))
        except (tf.errors.OpError, ValueError, NotImplementedError) as error:
            return first_line(error)
    return None
