"""`tf.data` datasets: a new iterator for each pass, whose position is saved with `tf.train.Checkpoint`."""

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import tensorflow as tf

from looper.base.errors import InputError, first_line
from looper.base.lines import warn
from looper.data.exact import why_not_saved, why_other_in_each_process, why_other_orders
from looper.data.source import Source


class DatasetSource(Source):
    """A `tf.data.Dataset` of batches.

    A dataset with `reshuffle_each_iteration` draws a pass's order when its iterator is made, from a counter that only
    this process has. So passes are opened in order, and a run that continues at pass n makes n iterators first: the
    continued run has the same orders if there is one shuffle, and no repeat after it.
    (One iterator over `dataset.repeat()` would be simpler, but TensorFlow 2.21 restores it to a different order if
    the shuffle buffer has run empty when it is saved, as at the end of a pass. tests/data/test_data.py shows it.)

    Attributes:
        element_spec: of a batch.
        length: batches in a pass, None if unknown or endless.
        endless: whether it never ends.

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
        self._opened = 0
        self._made_early: Any = None  # the iterator of a pass that has not begun

    def open(self, number: int, batch: int = 0, load: Callable[[Any], None] | None = None) -> Any:
        """An iterator over pass `number`, which must not lie before one that was opened.

        Args:
            number: the pass, from 0.
            batch: how many of its batches to leave out.
            load: puts the iterator at that batch; None reads past the batches.
        """
        if number < self._opened - (self._made_early is not None) - 1:
            warn(
                "the data was put back to an earlier pass in the same process: a dataset that shuffles itself draws "
                "other orders from here on than in a new process."
            )
        while self._opened < number:
            self._make()
        iterator = self._make()
        if batch and load is not None:
            self._load(iterator, load)
        else:
            for _ in range(batch):
                next(iterator, None)
        return iterator

    def _make(self) -> Any:
        self._opened += 1
        iterator, self._made_early = self._made_early, None
        return iter(self._dataset) if iterator is None else iterator

    def _load(self, iterator: Any, load: Callable[[Any], None]) -> None:
        """Loads an iterator, and undoes what that does to the counter that later passes draw their order from.

        Loading a fresh iterator sets the counter to where it was when that iterator was made; loading one whose
        shuffle buffer has run empty counts one up instead. So the next pass's iterator is made first, and loaded last.
        """
        following = self._make()
        with tempfile.TemporaryDirectory() as folder:
            fresh = tf.train.Checkpoint(iterator=following).write(str(Path(folder) / "following"))
            load(iterator)
            tf.train.Checkpoint(iterator=following).read(fresh)
        self._made_early = following
        self._opened -= 1

    def inexact(self) -> str | None:
        reason = why_other_orders(self._dataset)
        return reason and f"a run that is continued draws other orders from this dataset than this one: {reason}."

    def why_unalike(self) -> str | None:
        return why_other_in_each_process(self._dataset)

    def why_not_saved(self) -> str | None:
        """Why TensorFlow cannot save the place in it, as far as one can see."""
        return why_not_saved(self._dataset)

    def describe(self) -> dict[str, Any]:
        spec = tf.nest.map_structure(lambda s: f"{s.dtype.name}{s.shape}", self.element_spec)
        return {"batches": "endless" if self.endless else self.length, "elements": str(spec)}


def saving_error(iterator: Any) -> str | None:
    """Tries to save an iterator; returns why TensorFlow cannot, or None if it can."""
    with tempfile.TemporaryDirectory() as folder:
        try:
            tf.train.Checkpoint(iterator=iterator).write(str(Path(folder) / "iterator"))
        except (tf.errors.OpError, ValueError, NotImplementedError) as error:
            return first_line(error)
    return None
