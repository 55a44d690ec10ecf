"""The feed: a source and a position in it, moved on by the loop, saved and put back."""

import functools
import warnings
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import tensorflow as tf

from looper.data.arrays import ArraySource, is_arrays
from looper.data.dataset import DatasetSource, why_not_saved
from looper.errors import InputError
from looper.options import FitOptions


class Source(Protocol):
    """Data that passes can be opened on.

    Attributes:
        element_spec: of a batch.
        length: batches in a pass, None if unknown or endless.
        endless: whether a pass never ends.
        smallest_batch: examples in the smallest batch, None if unknown.
        repeats: whether another pass may follow unasked, within an epoch or for `steps`. An array can only be used
            again; a dataset that ends may have been meant to be longer, and has its own `repeat()`.
    """

    element_spec: Any
    length: int | None
    endless: bool
    smallest_batch: int | None
    repeats: bool

    def open(self, number: int, batch: int) -> Any:
        """An iterator from batch `batch` of pass `number` on, to the end of the pass or beyond."""

    def describe(self) -> dict[str, Any]: ...


def make_source(data: Any, *, batch_size: int | None, shuffle: bool, seed: int, name: str = "data") -> Source:
    """The source for what a user gives.

    Args:
        data: a `tf.data.Dataset` of batches, an array, or nested tuples and dicts of arrays.
        batch_size: examples per batch, for arrays only (default 32).
        shuffle: whether to shuffle arrays.
        seed: of the shuffling.
        name: what to call the data in errors.

    Raises:
        InputError: if it is neither, is empty, or batch_size is given for a dataset.
    """
    if isinstance(data, tf.data.Dataset):
        if batch_size is not None:
            raise InputError(f"batch_size={batch_size} is for arrays: a tf.data.Dataset has its batches already.")
        return DatasetSource(data)
    if not is_arrays(data):
        leaves = sorted({type(leaf).__name__ for leaf in tf.nest.flatten(data) if not hasattr(leaf, "shape")})
        kind = type(data).__name__ + (f" of {', '.join(leaves)}" if isinstance(data, dict | list | tuple) else "")
        raise InputError(
            f"the {name} is {kind}: expected a tf.data.Dataset of batches, or arrays as x, (x, y) or "
            "(x, y, sample_weight), where x may be a dict."
        )
    return ArraySource(data, batch_size=batch_size or 32, shuffle=shuffle, seed=seed)


class Feed:
    """A source and where in it the next batch comes from.

    Attributes:
        source: the source.
        number: the pass, from 0.
        batch: batches of this pass that were taken.
        key: tells whether another `fit` is given the same data.

    Args:
        source: the source.
        key: see above.
        holding: the user's data, kept alive so that the identities in `key` stay valid.

    Example:
        >>> import numpy as np
        >>> feed = Feed(make_source(np.arange(6), batch_size=4, shuffle=False, seed=0))
        >>> feed.left, next(feed.iterator).numpy().tolist()
        (2, [0, 1, 2, 3])
        >>> feed.advance(1); feed.left
        1
    """

    def __init__(self, source: Source, key: Any = None, holding: Any = None) -> None:
        self.source = source
        self.key = key
        self._holding = holding
        self.number = 0
        self.batch = 0
        self._iterator: Any = None

    @property
    def iterator(self) -> Any:
        """The live iterator of the current pass."""
        if self._iterator is None:
            self._iterator = self.source.open(self.number, self.batch)
        return self._iterator

    @property
    def left(self) -> int | None:
        """Batches left in this pass; None if unknown or endless."""
        return None if self.source.length is None else self.source.length - self.batch

    def advance(self, batches: int) -> None:
        """Takes note that the iterator was read."""
        self.batch += batches

    def next_pass(self) -> None:
        """Moves to the beginning of the next pass."""
        self.number, self.batch = self.number + 1, 0
        if isinstance(self.source, DatasetSource):  # an iterator over arrays goes on by itself
            self._iterator = None

    @property
    def saved_iterator(self) -> Any:
        """What must be saved besides the numbers: an iterator in mid-pass, or None."""
        in_dataset = isinstance(self.source, DatasetSource) and self.batch
        return self.iterator if in_dataset and self._why_not_saved is None else None

    @functools.cached_property
    def _why_not_saved(self) -> str | None:
        return why_not_saved(self.iterator) if isinstance(self.source, DatasetSource) else None

    def warn_if_not_saved(self) -> None:
        """Warns if TensorFlow cannot save the position within a pass."""
        if self._why_not_saved is not None:
            warnings.warn(
                f"TensorFlow cannot save the position in this dataset ({self._why_not_saved}). A run that is continued "
                "will read past the batches it has seen, and random operations in the dataset will draw other numbers.",
                stacklevel=2,
            )

    def state(self) -> dict[str, int]:
        return {"number": self.number, "batch": self.batch}

    def restore(self, state: Mapping[str, int], load: Callable[[Any], None] | None) -> None:
        """Puts the feed at a position; `load` puts a dataset's iterator there (None: read up to there)."""
        self.number, self.batch = int(state["number"]), int(state["batch"])
        if isinstance(self.source, DatasetSource):
            self._iterator = self.source.open(self.number, self.batch, load)
        else:
            self._iterator = None


def check_length(feed: Feed, options: FitOptions, step: int, replicas: int) -> None:
    """Raises `InputError` if it is known now that the data cannot serve so long, or not so many replicas."""
    source = feed.source
    if source.endless and options.epochs is not None and options.steps_per_epoch is None:
        raise InputError(
            "the data never ends, so an epoch has no end: give steps_per_epoch=, or steps= in place of epochs=."
        )
    if source.length is not None and not source.repeats:
        wanted, total = None, 0
        if options.steps is not None:
            wanted, total = f"steps={options.steps}", options.steps
        elif options.steps_per_epoch is not None:
            total = options.epochs * options.steps_per_epoch
            wanted = f"epochs={options.epochs} of steps_per_epoch={options.steps_per_epoch}"
        if wanted is not None and total - step > feed.left:
            raise InputError(data_ended(step + feed.left, wanted))
    least = source.smallest_batch
    if least is not None and least < replicas:
        raise InputError(
            f"a batch has {least} example(s), fewer than the {replicas} replicas: choose a batch_size that leaves a "
            "larger last batch, or leave examples out."
        )


def data_ended(step: int, wanted: str) -> str:
    """The message for data that is too short."""
    return (
        f"the data ends after step {step}, before {wanted} is reached: repeat it with dataset.repeat(), or train for "
        "epochs= (one pass over the data each)."
    )
