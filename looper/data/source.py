"""A source, which all data is turned into, and on which passes are opened."""

from collections.abc import Callable
from typing import Any

import tensorflow as tf

from looper.base.batches import Parts
from looper.data.stacks import Part


def untuned(dataset: tf.data.Dataset) -> tf.data.Dataset:
    """The dataset without the thread that tunes it. For looper's own, which leave nothing to tune.

    That thread sleeps for up to a minute, and deleting an iterator may wait for that: TensorFlow 2.21 wakes the thread
    before it is told to end (`CancellationManager::StartCancel`), so that it sometimes goes to sleep again.

    Example:
        >>> untuned(tf.data.Dataset.range(3)).options().autotune.enabled
        False
    """
    options = tf.data.Options()
    options.autotune.enabled = False
    return dataset.with_options(options)


class Source:
    """Data that passes can be opened on. Of one source only the iterator that was opened last may be read.

    Attributes:
        element_spec: of a batch.
        length: batches in a pass, None if unknown or endless.
        endless: whether a pass never ends.
        smallest_batch, largest_batch: examples in the smallest and in the largest batch, None if unknown. Of batches
            with parts, those of the shortest part.
        repeats: whether another pass may follow unasked, within an epoch or, without a word, for `steps`. An array can
            only be used again; a dataset that ends may have been meant to be longer, and has its own `repeat()`.
        goes_on: whether an iterator goes on to the next pass by itself.
        once: whether there is one pass only, as of a generator.
        parts: the names of the parts of a batch that have lengths of their own: see `looper.base.batches`. A recipe's
            come before them.
        is_share: whether its batches are this worker's part of the global ones.
        on_demand: whether no batch is read before it is asked for.
        batch_bytes: the size of a full batch, if whole stacks can be read at once; else None.
        opens_anywhere: whether that is by `open_stacks`, and to read on from any batch costs nothing.
    """

    element_spec: Any
    length: int | None = None
    endless: bool = False
    smallest_batch: int | None = None
    largest_batch: int | None = None
    repeats: bool = False
    goes_on: bool = False
    once: bool = False
    batch_bytes: int | None = None
    opens_anywhere: bool = False
    is_share: bool = False
    on_demand: bool = False
    parts: Parts = ()

    def set_parts(self, parts: Parts) -> None:
        """Takes note of the parts that a batch has."""
        self.parts = parts

    def read_singly(self) -> None:
        """Has batches read one by one where how many come at a time would depend on the clock.

        For several workers: what they sum at the end of each call needs as many calls on each.
        """

    def remedies(self) -> list[str]:
        """What would make it faster, the most helpful first; empty if it does not show that."""
        return []

    def set_share(self, is_share: bool) -> None:
        """Takes note of whether its batches are this worker's part of the global ones."""
        self.is_share = is_share

    def open(self, number: int, batch: int) -> Any:
        """An iterator from batch `batch` of pass `number` on, to the end of the pass or beyond."""
        raise NotImplementedError

    def open_stacks(self, number: int, batch: int, size: int) -> Callable[[], tuple[Part, bool]] | None:
        """A function that `Stacks` reads with from there on, if that is faster than stacking batches, or None.

        Only for a source that `goes_on` and `opens_anywhere`. No stack crosses the end of a pass.
        """
        return None

    def describe(self) -> dict[str, Any]:
        """Tells this data from other data, for a configuration."""
        raise NotImplementedError

    def look_again(self) -> None:
        """Asks how long the data is now, before a pass begins."""

    def end_pass(self, number: int) -> None:
        """Takes note that pass `number` is over."""

    def advance(self, number: int, batch: int) -> None:
        """Takes note that training is at batch `batch` of pass `number`."""

    def state(self, number: int, batch: int) -> Any:
        """The state that must be saved besides the position: JSON values and numeric arrays, None for nothing."""
        return None

    def restore(self, state: Any, number: int, batch: int) -> None:
        """Puts back what `state` returned for a position, before the position is opened."""

    def why_unalike(self) -> str | None:
        """Why other processes read other batches of the same data, with the remedy; None if nothing is found."""
        return None

    def inexact(self) -> str | None:
        """Why a run that is continued may read other batches, in one line with the remedy; None if it cannot."""
        return None
