"""Compiled programs: the loop of steps inside the graph, over a step that `looper.step.replicas` makes.

A step consumes one global batch and returns its row of logs, summed over the replicas. An execution runs a tensor
number of steps and returns their rows stacked, so that neither a shorter last execution nor the end of the data needs
another trace or a read by the host.
"""

import collections
import contextlib
import dataclasses
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from looper.base import clock, memory, xla, xla_cache
from looper.base.batches import lengths, owners, rows, take
from looper.base.conditions import run_if
from looper.base.errors import InputError, StepError, first_line
from looper.base.function_names import numbered_by
from looper.base.ledger import Ledger
from looper.base.lines import line_of_error
from looper.base.options import XLA_MODES
from looper.base.own_world import ONE_AT_A_TIME
from looper.data.stacks import Part, Size, Stacks, rows_of
from looper.recipe import metrics
from looper.step import counting, effects
from looper.step.division import Division
from looper.step.retraces import Retraces

NEW_VARIABLES = (
    "tf.function only supports singleton tf.Variables",
    "Unable to lift tensor",
    "__inference_initialize_variables",
)
"""Words of TensorFlow's about variables that are made in a step: on one device, on several replicas, in XLA."""

_AS_IT_IS = contextlib.nullcontext()

FULL_AND_LAST = 2
"""Sizes of batches that every pass over data has."""


@dataclasses.dataclass(frozen=True)
class Step:
    """One step, and what is known of the row that it returns.

    Attributes:
        run: from a global batch to a row; called in cross-replica context.
        names: the names of the row's pairs, which it fills in when it is traced.
        dtype: of the row.
        division: how it divides batches, or None if that need not be looked at: XLA leaves out checks in the step.
    """

    run: Callable[[Any], tf.Tensor]
    names: list[str]
    dtype: tf.DType
    division: Division | None = None


class Execution:
    """A compiled (or eager) function that runs steps from an iterator.

    Attributes:
        names: the name of each (sum, weight) pair of a row; known once the step was traced or run.
        traces: how often it was traced.
        recorder: what the last `trace` was recorded with, or None.
        numbers: Python numbers of the recipe that it was traced with, by the attributes' names; set by who traces it.
        kind: see the arguments.
        awaits_xla: whether XLA has not compiled it yet, and may refuse to: it does so at the first call, which on one
            replica then changes nothing but the metrics.
        refused: why XLA could not, or None.

    Args:
        step: the step.
        mode: "eager"; "graph", which loops in a graph; "xla_step", the same with each step an XLA program.
        counted: whether the iterator never ends early. Otherwise the end of the data is looked for before
            each step.
        reader: the metrics to empty before the first step and to read after the last one, or None.
        timed: whether to measure in the graph how long steps wait for their batches.
        kind, retraces: what it is, "train" or "eval", and what is told if it is traced again after it ran.
        counts: the trainer's numbers of steps and epochs done, which the steps may read; None where there are none.
    """

    def __init__(
        self,
        step: Step,
        *,
        mode: str,
        counted: bool,
        reader: metrics.Reader | None = None,
        timed: bool = False,
        kind: str = "train",
        retraces: Retraces | None = None,
        counts: counting.Counting | None = None,
    ) -> None:
        self.names = step.names
        self.traces = 0
        self.recorder: Any = None
        self.numbers: Mapping[str, int | float] = {}
        self._graph: tf.Graph | None = None  # of the last trace
        self._idle: list[keras.Metric] | None = None  # in it, once that was asked for
        self.awaits_xla = mode in XLA_MODES
        self.refused: str | None = None
        self._tracing: Any = None
        self._emptying = 0  # how many operations empty the metrics, before the steps
        self._dtype = step.dtype
        self._division = step.division or Division((), 1)
        self._step, self._step_in_xla = step.run, mode == "xla_step"
        self._counts = counts or counting.Counting(lambda: (0, 0, 0))
        self._counted = counted
        self._reader = reader
        self._timed = timed
        self.kind, self._retraces = kind, retraces or Retraces()
        self._called = False
        self._traced_for: Any = None
        self._sizes: set[int] = set()
        self._sized = mode in XLA_MODES
        self._run: Callable[..., Any] = self._counted_loop if counted else self._loop_to_end
        self._function = None if mode == "eager" else tf.function(self._traced, autograph=False)

    def note_numbers(self, numbers: Mapping[str, int | float]) -> None:
        """Takes note of the Python numbers that it was traced with."""
        self.numbers = numbers

    def await_xla(self) -> None:
        """Takes note that there is an XLA program in it which was not compiled yet."""
        self.awaits_xla = True

    def refuse(self, reason: str | None) -> None:
        """Takes note of why XLA could not compile it; None: it can."""
        self.refused = reason

    def __call__(
        self, iterator: Any, steps: int, fresh: bool = False, ledger: Ledger | None = None
    ) -> tuple[tf.Tensor, int | tf.Tensor, tf.Tensor]:
        """Runs up to `steps` steps.

        Args:
            iterator: yields global batches.
            steps: at least 1.
            fresh: whether to empty the metrics first.
            ledger: what to count the time in.

        Returns:
            Rows `[steps run, columns]`, the number of steps run (a Python int if the data cannot end early, otherwise
            an int32 tensor), and what the reader reads, float64 `[values]`.
        """
        ledger = ledger or Ledger()
        if self._function is None:
            with ledger.section("device"):
                if fresh and self._reader is not None:
                    self._reader.reset()
                rows, ran = self._eager_loop(iterator, steps, ledger)
                return rows, ran, self._read(self._counts.tensor())
        traces = self.traces
        numbers = tf.constant(steps, tf.int32), self._counts.tensor(), tf.constant(fresh)
        rows, ran, values = self._counted_call(ledger, iterator, *numbers)
        self._look_at_traces(traces, iterator.element_spec)
        if self.awaits_xla:
            with ledger.section("startup"):
                if int(ran):
                    self._compiled()
        return rows, steps if self._counted else ran, values

    def _in_xla_program(self, program: Any) -> Callable[[Any], tf.Tensor]:
        """A step that is an XLA program, which looks at its batch first."""

        def step(batch: Any) -> tf.Tensor:
            batch = self._division.checked(batch)
            if self._division.parts:
                program.get_concrete_function(batch)  # the trace shows what is a scalar
                batch = self._division.means_checked(lengths(batch, self._division.parts), batch)
            return program(batch)

        return step

    def _counted_call(self, ledger: Ledger, *arguments: Any) -> list[Any]:
        """Calls the compiled function. Until its graph runs is "dispatch", the first time "startup".

        A call in which XLA compiles the step is all "startup".
        """
        until_it_runs = "dispatch" if self._called else "startup"
        self._called, compiles = True, self.awaits_xla
        with ledger.section("startup" if compiles else "device"), xla_cache.used() if compiles else _AS_IT_IS:
            called = time.time()
            *returned, times = self._function(*arguments)
            seconds = time.time() - called

        def measured() -> dict[str, float]:
            began, waited = times.numpy().tolist()
            if not began:
                return {}
            return {until_it_runs: min(began - called, seconds), "input": min(waited, seconds)}

        if not compiles:
            ledger.later(measured)
        return returned

    def _compiled(self) -> None:
        """Takes note that XLA has compiled it."""
        self.awaits_xla = False
        memory.give_back()  # what the compiler took and freed

    def saw(self, examples: np.ndarray) -> None:
        """Takes note of how many examples the batches of some steps had; XLA compiles a program for each number."""
        if not self._sized:
            return
        for size in map(int, examples.tolist()):
            if size not in self._sizes:
                if len(self._sizes) >= FULL_AND_LAST:
                    self._retraces.sizes(self.kind, self._sizes, size)
                self._sizes.add(size)

    def _look_at_traces(self, before: int, element_spec: Any) -> None:
        """Reports if there are more traces than `before`, and it is not the first."""
        if self.traces > before:
            if before:
                self._retraces.traced_again(self.kind, self._traced_for, element_spec)
            self._traced_for = element_spec

    def trace(self, element_spec: Any, recorder: Any = None) -> tuple[tf.Variable, ...]:
        """Traces without running, if it was not traced for this before.

        Args:
            element_spec: of a batch.
            recorder: an audit's `Recorder` to trace in, or None.

        Returns:
            Every variable that the function captured, none in eager mode.
        """
        memory.keep_freed()  # by a step, for the next one
        if self._function is None:
            return ()
        before, self._tracing = self.traces, recorder
        try:
            words = f"{self.kind} {type(self).__name__} {self._sized} {element_spec}"
            with ONE_AT_A_TIME, contextlib.nullcontext() if recorder is None else recorder, numbered_by(words):
                concrete = self._function.get_concrete_function(*self._signature(element_spec))
        except InputError:
            raise
        except tf.errors.OperatorNotAllowedInGraphError as error:
            line = line_of_error(error)
            raise InputError(
                f"the recipe uses a tensor as a Python bool or loops over it{f' ({line})' if line else ''}, which a "
                "compiled step cannot: use tf.cond, tf.where or tf.while_loop, or execution='eager'."
            ) from error
        except Exception as error:
            if isinstance(error.__context__, InputError):  # AutoGraph wraps it in a `tf.function` of the recipe's own
                raise error.__context__ from None
            if any(words in str(error) for words in NEW_VARIABLES):
                line = line_of_error(error)
                raise InputError(
                    "the recipe makes a variable, a layer or a seed generator in a "
                    f"step{f' ({line})' if line else ''}, which is traced more than once: make it in build()."
                ) from error
            raise
        finally:
            self._tracing = None
        if self.traces > before:
            self.recorder = recorder
        self._look_at_traces(before, element_spec)
        counting.check_captured(concrete.captured_inputs)
        if concrete.graph is not self._graph:
            self._graph, self._idle = concrete.graph, None
        return tuple(concrete.graph.variables)

    def idle_metrics(self, metrics: Sequence[keras.Metric], strategy: tf.distribute.Strategy) -> list[keras.Metric]:
        """Those metrics that the steps do not update, as the last `trace` shows it; none in eager mode."""
        if self._graph is None:
            return []
        if self._idle is None:
            self._idle = effects.not_updated(metrics, self._graph, strategy, self._emptying)
        return self._idle

    def operations(self, element_spec: Any) -> collections.Counter[str]:
        """How many operations of each type the compiled steps have."""
        return xla.operations(self._function.get_concrete_function(*self._signature(element_spec)).graph)

    def _signature(self, element_spec: Any) -> tuple[Any, ...]:
        steps, fresh = tf.TensorSpec([], tf.int32), tf.TensorSpec([], tf.bool)
        return tf.data.IteratorSpec(element_spec), steps, counting.SPEC, fresh

    def _traced(self, *arguments: Any) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor, tf.Tensor]:
        *given, fresh = arguments
        began = tf.timestamp() if clock.may_be_read() else _no_seconds()
        self._begin_trace(fresh)
        with tf.control_dependencies([began]):
            rows, ran, waited = self._run(*given)
        values = self._read(given[-1])
        with tf.device("CPU:0"):
            return rows, ran, values, tf.stack([began, waited])

    def _begin_trace(self, fresh: tf.Tensor | None) -> None:
        """Empties the metrics if `fresh`, a bool scalar, is true; with None, always."""
        self.traces += 1
        if self._tracing is not None:
            self._tracing.begin()  # TensorFlow traces again if variables were made
        if self._reader is not None:
            run_if(fresh, self._reader.reset)
        self._emptying = len(tf.compat.v1.get_default_graph().get_operations())

    def _read(self, counts: tf.Tensor) -> tf.Tensor:
        with self._counts.at(counts):  # a learning rate may depend on the last step
            return tf.zeros([0], tf.float64) if self._reader is None else self._reader.everything()

    def _take_step(self, batch: Any, counts: tf.Tensor, index: int | tf.Tensor) -> tf.Tensor:
        """The step after `index` others of this call."""
        # a program of its own for each trace: it may capture this one's counts
        step = self._in_xla_program(xla.program(self._step)) if self._step_in_xla else self._step
        with self._counts.at(counts, index if self.kind == "train" else None):
            return step(batch)

    def _counted_loop(
        self, iterator: Any, steps: tf.Tensor, counts: tf.Tensor
    ) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        def body(index: tf.Tensor, waited: tf.Tensor, rows: tf.TensorArray) -> tuple:
            batch, waited = self._take(iterator.get_next, waited)
            return index + 1, waited, rows.write(index, self._take_step(batch, counts, index))

        state = (0, _no_seconds(), tf.TensorArray(self._dtype, size=steps))
        index, waited, rows = tf.while_loop(lambda index, *_: index < steps, body, state, parallel_iterations=1)
        return rows.stack(), index, waited

    def _loop_to_end(
        self, iterator: Any, steps: tf.Tensor, counts: tf.Tensor
    ) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        def body(index: tf.Tensor, _: tf.Tensor, waited: tf.Tensor, rows: tf.TensorArray) -> tuple:
            batch, waited = self._take(iterator.get_next_as_optional, waited)
            more = batch.has_value()

            def write() -> tf.TensorArray:
                return rows.write(index, self._take_step(batch.get_value(), counts, index))

            rows = tf.cond(more, write, lambda: rows)
            return index + tf.cast(more, tf.int32), more, waited, rows

        def proceed(index: tf.Tensor, more: tf.Tensor, *_: Any) -> tf.Tensor:
            return more & (index < steps)

        state = (0, True, _no_seconds(), tf.TensorArray(self._dtype, size=steps))
        index, _, waited, rows = tf.while_loop(proceed, body, state, parallel_iterations=1)
        # gathering nothing from an array that was never written has no shape
        return tf.cond(index > 0, lambda: rows.gather(tf.range(index)), self._no_rows), index, waited

    def _eager_loop(self, iterator: Any, steps: int, ledger: Ledger) -> tuple[tf.Tensor, int]:
        rows: list[tf.Tensor] = []
        counts = self._counts.tensor()
        while len(rows) < steps:
            with ledger.section("input"):
                batch = next(iterator, None)
            if batch is None:
                break
            rows.append(self._take_step(batch, counts, len(rows)))
        return tf.stack(rows) if rows else self._no_rows(), len(rows)

    def _take(self, take: Callable[[], Any], waited: tf.Tensor) -> tuple[Any, tf.Tensor]:
        """The next batch; and how long steps have waited for theirs, if that is measured."""
        if not (self._timed and clock.may_be_read()):
            return take(), waited
        began = tf.timestamp()
        with tf.control_dependencies([began]):
            batch = take()
        tensors = tf.nest.flatten(batch, expand_composites=True)
        with tf.control_dependencies(tensors):
            came = tf.timestamp()
        if not tf.config.list_logical_devices("GPU"):
            # One operation follows the batch, one the clock: several would wake another thread, which costs more than
            # they do, and the clock would be read late. On a GPU machine the batch stays on the device that it is on.
            with tf.control_dependencies([came]):
                batch = tf.nest.pack_sequence_as(batch, tf.identity_n(tensors), expand_composites=True)
        with tf.device("CPU:0"):
            return batch, waited + (came - began)

    def _no_rows(self) -> tf.Tensor:
        return tf.zeros([0, metrics.FIXED + 2 * len(self.names)], self._dtype)


class StackedExecution(Execution):
    """An `Execution` over `Stacks` of batches, but for "eager" in each mode; in "xla_loop" it is one XLA program.

    Args:
        step, reader, kind, retraces, counts: see `Execution`.
        mode: "graph", "xla_step" or "xla_loop".
        element_spec: of a batch.
        size: batches in a stack, for "xla_loop"; in the others it may be any number.
    """

    def __init__(self, step: Step, *, mode: str, element_spec: Any, size: int | None = None, **more: Any) -> None:
        super().__init__(step, mode=mode, counted=False, **more)
        self._in_xla, self._element_spec, self._size = mode == "xla_loop", element_spec, size
        # what is not traced before must know, too, that the number of examples may vary
        signature = self._signature(element_spec)
        if self._in_xla:
            self._function = xla.program(self._traced_in_xla, signature)
        else:
            self._run = self._loop_in_graph
            self._function = tf.function(self._traced, signature, autograph=False)

    def __call__(
        self, stacks: Stacks, steps: int, fresh: bool = False, ledger: Ledger | None = None
    ) -> tuple[tf.Tensor, int, tf.Tensor]:
        ledger, traces = ledger or Ledger(), self.traces
        rows: list[tf.Tensor] = []
        ran, values = 0, None
        while ran < steps:
            with ledger.section("input"):
                if ran and stacks.fails_next:  # what was trained before it counts
                    break
                part = stacks.take(steps - ran)
            if part is None:
                break
            found, values = (self._in_program if self._in_xla else self._in_graph)(part, ran, fresh, ledger)
            rows += found
            fresh, ran = False, ran + part.count
        self._look_at_traces(traces, self._element_spec)
        if self.awaits_xla and rows:
            with ledger.section("startup"):
                self._compiled()
        if not rows:
            return self._no_rows(), 0, self._read(self._counts.tensor())
        return rows[0] if len(rows) == 1 else tf.concat(rows, 0), ran, values

    def compile(self, stacks: Stacks) -> None:
        """Compiles the program for the batches to come, and runs it for no step.

        Raises:
            tf.errors.OpError: if XLA cannot.
        """
        stack, start, _ = next(stacks.peek().runs())
        numbers = tf.constant(start), tf.constant(0), self._counts.tensor(), tf.constant(False)
        with xla_cache.used():
            self._function(stack, *numbers)[1].numpy()
        self._compiled()

    def _in_graph(self, part: Part, ran: int, fresh: bool, ledger: Ledger) -> tuple[list[tf.Tensor], tf.Tensor]:
        numbers = map(tf.constant, (part.sizes, part.start, part.count))
        rows, _, values = self._counted_call(ledger, part.stack, *numbers, self._counts.tensor(ran), tf.constant(fresh))
        return [rows], values

    def _in_program(self, part: Part, ran: int, fresh: bool, ledger: Ledger) -> tuple[list[tf.Tensor], tf.Tensor]:
        """The same with a call for each size of batches: XLA compiles a program for each."""
        rows = []
        for stack, start, count in part.runs():
            self._check_means(part.sizes[start])
            arguments = tf.constant(start), tf.constant(count), self._counts.tensor(ran), tf.constant(fresh)
            with ledger.section("device"):
                found, values = self._function(stack, *arguments)
            rows.append(found if count == self._size else found[:count])
            fresh, ran = False, ran + count
        return rows, values

    def _check_means(self, size: Size) -> None:
        """Raises `InputError` if a batch has parts of which the step's scalars are not right."""
        if self._division.means:
            of_each = owners(self._element_spec, self._division.parts)
            found = rows_of(size, len(of_each))
            self._division.means_checked([found[of_each.index(i)] for i in range(max(of_each) + 1)], ())

    def _signature(self, element_spec: Any) -> tuple[Any, ...]:
        stack = tf.nest.map_structure(lambda s: tf.TensorSpec([self._size, *s.shape], s.dtype), element_spec)
        number, of_each = tf.TensorSpec([], tf.int32), [len(tf.nest.flatten(stack))] if self._division.parts else []
        sizes = [] if self._in_xla else [tf.TensorSpec([None, *of_each], tf.int32)]
        return stack, *sizes, number, number, counting.SPEC, tf.TensorSpec([], tf.bool)

    def _traced_in_xla(
        self, stack: Any, start: tf.Tensor, count: tf.Tensor, counts: tf.Tensor, fresh: tf.Tensor
    ) -> tuple[tf.Tensor, tf.Tensor]:
        self._begin_trace(fresh)

        def batch(index: tf.Tensor) -> Any:  # not x[...]: XLA would compile a program for each `start`
            return tf.nest.map_structure(lambda x: tf.gather(x, index), stack)

        return self._loop(batch, start, count, self._size, counts), self._read(counts)

    def _loop_in_graph(
        self, stack: Any, sizes: tf.Tensor, start: tf.Tensor, count: tf.Tensor, counts: tf.Tensor
    ) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        varies = [spec.shape[0] is None for spec in tf.nest.flatten(self._element_spec)]

        def batch(index: tf.Tensor) -> Any:
            found = tf.nest.map_structure(lambda x: x[index], stack)
            if not self._division.parts:
                return take(found, 0, sizes[index]) if varies[0] else found
            of_each = zip(tf.nest.flatten(found), tf.unstack(sizes[index]), varies, strict=True)
            return tf.nest.pack_sequence_as(found, [rows(x, 0, n) if vary else x for x, n, vary in of_each])

        return self._loop(batch, start, count, count, counts), count, _no_seconds()

    def _loop(
        self,
        batch: Callable[[tf.Tensor], Any],
        start: tf.Tensor,
        count: tf.Tensor,
        size: int | tf.Tensor,
        counts: tf.Tensor,
    ) -> tf.Tensor:
        """`[size, columns]`: the rows of `count` steps."""

        def body(index: tf.Tensor, rows: tf.TensorArray) -> tuple[tf.Tensor, tf.TensorArray]:
            return index + 1, rows.write(index, self._take_step(batch(start + index), counts, index))

        rows = tf.TensorArray(self._dtype, size=size)
        _, rows = tf.while_loop(lambda index, _: index < count, body, (0, rows), parallel_iterations=1)
        return rows.stack()


class BatchExecution(Execution):
    """One training step on a batch that it is given, in mode "graph", "xla_step" or "eager". Metrics are of it alone.

    Args:
        step, mode, reader, retraces, counts: see `Execution`.
        element_spec: of a batch.
    """

    def __init__(self, step: Step, *, element_spec: Any, **more: Any) -> None:
        super().__init__(step, counted=True, **more)
        self._program: Callable[..., Any] = self._eager_step
        if self._function is not None:
            self._function = tf.function(self._traced_step, self._signature(element_spec), autograph=False)

    def trace(self, element_spec: Any, recorder: Any = None) -> tuple[tf.Variable, ...]:
        found = super().trace(element_spec, recorder)
        if self._function is not None:
            # called directly: a `tf.function` looks for its trace at each call, which takes as long as a small step
            self._program = self._function.get_concrete_function()
        return found

    def on(self, batch: Any) -> tuple[np.ndarray, np.ndarray]:
        """Takes a step. Returns its row and what the reader reads."""
        row, values = self._program(batch, self._counts.tensor())
        return row.numpy(), values.numpy()

    def _signature(self, element_spec: Any) -> tuple[Any, ...]:
        return element_spec, counting.SPEC

    def _traced_step(self, batch: Any, counts: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        self._begin_trace(None)
        return self._take_step(batch, counts, 0), self._read(counts)

    def _eager_step(self, batch: Any, counts: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        if self._reader is not None:
            self._reader.reset()
        return self._take_step(batch, counts, 0), self._read(counts)


def _no_seconds() -> tf.Tensor:
    with tf.device("CPU:0"):
        return tf.zeros([], tf.float64)


def is_own_check(error: tf.errors.OpError) -> bool:
    """Whether an error comes from one of looper's own checks inside the graph."""
    return "looper: " in str(error)


@contextlib.contextmanager
def explaining_checks() -> Iterator[None]:
    """Inside it what such a check finds in a step is an `InputError`."""
    try:
        yield
    except tf.errors.OpError as error:
        if is_own_check(error):
            raise explained(error, 0, 1) from error
        raise


@contextlib.contextmanager
def explaining(first: int, count: int, what: str = "step") -> Iterator[None]:
    """Inside it TensorFlow's errors become those of `explained`."""
    try:
        yield
    except tf.errors.OpError as error:
        raise explained(error, first, count, what) from error


def explained(error: tf.errors.OpError, first: int, count: int, what: str = "step") -> Exception:
    """The error to raise for one of TensorFlow in an execution of `count` steps after the first `first`.

    Steps are numbered as the logs are: the first is step 1.
    """
    text = str(error)
    where = f"{what} {first + 1}" if count == 1 else f"{what}s {first + 1} to {first + count}"
    if is_own_check(error):
        message = re.split(r"[]\n]", text.split("looper: ")[1])[0].replace("\\'", "'")  # which Assert escapes
        return InputError(f"{message} ({where}).")
    if xla_cache.is_to_blame(error):
        return StepError(f"TensorFlow failed in {where}: {xla.why_not(error)}.")
    line, node = line_of_error(error), re.search(r"^Detected at node (\S+) defined at", text, re.MULTILINE)
    at = f", {line}" if line else f", {node[1]}" if node else ""
    unknown = not at and "[Op:__" in text  # of a graph that keeps no lines
    advice = " execution='eager' shows the recipe's line." if unknown else ""
    return StepError(f"TensorFlow failed in {where}{at}: {first_line(error)}.{advice}")
