"""Several sources side by side, each with a batch size and an order of its own: labelled and unlabelled examples.

A step takes one batch of each. Where it is in each source depends on the step's number alone, so that any position is
reached at once.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import tensorflow as tf

from looper.base.batches import take
from looper.base.errors import InputError, check_positive
from looper.data.arrays import ArraySource, stacked
from looper.data.indexed import IndexedSource
from looper.data.python import PythonSource
from looper.data.source import Source, untuned
from looper.data.stacks import Part

Member = ArraySource | IndexedSource


@dataclasses.dataclass(frozen=True, eq=False)
class Zipped:
    """Several sources as `zipped` returns them.

    Attributes:
        sources: data by name.
        batch_size: by the same names.
    """

    sources: Mapping[str, Any]
    batch_size: Mapping[str, int]


def zipped(*, batch_size: Mapping[str, int], **sources: Any) -> Zipped:
    """Data whose batches are dicts with a batch of each source: give it to `fit` or `evaluate`.

    An epoch is one pass over the first source, whose last batch may be smaller. The others are read on and on, always
    in full batches: a shorter one begins anew, in another order, and a longer one goes on in the next epoch. The names
    are the batch's parts: replicas and micro-batches divide each by its own length.

    Args:
        batch_size: examples of each source in a batch.
        sources: arrays or indexable data, each as `fit` takes them, also augmented.

    Raises:
        InputError: if the names are not the same, or a batch size is not a positive number.

    Example:
        >>> sizes = {"labelled": 2, "unlabelled": 5}
        >>> data = zipped(labelled=tf.range(4), unlabelled=tf.range(10, 20), batch_size=sizes)
        >>> from looper.data import make_source
        >>> batch = next(make_source(data, batch_size=None, shuffle=False, seed=0).open(0, 1))
        >>> batch["labelled"].numpy().tolist(), batch["unlabelled"].numpy().tolist()
        ([2, 3], [15, 16, 17, 18, 19])
    """
    if not sources or not isinstance(batch_size, Mapping) or set(batch_size) != set(sources):
        raise InputError(
            f"zipped() has the sources {', '.join(sources) or 'none'} and batch_size={batch_size!r}: expected a dict "
            "with the number of examples of each in a batch."
        )
    for name, size in batch_size.items():
        check_positive(f"batch_size[{name!r}]", size)
    return Zipped(sources, batch_size)


def zipped_source(members: Mapping[str, Any]) -> Source:
    """The source over the sources of a `Zipped`.

    Raises:
        InputError: if one comes in batches.
    """
    found: dict[str, Any] = dict(members)
    for name, member in found.items():
        if not isinstance(member, Member):
            raise InputError(
                f"zipped() reads arrays and indexable data side by side, and {name} comes in batches: zip such data by "
                "yourself, for example with tf.data.Dataset.zip, and declare parts = (...) in the recipe."
            )
    in_memory = all(isinstance(member, ArraySource) for member in found.values())
    return (ZippedArrays if in_memory else ZippedExamples)(found)


class _Together(Source):
    """What both kinds have."""

    repeats = True

    def __init__(self, members: Mapping[str, Any]) -> None:
        self._members, self.parts = dict(members), tuple(members)
        first, *others = self._members.values()
        self._first, self.length = first, first.length
        sizes = [member.batch_size for member in others]
        self.smallest_batch = min(first.smallest_batch, *sizes) if sizes else first.smallest_batch
        self.largest_batch = min(first.largest_batch, *sizes) if sizes else first.largest_batch

    def batch(self, step: tf.Tensor) -> dict[str, Any]:
        """The batch of a step, int64, that is counted from the very first."""
        return {name: self._batch_of(member, step) for name, member in self._members.items()}

    def _batch_of(self, member: Member, step: tf.Tensor) -> Any:
        size, total = member.batch_size, member.examples
        if member is not self._first:
            return stretch(member, step * size, size)
        start = step % self.length * size
        count = size if total % size == 0 else tf.minimum(total - start, size)
        places = start + tf.range(count, dtype=tf.int64)
        return member.rows(places, step // self.length)

    def describe(self) -> dict[str, Any]:
        return {"zipped": {name: member.describe() for name, member in self._members.items()}}


class ZippedArrays(_Together):
    """Arrays in memory side by side, read in the graph.

    Example:
        >>> members = {n: ArraySource(tf.range(5), batch_size=n, shuffle=False, seed=0) for n in (2, 4)}
        >>> iterator = zipped_source({f"by {n}": member for n, member in members.items()}).open(0, 1)
        >>> [batch["by 2"].numpy().tolist() for batch in (next(iterator), next(iterator))]
        [[2, 3], [4]]
    """

    goes_on = True

    def __init__(self, members: Mapping[str, ArraySource]) -> None:
        super().__init__(members)
        self.element_spec = self._from_start.element_spec
        if all(member.batch_bytes is not None for member in members.values()):
            self.batch_bytes = sum(member.batch_bytes for member in members.values())
            self.opens_anywhere = True

    def open(self, number: int, batch: int) -> Any:
        step = number * self.length + batch
        return iter(self._dataset(step) if step else self._from_start)

    def open_stacks(self, number: int, batch: int, size: int) -> Callable[[], tuple[Part, bool]] | None:
        if self.batch_bytes is None:
            return None
        step = number * self.length + batch
        tensors = [len(tf.nest.flatten(spec)) for spec in (self.element_spec[name] for name in sorted(self.parts))]

        first = next(iter(self._members))

        def sizes_at(step: int) -> tuple[int, ...]:
            place = step % self.length * self._first.batch_size
            own = {name: member.batch_size for name, member in self._members.items()}
            own[first] = min(self._first.batch_size, self._first.examples - place)
            return tuple(own[name] for name, n in zip(sorted(own), tensors, strict=True) for _ in range(n))

        def read() -> tuple[Part, bool]:
            nonlocal step
            begin, count = step, min(size, self.length - step % self.length)
            step += count
            with tf.device("CPU:0"):
                stack = self._stack(size, tf.constant(begin, tf.int64), count)
            none = (0,) * sum(tensors)
            return Part(stack, [sizes_at(begin + i) if i < count else none for i in range(size)], 0, count), True

        return read

    def _stack(self, size: int, step: tf.Tensor, count: int) -> dict[str, Any]:
        """The stack of `count` batches from a step on; none is beyond its pass."""

        def of(member: ArraySource) -> Any:
            each, total = member.batch_size, member.examples
            if member is self._first:
                each = member.largest_batch
                start = step % self.length * each
                rows = member.rows(tf.range(start, _end(start, count * each, total)), step // self.length)
            else:
                rows = stretch(member, step * each, size * each)
            return tf.nest.map_structure(lambda column: stacked(column, size, each), rows)

        return {name: of(member) for name, member in self._members.items()}

    @functools.cached_property
    def _from_start(self) -> tf.data.Dataset:
        """Made once: a function that is given to `Dataset.map` stays in TensorFlow's memory for good."""
        return self._dataset(0)

    def _dataset(self, step: int) -> tf.data.Dataset:
        batch = tf.autograph.experimental.do_not_convert(self.batch)
        steps = tf.data.Dataset.range(step, tf.int64.max)
        if all(member.transform is None for member in self._members.values()):
            return untuned(steps.map(batch).prefetch(2))
        return steps.map(batch, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True).prefetch(2)


class ZippedExamples(_Together, PythonSource):
    """Sources side by side of which some are read by index.

    Example:
        >>> lists = {"a": [(1.0, 0), (2.0, 1)], "b": [(3.0,)]}
        >>> members = {n: IndexedSource(x, batch_size=1, shuffle=False, seed=0) for n, x in lists.items()}
        >>> [batch["a"][1].numpy().tolist() for batch in zipped_source(members).open(0, 0)]
        [[0], [1]]
    """

    def __init__(self, members: Mapping[str, Member]) -> None:
        _Together.__init__(self, members)
        PythonSource.__init__(self, [self._at(0)])

    def _batches(self, number: int, batch: int) -> Iterator[Any]:
        return (self._at(number * self.length + i) for i in range(batch, self.length))

    def _at(self, step: int) -> dict[str, Any]:
        with tf.device("CPU:0"):
            return self.batch(tf.constant(step, tf.int64))


def stretch(member: Member, start: tf.Tensor, count: int) -> Any:
    """`count` rows of a source from place `start`, int64, of its passes one after another.

    Example:
        >>> source = ArraySource(tf.range(3), batch_size=2, shuffle=False, seed=0)
        >>> stretch(source, tf.constant(5, tf.int64), 5).numpy().tolist()
        [2, 0, 1, 2, 0]
    """
    total = member.examples
    if member.transform is None:
        places = start + tf.range(count, dtype=tf.int64)
        return member.rows(places % total, places // total)
    first, stop = start // total, start + count  # a transform is told of one pass
    most = 1 if total % count == 0 else (count + total - 2) // total + 1
    pieces = []
    for number in (first + i for i in range(most)):
        begin, end = tf.maximum(start, number * total), tf.minimum(stop, (number + 1) * total)
        places = tf.range(begin, tf.maximum(begin + 1, end)) % total  # one at least: TensorFlow shuffles no empty index
        pieces.append(take(member.rows(places, number), 0, tf.maximum(end - begin, 0)))
    return tf.nest.map_structure(lambda *columns: _joined(columns, count), *pieces)


def _joined(columns: tuple[Any, ...], count: int) -> Any:
    if isinstance(columns[0], tf.SparseTensor):
        return tf.sparse.concat(0, columns) if len(columns) > 1 else columns[0]
    whole = tf.concat(columns, 0) if len(columns) > 1 else columns[0]
    return whole if isinstance(whole, tf.RaggedTensor) else tf.ensure_shape(whole, [count, *whole.shape[1:]])


def _end(start: tf.Tensor, count: int | tf.Tensor, total: int) -> tf.Tensor:
    return tf.minimum(start + count, tf.constant(total, tf.int64))
