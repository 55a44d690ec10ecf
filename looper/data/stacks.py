"""Batches in stacks, for steps that run many of them in one call: a boundary may fall into the middle of one."""

import dataclasses
import functools
import math
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import tensorflow as tf

from looper.base import clock
from looper.base.batches import Parts, checked, count_examples, parts_in

STACK = 256
"""Most batches in a stack: enough for the cost of a call to be small beside that of the steps."""

STACK_BYTES = 64 << 20
"""Most memory of a stack; there are two at a time."""

GRAPH_STACK_BYTES = 4 << 20
"""The same for steps in the graph: what a stack saves them is little beside a step over large batches."""

GRAPH_STACK = 64
"""With fewer batches in such a stack, its calls cost more than it saves: they are taken one by one."""

STACK_SECONDS = 0.25
"""How long a stack is waited for: of slow data it is given out before it is full."""


Size = int | tuple[int, ...]
"""The examples of a batch; if it has parts, the rows of each of its tensors."""


@dataclasses.dataclass(frozen=True)
class Part:
    """Batches of a stack, one after another.

    Attributes:
        stack: tensors `[stacked, examples, ...]`, in the structure of a batch; a smaller batch is padded with zeros.
        sizes: the examples of each batch; if it has parts, the rows of each of its tensors.
        start: the first batch of the part.
        count: how many there are.
    """

    stack: Any
    sizes: Sequence[Size]
    start: int
    count: int

    def batch(self, index: int) -> Any:
        """A batch of the stack as it was read."""
        return _of_size(self.stack, self.sizes[index], index)

    def runs(self) -> Iterator[tuple[Any, int, int]]:
        """The runs of batches of one size: a stack without padding, the first of its batches, and how many."""
        longest = [leaf.shape[1] for leaf in tf.nest.flatten(self.stack)]
        start, stop = self.start, self.start + self.count
        while start < stop:
            size = self.sizes[start]
            end = next((i for i in range(start, stop) if self.sizes[i] != size), stop)
            whole = rows_of(size, len(longest)) == longest
            yield self.stack if whole else _of_size(self.stack, size), start, end - start
            start = end


def _of_size(stack: Any, size: Size, index: int | slice = slice(None)) -> Any:
    leaves = tf.nest.flatten(stack)
    found = [leaf[index, :rows] for leaf, rows in zip(leaves, rows_of(size, len(leaves)), strict=True)]
    return tf.nest.pack_sequence_as(stack, found)


def rows_of(size: Size, tensors: int) -> list[int]:
    """The rows of each of so many tensors of a batch.

    Example:
        >>> rows_of(8, 2), rows_of((8, 32), 2)
        ([8, 8], [8, 32])
    """
    return [size] * tensors if isinstance(size, int) else list(size)


def size_of(batch: Any, parts: Parts = ()) -> Size:
    """The size of a batch of dense tensors, as a `Part` has it.

    Raises:
        InputError: if it has tensors of different lengths and no parts.
    """
    batch = checked(batch, parts)
    if parts_in(batch, parts):
        return tuple(int(count_examples(leaf)) for leaf in tf.nest.flatten(batch))
    return int(count_examples(batch))


def why_not_kept(element_spec: Any) -> str | None:
    """Why batches cannot be read ahead and kept in a checkpoint, or None if they can.

    Example:
        >>> why_not_kept(tf.TensorSpec([None], tf.string))
        'batches hold strings'
    """
    for spec in tf.nest.flatten(element_spec):
        if not isinstance(spec, tf.TensorSpec):
            return f"batches hold a {type(spec).__name__.removesuffix('Spec')}"
        if spec.dtype == tf.string:
            return "batches hold strings"
    return None


def why_not_stacked(element_spec: Any) -> str | None:
    """Why batches that can be kept cannot be stacked, or None if they can.

    Example:
        >>> why_not_stacked(tf.TensorSpec([None, 3])), why_not_stacked(tf.TensorSpec([None, None]))
        (None, 'batches of shape (None, None) differ in more than the number of examples')
    """
    for spec in tf.nest.flatten(element_spec):
        if spec.shape.rank is None or None in spec.shape.as_list()[1:]:
            return f"batches of shape {spec.shape} differ in more than the number of examples"
    return None


def bytes_of(batch: Any) -> int:
    """The size of a batch of dense tensors in bytes.

    Example:
        >>> bytes_of((tf.zeros([32, 8]), tf.zeros([32], tf.int64)))
        1280
    """
    return sum(leaf.dtype.size * int(tf.size(leaf)) for leaf in map(tf.convert_to_tensor, tf.nest.flatten(batch)))


def stacked_in_graph(batch_bytes: int | None) -> bool:
    """Whether steps in the graph take their batches from stacks.

    Args:
        batch_bytes: the size of one batch, or None if the source does not read whole stacks at once.

    Example:
        >>> stacked_in_graph(4224), stacked_in_graph(131_072), stacked_in_graph(None)
        (True, False, False)
    """
    return batch_bytes is not None and GRAPH_STACK * batch_bytes <= GRAPH_STACK_BYTES


def stack_size(batch_bytes: int | None, steps: int | None) -> int:
    """How many batches to put into a stack: as many as there are steps to the next boundary, or an even share of that.

    Args:
        batch_bytes: the size of one batch, or None if that is not known.
        steps: the most steps from one boundary to the next, or None if that is not known.

    Example:
        >>> stack_size(1024, 1000), stack_size(19_267_584, 10)
        (250, 3)
    """
    most = max(1, min(STACK, STACK_BYTES // max(batch_bytes or 1, 1)))
    return most if steps is None else _even_share(steps, most)


def graph_stack_size(batch_bytes: int, steps: int | None, length: int | None) -> int:
    """How many batches to put into a stack for steps in the graph, which take any number of them at the same cost.

    Args:
        batch_bytes: the size of one batch, for which `stacked_in_graph` holds.
        steps: the most steps from one boundary to the next, or None if that is not known.
        length: batches in a pass, or None if that is not known.

    Example:
        >>> [graph_stack_size(4224, steps, 2000) for steps in (None, 100, 1000)], graph_stack_size(4224, 100, 45)
        ([256, 200, 250], 45)
    """
    most = min(STACK, GRAPH_STACK_BYTES // max(batch_bytes, 1), length or STACK)
    if steps is None or most == length:
        return most
    return most - most % steps if steps <= most else _even_share(steps, most)


def _even_share(steps: int, most: int) -> int:
    return math.ceil(steps / math.ceil(steps / most))


class Stacks:
    """Reads stacks, one ahead, in a thread of its own.

    What was read and not taken yet is `ahead`: a checkpoint holds it, as the data is read beyond it.

    Attributes:
        failed: whether the data could not be read; batches before the bad one are lost then.
        read_so_far: how many batches were read, and the seconds that it took.

    Args:
        read: reads the next stack: the part of it that is filled, and whether there may be more. See `of_iterator`.
        size: batches in a stack.
        ahead: batches that come before those to be read.
        device: where to put what is read, by the same thread, such as "GPU:0"; None leaves it on the CPU.
        parts: those that batches have.

    Example:
        >>> stacks = Stacks(of_iterator(iter(tf.data.Dataset.range(5).batch(2)), size=2), size=2)
        >>> part = stacks.take(1)
        >>> part.stack.numpy().tolist(), part.sizes, part.start, part.count
        ([[0, 1], [2, 3]], [2, 2], 0, 1)
        >>> [batch.numpy().tolist() for batch in stacks.ahead()]
        [[2, 3], [4]]
    """

    def __init__(
        self,
        read: Callable[[], tuple[Part, bool]],
        size: int,
        ahead: list[Any] | None = None,
        device: str | None = None,
        parts: Parts = (),
    ) -> None:
        self.size = size
        self._read, self._device, self._parts = read, device, parts
        self._thread: ThreadPoolExecutor | None = None  # while it is needed
        self._rest = list(ahead or [])
        self._now: Part | None = None  # what is left of the present stack
        self._taken = 0  # batches of it, the last time
        self.failed = False
        self.read_so_far = (0, 0.0)
        self._next: Future | None = None

    def take(self, count: int) -> Part | None:
        """Up to `count` batches of one stack, at least one; None at the end of the data.

        Raises:
            tf.errors.OpError: if the data could not be read.
        """
        left = self.peek()
        if left is None:
            return None
        self._taken = count = min(count, left.count)
        self._now = dataclasses.replace(left, start=left.start + count, count=left.count - count)
        return dataclasses.replace(left, count=count)

    def take_back(self) -> None:
        """Makes the batches that were taken last come again."""
        now, self._taken, taken = self._now, 0, self._taken
        if now is not None:
            self._now = dataclasses.replace(now, start=now.start - taken, count=now.count + taken)

    def peek(self) -> Part | None:
        """The batches that are left of the present stack, without taking them; None at the end of the data."""
        if self._now is None or not self._now.count:
            self._now = self._following()
        return self._now if self._now.count else None

    @property
    def fails_next(self) -> bool:
        """Whether the next batch could not be read, and `take` will raise: those before it were all taken."""
        taken = self._now is None or not self._now.count
        return taken and self._next is not None and self._next.exception() is not None

    @property
    def lost(self) -> bool:
        """Whether batches behind `ahead` were read and cannot be given, because one after them could not be read."""
        self.settle()
        return self.failed or (self._next is not None and self._next.exception() is not None)

    def ahead(self) -> list[Any]:
        """The batches that were read and not taken yet."""
        parts = [] if self._now is None else [self._now]
        if self._next is not None and self._next.exception() is None:
            parts.append(self._next.result()[0])
        return [part.batch(i) for part in parts for i in range(part.start, part.start + part.count)] + self._rest

    def settle(self) -> None:
        """Waits for the thread: the data then stands behind `ahead`."""
        if self._next is not None:
            self._next.exception()

    def rest(self) -> None:
        """Waits for the thread, and lets it go until it is needed again."""
        self.settle()
        if self._thread is not None:
            self._thread.shutdown()
            self._thread = None

    def _following(self) -> Part:
        if self._rest:  # then nothing was read yet
            batches, self._rest = self._rest[: self.size], self._rest[self.size :]
            return _stacked(batches, self.size, self._parts)
        self._next = self._next or self._begin()
        self.failed = True
        part, more = self._next.result()
        self.failed = False
        self._next = self._begin() if more else None
        return part

    def _begin(self) -> Future:
        if self._thread is None:
            self._thread = ThreadPoolExecutor(1, "looper-stacks")
        return self._thread.submit(self._read_to_device)

    def _read_to_device(self) -> tuple[Part, bool]:
        began = time.perf_counter()
        part, more = self._read()
        batches, seconds = self.read_so_far
        self.read_so_far = batches + part.count, seconds + time.perf_counter() - began
        if self._device is None or not part.count:
            return part, more
        with tf.device(self._device):
            return dataclasses.replace(part, stack=tf.nest.map_structure(tf.identity, part.stack)), more


def of_iterator(iterator: Any, size: int, parts: Parts = ()) -> Callable[[], tuple[Part, bool]]:
    """Reads stacks of up to `size` batches, with these parts, from an iterator of `tf.data`; they can be stacked."""
    parts = parts_in(iterator.element_spec, parts)
    read_batches = _reader(str(iterator.element_spec), size, parts)

    def read() -> tuple[Part, bool]:
        stack, sizes, filled, more = read_batches(iterator)
        found = sizes.numpy().tolist()
        return Part(stack, list(map(tuple, found)) if parts else found, 0, int(filled)), bool(more)

    return read


def _stacked(batches: list[Any], size: int, parts: Parts) -> Part:
    """A stack of batches, padded to `size` of them."""
    sizes = [size_of(batch, parts) for batch in batches]
    none = 0 if isinstance(sizes[0], int) else (0,) * len(sizes[0])
    missing = size - len(batches)

    def stack(*leaves: tf.Tensor) -> tf.Tensor:
        leaves = tuple(map(tf.convert_to_tensor, leaves))
        largest = max(leaf.shape[0] for leaf in leaves)
        padded = [_padded(leaf, largest) for leaf in leaves]
        return tf.stack(padded + [tf.zeros_like(padded[0])] * missing)

    return Part(tf.nest.map_structure(stack, *batches), sizes + [none] * missing, 0, len(batches))


@functools.lru_cache(maxsize=16)
def _reader(_: str, size: int, parts: Parts) -> Any:
    """A compiled function that reads up to `size` batches; one for each structure of batches.

    Sizes are int32 `[size]`, or with parts `[size, tensors]`.
    """

    def size_of_each(batch: Any) -> tf.Tensor:
        return tf.stack(list(map(count_examples, tf.nest.flatten(batch)))) if parts else count_examples(batch)

    def read(iterator: Any) -> tuple[Any, tf.Tensor, tf.Tensor, tf.Tensor]:
        spec = iterator.element_spec
        specs = tf.nest.flatten(spec)

        def body(index: tf.Tensor, _: tf.Tensor, sizes: tf.TensorArray, arrays: list[tf.TensorArray]) -> tuple:
            batch = iterator.get_next_as_optional()
            more = batch.has_value()

            def write() -> tuple[tf.TensorArray, list[tf.TensorArray]]:
                value = checked(batch.get_value(), parts)
                leaves = zip(arrays, tf.nest.flatten(value), strict=True)
                return sizes.write(index, size_of_each(value)), [array.write(index, leaf) for array, leaf in leaves]

            found = tf.cond(more, write, lambda: (sizes, arrays))
            return index + tf.cast(more, tf.int32), more, *found

        def proceed(index: tf.Tensor, more: tf.Tensor, *_: Any) -> tf.Tensor:
            in_time = (index == 0) | (tf.timestamp() < deadline) if hurry else True
            return more & (index < size) & in_time

        hurry = clock.may_be_read()
        deadline = tf.timestamp() + STACK_SECONDS if hurry else None
        arrays = [tf.TensorArray(s.dtype, size, infer_shape=False, element_shape=s.shape) for s in specs]
        shape = [len(specs)] if parts else []
        state = (0, True, tf.TensorArray(tf.int32, size, element_shape=shape), arrays)
        index, more, sizes, arrays = tf.while_loop(proceed, body, state, parallel_iterations=1)
        rows = sizes.stack()
        whole = (index == size) & tf.reduce_all(tf.equal(rows, rows[0]))
        of_each = tf.unstack(rows, num=len(specs), axis=1) if parts else [rows] * len(specs)
        stacks = [_stack(array, s, n, whole) for array, s, n in zip(arrays, specs, of_each, strict=True)]
        return tf.nest.pack_sequence_as(spec, stacks), rows, index, more

    return tf.function(read, autograph=False)


def _stack(array: tf.TensorArray, spec: tf.TensorSpec, sizes: tf.Tensor, whole: tf.Tensor) -> tf.Tensor:
    """A `TensorArray` of batches as one tensor; `whole` if it is filled with batches of one size."""
    largest = tf.reduce_max(sizes)
    shape = [None, *spec.shape[1:]]

    def padded(i: tf.Tensor) -> tf.Tensor:
        none = tf.zeros([0, *shape[1:]], spec.dtype)
        return _padded(tf.cond(sizes[i] > 0, lambda: tf.ensure_shape(array.read(i), shape), lambda: none), largest)

    def pad_each() -> tf.Tensor:
        return tf.map_fn(padded, tf.range(tf.size(sizes)), fn_output_signature=tf.TensorSpec(shape, spec.dtype))

    stacked = tf.cond(whole, array.stack, pad_each)
    stacked.set_shape([sizes.shape[0], *shape])
    return stacked


def _padded(leaf: tf.Tensor, examples: int | tf.Tensor) -> tf.Tensor:
    return tf.pad(leaf, [[0, examples - tf.shape(leaf)[0]]] + [[0, 0]] * (leaf.shape.rank - 1))
