"""The ways to run a feed's training steps, tried and timed on its next batches; what a trial changes is put back."""

import collections
import contextlib
import dataclasses
import time
from collections.abc import Callable, Iterator
from typing import Any

import tensorflow as tf

from looper.base import xla
from looper.base.batches import why_not_cut
from looper.base.errors import first_line
from looper.data.feed import Feed, replayed
from looper.data.stacks import (
    Part,
    Stacks,
    bytes_of,
    graph_stack_size,
    size_of,
    stack_size,
    why_not_kept,
    why_not_stacked,
)
from looper.saved.variables import State
from looper.step.programs import Execution, StackedExecution, explained, explaining, is_own_check
from looper.workers.peers import is_of_collectives


@dataclasses.dataclass
class Modes:
    """The modes that one feed's training steps may run in.

    Attributes:
        make: from a mode and the batches in a stack (None without stacks) to its steps; the same ones each time.
        feed: the data; it is left at the same batch.
        replicas: that a step runs on.
        own_step: why forward and backward of the recipe's own `train_step` cannot be told from its updates, or None.
        from_chief: makes a duration that of the chief: all workers are to choose the same, or they wait for each other.
        step: of the next batch, for messages.
        between: the most steps from one boundary to the next, or None if that is not known.
        device: where stacks put what they read ahead, or None for the CPU.
        state: what a trial changes; known when steps of some mode are traced, and set before the first trial.
    """

    make: Callable[[str, int | None], Execution]
    feed: Feed
    replicas: int
    own_step: str | None
    from_chief: Callable[[float], float]
    step: int
    between: int | None
    device: str | None = None
    state: State = dataclasses.field(init=False)
    _keeping: bool = dataclasses.field(default=False, init=False)
    _held: dict[Any, Any] = dataclasses.field(default_factory=dict, init=False)

    def put_back_to(self, state: State) -> None:
        """Sets what a trial puts back."""
        self.state = state

    def begin(self, mode: str | None) -> Execution:
        """The steps to trace first: those of the run's mode, or in the graph if that is not settled or needs more."""
        told = mode == "xla_step" or (mode == "xla_loop" and self.feed.batch_bytes is not None)
        alone = self.replicas == 1  # of what several exchange in a step, XLA may not be able to trace all
        return self._steps(mode if told and alone and self.unfit(mode) is None else "graph")

    def enter(self, mode: str) -> Execution:
        """The steps in a mode that `why_not` has nothing against; the feed gives what they take from here on.

        What was held in memory to try modes is let go.
        """
        self.feed.give(self._stack(mode), self.device)
        self._held.clear()
        return self._steps(mode)

    def why_not(self, mode: str) -> str | None:
        """Tries to compile. Returns why a mode cannot be used, or None if it can.

        A single step is compiled when it runs. On one replica the run's first one does that, unless this is called
        inside `put_back`: `refuse` is to be called if it fails, which changes nothing.
        """
        if mode == "graph":
            return None
        reason = self.unfit(mode)
        if reason is None and mode == "xla_loop" and self.feed.source.batch_bytes is None:
            batch = self._next_batch()
            reason = None if batch is None else self._why_not_cut(batch)
        if reason is not None:
            return reason
        execute = self._steps(mode)
        if execute.awaits_xla and execute.refused is None:
            execute.refuse(self._try(mode, execute))
        return execute.refused

    def refuse(self, mode: str, error: tf.errors.OpError) -> str:
        """Takes note that the first step failed in a mode that uses XLA. Returns why."""
        reason = xla.why_not(error)
        self._steps(mode).refuse(reason)
        return reason

    def unfit(self, mode: str) -> str | None:
        """Why a mode that uses XLA is not for this data or so many replicas, or None."""
        if mode == "xla_loop" and self.replicas > 1:
            return f"XLA has no collectives in a loop, and there are {self.replicas} replicas"
        if mode == "xla_step" and self.replicas > 1 and self.own_step:
            return f"train_step {self.own_step}: it reduces over the {self.replicas} replicas, which XLA cannot"
        if mode != "xla_loop":
            return why_not_kept(self._spec)
        if self.feed.source.on_demand:
            return "it reads stacks of batches ahead, which prefetch=0 forbids"
        return why_not_kept(self._spec) or why_not_stacked(self._spec) or self._why_not_cut(self._spec)

    def _why_not_cut(self, batch: Any) -> str | None:
        return why_not_cut(batch, self.feed.source.parts)

    def _try(self, mode: str, execute: Execution) -> str | None:
        if self.replicas == 1:
            execute.trace(self._spec)
        else:
            try:
                execute.trace(self._spec)
            except (RuntimeError, ValueError, NotImplementedError) as error:  # collectives, such as of batch statistics
                return f"XLA cannot have what replicas exchange in the forward pass: {first_line(error)}"
        unseeded = sorted(execute.operations(self._spec).keys() & xla.UNSEEDED)
        if unseeded:
            return f"no seed reaches {', '.join(unseeded)} in XLA: draw with keras.random or tf.random.stateless_..."
        try:
            self._compile(mode, execute)
        except tf.errors.OpError as error:
            if is_of_collectives(error):  # not XLA's fault: another worker is gone
                raise
            if is_own_check(error):
                raise explained(error, self.step, 1) from error
            return xla.why_not(error)
        return None

    def _compile(self, mode: str, execute: Execution) -> None:
        if isinstance(execute, StackedExecution) and mode == "xla_loop":
            execute.compile(self._stacks(self._stack(mode)))
        elif self._keeping:
            self.seconds(mode, 1)
        elif self.replicas > 1:  # what is outside of their XLA programs may run though one of these fails
            with self.put_back():
                self.seconds(mode, 1)

    @contextlib.contextmanager
    def put_back(self) -> Iterator[None]:
        """Puts back at its end all that steps have changed."""
        with tf.device("CPU:0"):  # a GPU may have no room for it twice; on a CPU nothing is copied
            before = tf.nest.map_structure(tf.identity, self.state.snapshot())
        self._keeping = True
        try:
            yield
        finally:
            self._keeping = False
            self.state.restore(before)

    def seconds(self, mode: str, steps: int) -> float:
        """How long one execution takes, over the next batches again and again. To be used inside `put_back`."""
        size = self._stack(mode)
        data = self._batches if size is None else self._stacks(size)
        execute = self._steps(mode)
        began = time.perf_counter()
        try:
            rows, *_ = execute(data, steps, True)
            rows.numpy()  # the device has done it all
        except tf.errors.OpError as error:
            if mode == "graph":  # not XLA's fault
                raise explained(error, self.step, 1) from error
            raise
        return self.from_chief(time.perf_counter() - began)

    def data_seconds(self) -> float | None:
        """Seconds that a batch of the chief takes to be read, if its first ones have told that."""
        return self.from_chief(self.feed.steady_pace() or 0.0) or None

    def operations(self) -> collections.Counter[str]:
        """How many operations of each type there are in the graph."""
        return self._steps("graph").operations(self._spec)

    def facts(self) -> tuple[Any, ...]:
        """What the modes' speed depends on besides the operations of the graph."""
        shapes = sorted((v.dtype.name, tuple(v.shape)) for v in self.state.variables.values())
        devices = sorted(device.device_type for device in tf.config.list_logical_devices())
        batch_bytes = self.feed.batch_bytes
        return str(self._spec), batch_bytes, self.between, self.replicas, devices, tuple(shapes)

    def state_bytes(self) -> int:
        """The size of all that steps change."""
        return sum(v.dtype.size * v.shape.num_elements() for v in self.state.variables.values())

    @property
    def _spec(self) -> Any:
        return self.feed.source.element_spec

    def _steps(self, mode: str) -> Execution:
        return self.make(mode, self._stack(mode) if mode == "xla_loop" else None)

    def _stack(self, mode: str) -> int | None:
        if mode != "xla_loop" and isinstance(self._steps(mode), StackedExecution):
            return graph_stack_size(self.feed.batch_bytes, self.between, self.feed.source.length)
        if mode != "xla_loop":
            return None
        if self.feed.batch_bytes is None and (batch := self._next_batch()) is not None:
            self.feed.note_bytes(bytes_of(batch))
        return stack_size(self.feed.batch_bytes, self.between)

    def _hold(self, name: Any, make: Callable[[], Any]) -> Any:
        """Copies that are made once to try modes with, and held in memory until the steps of one are entered."""
        if name not in self._held:
            self._held[name] = make()
        return self._held[name]

    @property
    def _batches(self) -> Any:
        """The next batch without end."""
        return self._hold("batches", lambda: iter(_without_end(self._batch, self._spec)))

    def _stacks(self, size: int) -> Stacks:
        """The next batches of one size without end, in stacks: those of the feed, or the next batch repeated."""

        def make() -> Stacks:
            part = self._stack_of_feed(size)
            if part is None:
                batch = self._batch
                stack = tf.nest.map_structure(lambda x: tf.repeat(x[None], size, 0), batch)
                part = Part(stack, [size_of(batch, self.feed.source.parts)] * size, 0, size)
            return Stacks(lambda: (part, True), size)

        return self._hold(size, make)

    def _stack_of_feed(self, size: int) -> Part | None:
        """The feed's next batches of one size, if it gives them in stacks at once and at least half of one is left."""
        source = self.feed.source
        if source.batch_bytes is None:
            return None
        self.feed.give(size, self.device)
        with explaining(self.step, 1):
            part = self.feed.iterator.peek()
        if part is None:
            return None
        stack, start, count = next(part.runs())
        enough = 2 * count >= min(size, source.length or size)
        return dataclasses.replace(part, stack=stack, start=start, count=count) if enough else None

    @property
    def _batch(self) -> Any:
        """The next batch; at the end of a pass zeros: what can be compiled does not depend on the values."""

        def make() -> Any:
            batch = self._next_batch()
            if batch is not None:
                return batch
            return tf.nest.map_structure(lambda s: tf.zeros([n or 1 for n in s.shape], s.dtype), self._spec)

        return self._hold("batch", make)

    def _next_batch(self) -> Any:
        with explaining(self.step, 1):
            return self.feed.peek()


def _without_end(batch: Any, element_spec: Any) -> tf.data.Dataset:
    """A batch again and again, in a dataset of a spec that may know less of the shapes."""
    # the batch is not captured by a function, which stays in TensorFlow's memory for good
    return replayed([batch], element_spec).repeat().prefetch(2)
