"""The feed: a source and a position in it, moved on by the loop, saved and put back."""

import atexit
import contextlib
import functools
import itertools
import weakref
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import tensorflow as tf

from looper.base.batches import count_examples, lengths
from looper.base.errors import InputError
from looper.base.lines import warn
from looper.base.options import FitOptions
from looper.data.chunks import Chunks, of_chunks
from looper.data.dataset import DatasetSource, in_tensorflow, saving_error
from looper.data.source import Source, untuned
from looper.data.stacks import STACK, Stacks, of_iterator, why_not_kept

_FEEDS: "weakref.WeakSet[Feed]" = weakref.WeakSet()


@atexit.register
def _close_all() -> None:
    """Frees all iterators before Python ends.

    One over a generator, freed later, waits for a thread that waits for Python (TensorFlow 2.21, Python 3.11).
    """
    for feed in list(_FEEDS):
        feed.close()


class Feed:
    """A source and where in it the next batch comes from.

    Attributes:
        source: the source.
        number: the pass, from 0.
        batch: batches of this pass that were taken.
        key: tells whether another `fit` is given the same data.
        stack: batches in a stack if `iterator` is to give `Stacks` of them, else None.
        device: where `Stacks` put what they read ahead, or None for the CPU.

    Args:
        source: the source.
        key: see above.
        holding: the user's data, kept alive so that the identities in `key` stay valid.

    Example:
        >>> import numpy as np
        >>> from looper.data import make_source
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
        self.stack: int | None = None
        self.device: str | None = None
        self._batch_bytes: int | None = None  # that were noted
        self._iterator: Any = None
        _FEEDS.add(self)
        self._ahead: list[Any] = []  # batches that were read from the iterator and not trained yet, without stacks
        self._replay: Any = None
        self._stacks: Stacks | None = None
        self._read_before = (0, 0.0)  # by `Stacks` that are gone

    def begin(self, number: int) -> None:
        """Begins with another pass than the first; nothing was read yet."""
        self.number = number

    def give(self, stack: int | None, device: str | None = None) -> None:
        """Has `iterator` give stacks of so many batches, on a device, or batches (None)."""
        self.stack, self.device = stack, device

    @property
    def batch_bytes(self) -> int | None:
        """The size of a batch; None if the source does not tell and nobody has looked at the first one."""
        return self._batch_bytes if self.source.batch_bytes is None else self.source.batch_bytes

    def note_bytes(self, batch_bytes: int | None) -> None:
        """Takes note of the size of a batch."""
        self._batch_bytes = batch_bytes

    @property
    def iterator(self) -> Any:
        """The live iterator of the current pass, or `Stacks` of its batches."""
        if self._stacks is not None and self._stacks.failed:
            self._drop_iterator()  # what it lost is read again
        if self.stack is not None:
            if self._stacks is None or self._stacks.size != self.stack:
                self._stacks = self._open_stacks(self.stack)
            return self._stacks
        if self._stacks is not None and self.source.opens_anywhere:
            self._drop_iterator()  # to read on from the batch costs nothing
        elif self._stacks is not None:
            self._ahead = self._take_ahead()
        if isinstance(self._live, Chunks) and not self._ahead:
            self._ahead = self._next_of_chunks()
            if not self._ahead:
                return iter(_nothing(self.source.element_spec))
        if self._ahead and self._replay is None:
            self._replay = iter(replayed(self._ahead, self.source.element_spec))
        return self._replay if self._ahead else self._live

    def _open_stacks(self, size: int) -> Stacks:
        read = self.source.open_stacks(self.number, self.batch, size)
        if read is not None:
            self._drop_iterator()
            return Stacks(read, size, device=self.device)
        if self._stacks is not None:
            self._stacks.settle()
        ahead = self._take_ahead()
        parts, live = self.source.parts, self._live
        if isinstance(live, Chunks):
            read = of_chunks(live, size, None if self.left is None else self.left - len(ahead))
        else:
            read = of_iterator(live, size, parts)
        return Stacks(read, size, ahead, self.device, parts)

    @property
    def _live(self) -> Any:
        if self._iterator is None:
            begin = self.batch + len(self._ahead)
            if isinstance(self.source, DatasetSource):
                chunked = None if self.source.batch_bytes is None else self.stack
                self._iterator = self.source.open(self.number, begin, chunked=chunked)
            else:
                self._iterator = self.source.open(self.number, begin)
        return self._iterator

    def _next_of_chunks(self) -> list[Any]:
        """The next batches of `Chunks`; none at the end."""
        part = self._live.next(1)
        return [] if part is None else [part.batch(part.start), *self._live.take_ahead()]

    def peek(self) -> Any:
        """The next batch, which stays the next one; None at the end of the pass."""
        stacks = self._stacks if self.stack is None else self.iterator
        if stacks is not None and not stacks.failed:
            part = stacks.peek()
            return None if part is None else part.batch(part.start)
        if not self._ahead:
            chunked = isinstance(self._live, Chunks)
            self._ahead = self._next_of_chunks() if chunked else list(itertools.islice(self._live, 1))
        return self._ahead[0] if self._ahead else None

    def again(self) -> None:
        """Makes `iterator` begin with the batches that were looked at, though it gave them: they were not trained."""
        self._replay = None
        if self._stacks is not None:
            self._stacks.take_back()
        elif not self._ahead:
            self._drop_iterator()

    def _take_ahead(self) -> list[Any]:
        """The batches that were read and not trained yet; they are not the feed's any more."""
        ahead = self._ahead if self._stacks is None else self._stacks.ahead()
        self._forget_ahead()
        if isinstance(self._iterator, Chunks):
            ahead += self._iterator.take_ahead()
        return ahead

    @property
    def _all_ahead(self) -> list[Any]:
        read = self._ahead if self._stacks is None else self._stacks.ahead()
        return read + (self._iterator.ahead() if isinstance(self._iterator, Chunks) else [])

    @property
    def read_so_far(self) -> tuple[int, float]:
        """Batches that `Stacks` have read, and the seconds that it took; what is read otherwise does not count."""
        now = (0, 0.0) if self._stacks is None else self._stacks.read_so_far
        return self._read_before[0] + now[0], self._read_before[1] + now[1]

    def steady_pace(self) -> float | None:
        """Seconds that a batch takes to be read from now on, if that is known.

        Waits for what is being read, and reads on where only that tells.
        """
        if self._stacks is not None:
            self._stacks.settle()
        if not isinstance(self._iterator, Chunks):
            return None
        batches, seconds = self._read_before
        self._read_before = batches, seconds + self._iterator.find_pace()
        return self._iterator.steady_pace

    def _forget_ahead(self) -> None:
        self._read_before = self.read_so_far
        self._ahead, self._replay, self._stacks = [], None, None

    def close(self) -> None:
        """Lets the iterator go, with what it read ahead; `iterator` opens another one where this one was."""
        self._drop_iterator()

    def rest(self) -> None:
        """Leaves no thread behind until `iterator` is asked for again; what was read ahead stays."""
        if self._stacks is not None:
            self._stacks.rest()

    def _drop_iterator(self) -> None:
        self.rest()
        self._forget_ahead()
        self._iterator = None

    @property
    def at_hand(self) -> int | None:
        """Batches that `iterator` gives before it must be asked for anew; None if it need not be."""
        if self.stack is not None:
            return None
        return len(self._all_ahead) or None

    @property
    def fails_next(self) -> bool:
        """Whether the next batch of `Stacks` could not be read."""
        return self._stacks is not None and self._stacks.fails_next

    @property
    def ended_early(self) -> bool:
        """Whether a dataset that is read in chunks has fewer batches than it promises; asked at its end."""
        return isinstance(self._iterator, Chunks) and bool(self.left)

    @property
    def unread(self) -> int | None:
        """Of how many batches to come one could not be read, if that is why `iterator` raised; else None."""
        if self._stacks is None or not self._stacks.failed:
            return None
        return (self._iterator if isinstance(self._iterator, Chunks) else self._stacks).size

    @property
    def left(self) -> int | None:
        """Batches left in this pass; None if unknown or endless."""
        return None if self.source.length is None else self.source.length - self.batch

    def advance(self, batches: int) -> None:
        """Takes note that the iterator was read."""
        self.batch += batches
        if self._ahead:
            del self._ahead[:batches]
            if not self._ahead:
                self._replay = None
        self.source.advance(self.number, self.batch)

    def look_again(self) -> None:
        """Asks how long the data is now, if a pass is about to begin: somebody may have changed it."""
        if not self.batch:
            self.source.look_again()

    def next_pass(self) -> None:
        """Moves to the beginning of the next pass."""
        if not (self.source.goes_on and self.left == 0):
            self._drop_iterator()
        self.source.end_pass(self.number)
        self.number, self.batch = self.number + 1, 0
        self.source.advance(self.number, 0)

    @contextlib.contextmanager
    def one_pass(self) -> Iterator[None]:
        """Surrounds the reading of one pass, or of the beginning of one: the next is read from its beginning."""
        try:
            yield
        finally:
            self.next_pass()
            self.rest()

    @property
    def saved_iterator(self) -> Any:
        """The iterator in mid-pass that must be saved besides the numbers, or None."""
        in_dataset = isinstance(self.source, DatasetSource) and self.batch
        if self._stacks is not None and (self._stacks.lost or _has_failed(self._iterator)):
            return None  # the iterator is beyond batches that are not in `ahead`: they are read again
        return in_tensorflow(self._live) if in_dataset and self._saving_error is None else None

    @functools.cached_property
    def _saving_error(self) -> str | None:
        if self._stacks is not None:
            self._stacks.settle()
        return saving_error(in_tensorflow(self._live)) if isinstance(self.source, DatasetSource) else None

    def warn_if_not_saved(self) -> None:
        """Warns if a run that is continued may read other batches than one that was not stopped."""
        inexact = self.source.inexact()
        if self._saving_error is not None and isinstance(self.source, DatasetSource):
            reason = self.source.why_not_saved() or self._saving_error
            inexact = (
                f"TensorFlow cannot save the position in this dataset: {reason}. A run that is continued will read "
                "past the batches it has seen, and random operations in the dataset will draw other numbers."
            )
        if inexact is not None:
            warn(inexact)

    def state(self) -> dict[str, Any]:
        return {
            "number": self.number,
            "batch": self.batch,
            "source": self.source.state(self.number, self.batch),
            "ahead": self._saved_ahead(),
            "chunked": isinstance(self._iterator, Chunks),
        }

    def _saved_ahead(self) -> list[list[np.ndarray]]:
        """The leaves of the batches that the saved iterator is beyond."""
        if self.saved_iterator is None or why_not_kept(self.source.element_spec) is not None:
            return []
        return [[_as_bits(leaf) for leaf in tf.nest.flatten(batch)] for batch in self._all_ahead]

    def restore(self, state: Mapping[str, Any], load: Callable[[Any], None] | None = None) -> None:
        """Puts the feed at a position; `load` puts a dataset's iterator there (None: read up to there)."""
        self.number, self.batch = int(state["number"]), int(state["batch"])
        self._drop_iterator()
        self.source.restore(state.get("source"), self.number, self.batch)
        if isinstance(self.source, DatasetSource):
            chunked = (self.stack or STACK) if state.get("chunked") else None
            if chunked and self.source.batch_bytes is None:  # now read singly: a place among chunks says nothing
                chunked = load = None
            self._iterator = self.source.open(self.number, self.batch, load, chunked)
            if load is not None:  # otherwise it was read up to the batch, and no further
                self._ahead = [_of_bits(leaves, self.source.element_spec) for leaves in state.get("ahead", [])]
            if isinstance(self._iterator, Chunks):  # which was saved behind those
                self._iterator.enter(self.batch + len(self._ahead))


def _as_bits(leaf: tf.Tensor) -> np.ndarray:
    """A tensor as NumPy can save it: of bfloat16 and the like the bits."""
    if np.dtype(leaf.dtype.as_numpy_dtype).kind == "V":
        leaf = tf.bitcast(leaf, tf.uint16 if leaf.dtype.size == 2 else tf.uint8)
    return leaf.numpy()


def _of_bits(leaves: list[np.ndarray], element_spec: Any) -> Any:
    """The batch whose leaves `_as_bits` saved."""
    specs, tensors = tf.nest.flatten(element_spec), map(tf.convert_to_tensor, leaves)
    found = [t if t.dtype == s.dtype else tf.bitcast(t, s.dtype) for t, s in zip(tensors, specs, strict=True)]
    return tf.nest.pack_sequence_as(element_spec, found)


def replayed(batches: list[Any], element_spec: Any) -> tf.data.Dataset:
    """Batches that were read before, as a dataset of the same spec.

    Not by `from_generator`: the first one of a process makes TensorFlow (2.21, `ApplyPython311MemoryPatch`) tell glibc
    to get each piece of 128 KiB or more from the system and to give it back when freed, which slows all steps that
    follow.

    Example:
        >>> spec = tf.TensorSpec([None, 2])
        >>> dataset = replayed([tf.zeros([3, 2]), tf.ones([1, 2])], spec)
        >>> dataset.element_spec == spec, [batch.shape[0] for batch in dataset]
        (True, [3, 1])
    """
    datasets = [tf.data.Dataset.from_tensors(tuple(tf.nest.flatten(batch))) for batch in batches]
    while len(datasets) > 1:  # in pairs, so that no chain of them gets long
        pairs = zip(datasets[::2], datasets[1::2], strict=False)
        datasets = [first.concatenate(second) for first, second in pairs] + datasets[len(datasets) // 2 * 2 :]
    return untuned(datasets[0].map(functools.partial(_of_spec, element_spec)))


def _has_failed(iterator: Any) -> bool:
    return isinstance(iterator, Chunks) and iterator.failed


def _nothing(element_spec: Any) -> tf.data.Dataset:
    """No batch, in a dataset of this spec of dense tensors."""
    empty = tf.nest.map_structure(lambda s: tf.zeros([n or 0 for n in s.shape], s.dtype), element_spec)
    return replayed([empty], element_spec).take(0)


def _of_spec(element_spec: Any, *leaves: tf.Tensor) -> Any:
    """The batch with these leaves, in a function of a dataset: as a spec that may know less of the shapes has it."""

    def as_spec(leaf: Any, spec: Any) -> Any:
        return tf.compat.v1.placeholder_with_default(leaf, spec.shape) if isinstance(spec, tf.TensorSpec) else leaf

    return tf.nest.pack_sequence_as(element_spec, list(map(as_spec, leaves, tf.nest.flatten(element_spec))))


def check_length(feed: Feed, options: FitOptions, step: int, replicas: int) -> None:
    """Raises `InputError` if it is known now that the data cannot serve so long, or not so many replicas."""
    source = feed.source
    if source.endless and options.epochs is not None and options.steps_per_epoch is None:
        raise InputError(
            "the data never ends, so an epoch has no end: give steps_per_epoch=, or steps= in place of epochs=."
        )
    if source.length is not None and not source.repeats:
        wanted, total = None, 0
        if options.steps is not None and source.once:
            wanted, total = f"steps={options.steps}", options.steps
        elif options.steps_per_epoch is not None and options.epochs is not None:
            total = options.epochs * options.steps_per_epoch
            wanted = f"epochs={options.epochs} of steps_per_epoch={options.steps_per_epoch}"
        if wanted is not None and total - step > feed.left:
            raise InputError(data_ended(step + feed.left, wanted))
    several = options.epochs is not None and options.steps_per_epoch is None and options.epochs > 1
    if source.once and several:
        raise InputError(
            f"the data is a generator, which can be read only once, and epochs={options.epochs}: give a function that "
            "makes a new one for each epoch, or steps_per_epoch= for one that goes on."
        )
    if replicas > 1:
        check_batch_size(feed, replicas, look=True)


def check_batch_size(feed: Feed, replicas: int, look: bool = False) -> None:
    """Raises `InputError` if the data's batches are smaller than the number of replicas; the last of a pass may be.

    With `look`, if it is not known, the first batch of a pass is looked at: it stays the next one, in an execution of
    its own.
    """
    parts = feed.source.parts
    known = [spec.shape[0] if spec.shape.rank else None for spec in tf.nest.flatten(feed.source.element_spec)]
    fixed = min((size for size in known if size), default=None) if parts else known[0]
    most = feed.source.largest_batch or fixed
    if most is None and look and feed.batch == 0 and why_not_kept(feed.source.element_spec) is None:
        batch = feed.peek()
        most = None if batch is None else min(map(int, lengths(batch, parts))) if parts else int(count_examples(batch))
    if most and most < replicas:  # a batch without any is an error of its own
        raise InputError(
            f"a batch has {most} example(s), fewer than the {replicas} replicas: choose a batch size of at least "
            f"{replicas}; only a last batch may be smaller."
        )


def data_ended(step: int, wanted: str) -> str:
    """The message for data that is too short."""
    return (
        f"the data ends after step {step}, before {wanted} is reached: repeat it, such as with dataset.repeat(), or "
        "train for epochs= (one pass over the data each)."
    )
