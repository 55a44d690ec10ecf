"""The gradient pipeline: from a loss to one update, the same on any number of replicas and micro-batches.

The order is: forward per micro-batch, elementwise losses and weights, local sums, gradients, one reduction of
gradients, weights and logs together, one division, unscale, finite check on the reduced gradients, clip, apply (or
skip, and halve the loss scale). Keras' optimizers clip, and check for infinities, before the reduction.
"""

import contextlib
import dataclasses
import functools
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import tensorflow as tf

from looper.base import xla
from looper.base.batches import Length, Parts, count_examples, cut, lengths, parts_in
from looper.base.conditions import run_if
from looper.base.errors import InputError
from looper.base.lines import warn
from looper.base.names import as_tf, path_of
from looper.base.put_back import instead
from looper.recipe import losses, metrics, optimizers
from looper.recipe.averages import WeightAverage
from looper.recipe.precision import LossScale
from looper.step import counting
from looper.step.division import Division
from looper.step.noting import Notes, NotNoted
from looper.step.record import StepRecord
from looper.step.rows import added, shapes_in_a_loop, stays_in_rows, sum_repeated, with_shape

Variables = Sequence[Any]
Forward = Callable[[Any], tuple[object, Mapping[str, object]]]
Part = Callable[[Any, tf.Tensor, Any], tuple[list[str], list[tf.Tensor], "Local"]]
"""From a micro-batch, its number of examples, and how many parts a plain sum is spread over, to the names of the log
pairs, their scalars, and the gradients."""


@dataclasses.dataclass(frozen=True)
class Local:
    """One replica's gradients of one loss, before they are reduced.

    Attributes:
        by_divisor: for each divisor a list of gradients, one for each variable.
        divisors: int or float scalars, this replica's share of the divisors that are known only after the reduction.
        own: for each list of `by_divisor`, whether its divisor is one of those.
        optimizer: what will apply them.
        variables: what they are the gradients of.
        label: what their norm is logged as.
    """

    by_divisor: list[list[Any]]
    divisors: list[tf.Tensor]
    own: list[bool]
    optimizer: Any
    variables: Variables
    label: str = "optimizer"


class Pipeline:
    """Turns losses into updates. Made once per trainer, in the strategy's scope; used while steps are traced.

    Args:
        strategy: the strategy in whose replica context the methods are called.
        clip_norm: largest global norm, or None.
        clip_value: largest absolute value of an element, or None.
        accumulate: number of micro-batches per step.
        loss_scale: the dynamic loss scale, or None for none.
        average: moving averages of the variables, or None.
        transform: the recipe's own `transform_gradients`, or None.
        dtype: of sums and weights, float32 or float64.
        workers: how many processes the replicas are in.

    Attributes:
        skip_nonfinite: whether to skip updates with non-finite gradients, as under a loss scale.
        watch: what is told of losses and gradients while a step is traced: an audit's `Recorder`, or None.
    """

    def __init__(
        self,
        strategy: tf.distribute.Strategy,
        *,
        clip_norm: float | None,
        clip_value: float | None,
        accumulate: int,
        loss_scale: LossScale | None,
        average: WeightAverage | None,
        transform: Callable[[list[Any], list[Any]], Sequence[Any]] | None = None,
        dtype: tf.DType,
        workers: int,
    ) -> None:
        self.strategy = strategy
        self.replicas = strategy.num_replicas_in_sync
        # a MirroredStrategy of one device, too, asks all its replicas for an update, which none can do in a `tf.cond`
        mirrored = tf.distribute.MirroredStrategy | tf.distribute.MultiWorkerMirroredStrategy
        self._together = self.replicas > 1 or isinstance(strategy, mirrored)
        # where no collective, which has one shape in a loop, need carry what has as many rows as a batch has
        self.in_one_process = workers == 1
        self.clip_norm, self.clip_value = clip_norm, clip_value
        self.accumulate = accumulate
        self.loss_scale = loss_scale
        self.average = average
        self.transform = transform
        self.dtype = dtype
        self.skip_nonfinite = False
        self.watch: Any = None
        self._thread = threading.local()  # a mirrored strategy traces each replica in a thread of its own

    def set_skipping(self, skip: bool) -> None:
        """Sets whether updates with gradients that are not finite are skipped in steps that are traced from now on."""
        self.skip_nonfinite = skip

    def watched_by(self, watch: Any) -> contextlib.AbstractContextManager[None]:
        """Inside it, an audit's `Recorder` is told of losses and gradients while a step is traced."""
        return instead(self, "watch", watch)

    def division(self, parts: Parts = ()) -> Division:
        """How a training step divides batches with these parts."""
        return Division(parts, self.replicas, self.accumulate)

    @contextlib.contextmanager
    def step(
        self,
        examples: tf.Tensor,
        global_examples: tf.Tensor,
        idle: bool = False,
        in_xla: bool = False,
        notes: Notes | None = None,
        division: Division | None = None,
        of_parts: Sequence[Length] = (),
        evaluating: bool = False,
    ) -> Iterator[StepRecord]:
        """Surrounds the tracing of one replica's step. Arguments as for `StepRecord`."""
        division = division or self.division()
        self._thread.record = StepRecord(examples, global_examples, idle, in_xla, notes, division, of_parts, evaluating)
        try:
            yield self._thread.record
        finally:
            del self._thread.record

    @property
    def is_noting(self) -> bool:
        """Whether this thread traces a step that is only noted."""
        record = getattr(self._thread, "record", None)
        return record is not None and record.notes is not None

    def _options(self) -> list[str]:
        """The names of the options given that act in `minimize`."""
        used = {
            "clip_norm": self.clip_norm,
            "clip_value": self.clip_value,
            "ema": self.average,
            "precision='mixed_float16'": self.loss_scale,
        }
        return [name for name, value in used.items() if value is not None]

    def tell_of_own_update(self, optimizer: str) -> None:
        """Warns of an update that a step makes with an optimizer's own `apply`, which is called by the class's name.

        Raises:
            InputError: if there are several replicas, or options that act in `minimize`.
        """
        record = getattr(self._thread, "record", None)
        if record is None:  # somebody else's, in another thread
            return
        if record.notes is not None:
            raise NotNoted
        said, remedy = f"train_step calls {optimizer}.apply", "self.minimize(loss, tape, optimizer)"
        if self.replicas > 1:
            raise InputError(
                f"{said}: on {self.replicas} replicas the gradients are those of each one's part of the batch. Call "
                f"{remedy} in its place."
            )
        if given := self._options():
            raise InputError(f"{said}, which goes around {' and '.join(given)}: call {remedy} in its place.")
        warn(f"{said}: looper neither checks nor logs its gradients. {remedy} does.")

    def check_used(self, record: StepRecord) -> None:
        """Raises `InputError` if an own `train_step` went around the pipeline and the options that act in it."""
        given = self._options()
        if given and not record.norms:
            raise InputError(
                f"{' and '.join(given)} act in self.minimize(loss, tape) and self.apply_gradients, which this "
                "train_step does not call: call one in place of optimizer.apply."
            )

    def minimize(
        self, loss: object, tape: tf.GradientTape, optimizer: Any, variables: Variables, label: str = "optimizer"
    ) -> None:
        """One update from one loss: for a recipe's own `train_step`. `label` is what its gradient norm is logged as.

        Raises:
            InputError: if called outside a step, or a variable has no gradient.
        """
        record = self._record("minimize")
        if record.notes is not None:
            record.notes.note("minimize", optimizer, variables)
            return
        local = self._local(record, loss, tape, optimizer, variables, label)
        if record.waiting:
            record.keep(local)
        elif local.variables:
            self._update(record, dataclasses.replace(local, by_divisor=record.checked(local.by_divisor)), [])

    def gradients(self, loss: object, tape: tf.GradientTape, variables: Variables) -> list[Any]:
        """The global batch's gradients of a loss, one for each variable, None where there is none.

        Raises:
            InputError: if called outside a step.
        """
        record = self._record("gradients")
        if record.notes is not None:
            record.notes.note("gradients", None, variables)
            return tape.gradient(losses.values_of(loss), [as_tf(v) for v in variables])
        terms = record.weighted(record.terms(loss, record.examples))
        by_divisor, divisors = self._local_gradients(tape, terms, self._scale(), variables, record.global_examples)
        by_divisor = record.checked(by_divisor)
        by_divisor, reached = self._reaching(by_divisor, variables)
        if not reached:
            return [None] * len(variables)
        if self.replicas > 1:
            vector, by_divisor = tf.distribute.get_replica_context().merge_call(
                self._reduce, args=(self._vector(divisors), by_divisor), kwargs={"to": reached}
            )
            divisors = tf.unstack(vector, num=len(divisors))
        found = self._divide(divisors, self._own(terms), self._scale())(by_divisor)
        if self.skips:
            record.note_finite(reached, tf.math.is_finite(global_norm(found)))
        by_id = {id(variable): gradient for variable, gradient in zip(reached, found, strict=True)}
        return [by_id.get(id(variable)) for variable in variables]

    def apply_gradients(self, gradients: Sequence[Any], variables: Variables, optimizer: Any, label: str) -> None:
        """Checks, clips and applies gradients of the global batch; on all replicas the first replica's.

        Args:
            gradients: for each variable a tensor, slices, or None to leave the variable alone.
            variables: what they are the gradients of.
            optimizer: a Keras optimizer.
            label: what their norm is logged as.

        Raises:
            InputError: if called outside a step, there is no gradient, or one has another shape than its variable.
        """
        record = self._record("apply_gradients")
        there = [(as_gradient(g, v), v) for g, v in zip(gradients, variables, strict=True) if g is not None]
        if not there:
            raise InputError("apply_gradients() was given no gradient: there is nothing to apply.")
        given, variables = [g for g, _ in there], [v for _, v in there]
        if record.notes is not None:
            record.notes.note("apply_gradients", optimizer, variables)
            return
        finite = record.were_finite(variables)
        record.note(label, *self._apply_whole(given, optimizer, variables, finite))

    def _apply_whole(
        self, gradients: list[Any], optimizer: Any, variables: Variables, finite: Sequence[tf.Tensor] = ()
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """Checks, clips and applies gradients of the global batch, which each replica has: see `_apply`."""
        if not self._together:
            return self._apply(gradients, None, optimizer, variables, finite)
        return tf.distribute.get_replica_context().merge_call(
            self._apply_first, args=(gradients, finite), kwargs={"optimizer": optimizer, "to": variables}
        )

    def _apply_first(
        self, strategy: tf.distribute.Strategy, gradients: Any, finite: Any, optimizer: Any, to: Variables
    ) -> tuple[tf.Tensor, tf.Tensor]:
        first = [self._first(gradient) for gradient in gradients]
        return self._apply(first, None, optimizer, to, [self._first(each) for each in finite])

    def _first(self, value: Any) -> Any:
        """The first replica's value."""
        return self.strategy.experimental_local_results(value)[0]

    def default_step(self, forward: Forward, batch: Any, optimizer: Any, variables: Variables) -> dict[str, tf.Tensor]:
        """The default step inside a recipe's own: its logs, each a scalar that is the mean over the global batch.

        Where the step returns these very tensors, their sums over all replicas are logged as they are.

        Raises:
            InputError: if called outside a step, or a variable has no gradient.
        """
        record = self._record("train_step")
        if record.notes is not None:
            record.notes.note("super().train_step", optimizer, variables)
            loss, logs = forward(batch)
            pairs = metrics.local_pairs({"loss": loss, **logs}, record.examples, 1, self.dtype, record.idle)
            return record.logs_of(*pairs)
        part = self.default_part(forward, optimizer, variables)
        return record.logs_of(*self.accumulated(part, batch, record.in_xla))

    def all_gather(self, x: tf.Tensor) -> tf.Tensor:
        """The rows of all replicas, of those whose examples count."""
        record = self._record("all_gather", evaluating=True)
        if not record.exchanges("all_gather", self.replicas):
            return x
        if record.idle:
            x = x[: tf.where(record.examples > 0, tf.int32.max, 0)]
        if not self.in_one_process:
            return tf.distribute.get_replica_context().all_gather(x, axis=0)
        return _gathered(x)

    def all_reduce(self, x: tf.Tensor) -> tf.Tensor:
        """The sum over all replicas, over those whose examples count."""
        record = self._record("all_reduce", evaluating=True)
        if not record.exchanges("all_reduce", self.replicas):
            return x
        if record.idle:
            x = tf.where(record.examples > 0, x, tf.zeros_like(x))
        return tf.distribute.get_replica_context().all_reduce(tf.distribute.ReduceOp.SUM, x)

    def _record(self, method: str, evaluating: bool = False) -> StepRecord:
        record = getattr(self._thread, "record", None)
        if record is None or (record.evaluating and not evaluating):
            raise InputError(f"{method}() was called outside a step: it needs the batch that looper is stepping on.")
        record.check_place(method)
        return record

    def default_part(self, forward: Forward, optimizer: Any, variables: Variables) -> Part:
        """Forward and backward of the default step; `forward` goes from a batch to `(loss, logs)`."""

        def part(batch: Any, examples: tf.Tensor, shares: Any) -> tuple[list[str], list[tf.Tensor], Local]:
            record = self._thread.record
            with tf.GradientTape(persistent=not self._alone) as tape:
                tape.watch([v for v in map(as_tf, variables) if not v.trainable])  # made while they were frozen
                loss, logs = forward(batch)
            whole = losses.as_loss("loss", loss, examples)
            names, scalars = metrics.local_pairs({"loss": whole, **logs}, examples, shares, self.dtype, record.idle)
            record.note_means(logs, examples, batch)
            return names, scalars, self._local(record, whole, tape, optimizer, variables)

        return part

    def own_part(self, train_step: Callable[[Any], Mapping[str, object]]) -> Part:
        """Forward and backward of a recipe's own `train_step` whose one `minimize` may wait with its update."""

        def part(batch: Any, examples: tf.Tensor, shares: Any) -> tuple[list[str], list[tf.Tensor], Local]:
            record = self._thread.record
            logs = metrics.checked("train_step", train_step(batch))
            names, scalars = metrics.local_pairs(logs, examples, shares, self.dtype, record.idle)
            record.note_means(logs, examples, batch)
            return names, scalars, record.take()

        return part

    def accumulated(
        self, part: Part, batch: Any, in_xla: bool = False, waiting: bool = False
    ) -> tuple[list[str], list[tf.Tensor]]:
        """A whole step: forward and backward of each micro-batch, one reduction, one update.

        Args:
            part: what is done with a micro-batch.
            batch: this replica's batch.
            in_xla: whether to make forward and backward an XLA program, as several replicas do, whose reduction and
                update XLA cannot have.
            waiting: whether `minimize` is called in `part`, and waits.

        Returns:
            The names of the log pairs, and the pairs' scalars summed over all replicas.
        """
        record = self._thread.record
        parts, count = parts_in(batch, record.division.parts), None
        if self.accumulate > 1:  # a small last batch has fewer micro-batches, so that none is empty
            shortest = tf.reduce_min(tf.stack(lengths(batch, parts))) if parts else count_examples(batch)
            count = tf.clip_by_value(shortest, 1, self.accumulate)

        def micro_step(index: int | tf.Tensor) -> tuple:
            micro_batch = batch if count is None else _micro_batch(batch, index, count, parts)
            examples = record.count(micro_batch, parts)
            # A plain sum's weight is 1 over the whole step, however many micro-batches there are.
            shares = self.replicas if count is None else tf.cast(self.replicas * count, self.dtype)
            with record.micro_batch(examples, waiting, whole=count is None and not in_xla):
                names, scalars, local = part(micro_batch, examples, shares)
            return (names, local), local.by_divisor, local.divisors, scalars

        if in_xla:
            micro_step = _in_xla(micro_step)  # type: ignore[assignment]  # its argument has no name then
        (names, local), *sums = micro_step(0)
        sums = record.checked(sums)
        if count is not None:
            sums = _summed(lambda index: list(micro_step(index)[1:]), sums, count)
        by_divisor, divisors, scalars = sums
        by_divisor = [[with_shape(g, v.shape) for g, v in zip(gs, local.variables, strict=True)] for gs in by_divisor]
        if not local.variables:  # in an audit, which tells it
            return names, scalars
        return names, self._update(
            record, dataclasses.replace(local, by_divisor=by_divisor, divisors=divisors), scalars
        )

    @property
    def _alone(self) -> bool:
        """One replica, no accumulation: all divisors are known before the gradient is taken."""
        return self.replicas == 1 and self.accumulate == 1

    @staticmethod
    def _own(terms: Sequence[losses.Term]) -> list[bool]:
        """For each group of terms, whether its divisor is known only after the reduction."""
        return [group[0].group is None for group in losses.by_divisor(terms)]

    def _scale(self, optimizer: Any = None) -> tf.Tensor | None:
        """The factor of the loss, float64: the dynamic loss scale, the optimizer's `loss_scale_factor`, or None."""
        factor = None if optimizer is None else optimizers.inner(optimizer).loss_scale_factor
        factor = None if factor is None else tf.constant(factor, tf.float64)
        if self.loss_scale is None:
            return factor
        scale = tf.cast(self.loss_scale.scale, tf.float64)
        return scale if factor is None else scale * factor

    @property
    def skips(self) -> bool:
        """Whether updates with gradients that are not finite are skipped."""
        return self.loss_scale is not None or self.skip_nonfinite

    def _local(
        self,
        record: StepRecord,
        loss: object,
        tape: tf.GradientTape,
        optimizer: Any,
        variables: Variables,
        label: str = "optimizer",
    ) -> Local:
        """This replica's gradients of a loss.

        Raises:
            InputError: if a variable has no gradient, and the loss is not partial.
        """
        terms = record.weighted(record.terms(loss, record.examples))
        scale = self._scale(optimizer)
        by_divisor, divisors = self._local_gradients(tape, terms, scale, variables, record.global_examples)
        by_divisor, reached = self._reaching(by_divisor, variables)
        self._check_reached(variables, reached, isinstance(loss, losses.Loss) and loss.partial)
        return Local(by_divisor, divisors, self._own(terms), optimizer, reached, label)

    def _local_gradients(
        self,
        tape: tf.GradientTape,
        terms: Sequence[losses.Term],
        scale: tf.Tensor | None,
        variables: Variables,
        examples: tf.Tensor,
    ) -> tuple[list[list[Any]], list[tf.Tensor]]:
        """Gradients of this replica's weighted sums, times the loss scale, and the sums' divisors.

        Alone, there is one gradient and nothing left to divide by. Otherwise there is a gradient for each divisor;
        all are divided by the global number of examples, which keeps float16 gradients as small as those of the
        mean, and a divisor of a term's own is divided by it too, so that it cancels.
        """
        sources = [as_tf(v) for v in variables]
        if self.watch is not None:
            self.watch.note_loss({term.values.dtype.name for term in terms})
        groups = losses.by_divisor(terms)

        def seed(term: losses.Term) -> tf.Tensor:
            weights, dtype = term.weights, term.weights.dtype
            if term.divisor is not None:
                weights = tf.math.divide_no_nan(weights, term.divisor if self._alone else tf.cast(examples, dtype))
            weights = weights if scale is None else weights * tf.cast(scale, dtype)
            return tf.broadcast_to(tf.cast(weights, term.values.dtype), tf.shape(term.values))

        def gradients(terms: Sequence[losses.Term]) -> list[Any]:
            # Seeds rather than a weighted sum: what is computed after the tape has closed is not recorded.
            values, seeds = [t.values for t in terms], [seed(t) for t in terms]
            try:
                found = tape.gradient(values, sources, output_gradients=seeds)
            except RuntimeError as error:
                if "non-persistent" not in str(error):
                    raise
                raise InputError(
                    "this loss has terms with different divisors, and takes more than one gradient: make the tape with "
                    "tf.GradientTape(persistent=True)."
                ) from None
            return [None if g is None else self._in_rows_or_whole(g) for g in found]

        if self._alone:
            by_divisor, divisors = [gradients([t for group in groups for t in group])], []
        else:
            by_divisor = [gradients(group) for group in groups]
            own = [group[0].divisor for group in groups if group[0].group is None]
            divisors = [tf.cast(d, self.dtype) / tf.cast(examples, self.dtype) for d in own]
        return by_divisor, divisors

    def _in_rows_or_whole(self, gradient: Any) -> Any:
        """A gradient with each row once, or as a tensor where it is added up and that is faster."""
        in_a_loop_of_xla = self.replicas == 1 and xla.traces()  # where the number of rows cannot grow
        if self._alone or (stays_in_rows(gradient) and self.in_one_process and not in_a_loop_of_xla):
            return sum_repeated(gradient)
        return tf.convert_to_tensor(gradient)

    def _update(self, record: StepRecord, local: Local, scalars: list[tf.Tensor]) -> list[tf.Tensor]:
        """Reduces everything over the replicas and updates the variables. Returns the reduced `scalars`."""
        if self.replicas == 1:
            combine = self._divide(local.divisors, local.own, self._scale(local.optimizer))
            reduced = combine([[self._first(g) for g in gs] for gs in local.by_divisor])
            record.note(local.label, *self._apply_whole(reduced, local.optimizer, local.variables))
            return scalars
        # merge_call traces this in another thread, once for all replicas, as the first one asks for it
        vector, skipped, norm = tf.distribute.get_replica_context().merge_call(
            functools.partial(self._reduce_and_apply, local),
            args=(self._vector([*local.divisors, *scalars]), local.by_divisor),
        )
        record.note(local.label, skipped, norm)
        return tf.unstack(vector[len(local.divisors) :], num=len(scalars))

    def _vector(self, numbers: Sequence[tf.Tensor]) -> tf.Tensor:
        return tf.stack(list(numbers)) if numbers else tf.zeros([0], self.dtype)

    def _reduce_and_apply(
        self, local: Local, strategy: tf.distribute.Strategy, vector: Any, by_divisor: Any
    ) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        vector, by_divisor = self._reduce(strategy, vector, by_divisor, local.variables)
        divisors = tf.unstack(vector[: len(local.divisors)], num=len(local.divisors))
        combine = self._divide(divisors, local.own, self._scale(local.optimizer))
        reduced = combine([[self._first(g) for g in gs] for gs in by_divisor])

        def on_each(apply: Callable[[list[Any]], None]) -> None:
            strategy.run(lambda by_divisor: apply([_as_rounded(g) for g in combine(by_divisor)]), (by_divisor,))

        return vector, *self._apply(reduced, on_each, local.optimizer, local.variables)

    def _reduce(
        self, strategy: tf.distribute.Strategy, vector: Any, by_divisor: Any, to: Variables
    ) -> tuple[tf.Tensor, list[list[Any]]]:
        """Sums a vector of scalars, and gradients, over the replicas, all at once; in cross-replica context."""
        destinations = [as_tf(v) for v in to]
        pairs = [(vector, destinations[0])]
        pairs += [pair for gs in by_divisor for pair in zip(gs, destinations, strict=True)]
        in_rows = [isinstance(self._first(value), tf.IndexedSlices) for value, _ in pairs]
        whole = [pair for pair, rows in zip(pairs, in_rows, strict=True) if not rows]
        reduced = iter(strategy.extended.batch_reduce_to(tf.distribute.ReduceOp.SUM, whole))
        vector, *flat = (
            added(strategy.experimental_local_results(value)) if rows else next(reduced)
            for (value, _), rows in zip(pairs, in_rows, strict=True)
        )
        size = len(destinations)
        return self._first(vector), [flat[i : i + size] for i in range(0, len(flat), size)]

    def _divide(
        self, divisors: Sequence[tf.Tensor], own: Sequence[bool], scale: tf.Tensor | None
    ) -> Callable[[list[list[Any]]], list[Any]]:
        """What makes of the summed gradients of each divisor the gradients: divides, unscales and adds up."""
        remaining = iter(divisors)
        own = [False] if self._alone else own
        factors = [_reciprocal(next(remaining) if is_own else None, scale) for is_own in own]

        def combine(by_divisor: list[list[Any]]) -> list[Any]:
            scaled = [[_times(g, factor) for g in gs] for gs, factor in zip(by_divisor, factors, strict=True)]
            sums = [added(gs) for gs in zip(*scaled, strict=True)]
            return sums if self._alone else [sum_repeated(g) for g in sums]

        return combine

    def _apply(
        self,
        reduced: list[Any],
        on_each: Callable[[Callable[[list[Any]], None]], None] | None,
        optimizer: Any,
        variables: Variables,
        were_finite: Sequence[tf.Tensor] = (),
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """Checks, transforms, clips and applies the global batch's gradients; in cross-replica context on replicas.

        Args:
            reduced: the gradients.
            on_each: calls a function on each replica, with the gradients that it has there; None to take `reduced`.
            optimizer: a Keras optimizer.
            variables: what they are the gradients of.
            were_finite: bool scalars; the update is skipped, where such updates are, if one is False.

        Returns:
            1 if the update was skipped, else 0, and the gradients' norm before clipping.
        """
        if self.watch is not None:
            self.watch.note_gradients(variables, reduced)
        norm = global_norm(reduced)
        if self.transform is not None:  # once for all replicas: what it draws cannot drive them apart
            were_finite = [*were_finite, tf.math.is_finite(norm)]  # which it may hide
            reduced, on_each = self._transformed(reduced, variables), None
            norm = global_norm(reduced)
        clip = None if self.clip_norm is None else self.clip_norm / tf.maximum(norm, self.clip_norm)
        counted = counting.here()  # a learning rate may follow the length of the run

        def apply(gradients: list[Any]) -> None:
            gradients = [_times(g, clip) for g in gradients]
            if self.clip_value is not None:
                gradients = [tf.clip_by_value(g, -self.clip_value, self.clip_value) for g in gradients]
            with counted():
                optimizers.inner(optimizer).apply(gradients, variables)

        def apply_on_all() -> tf.Tensor:
            # around all replicas: their threads take turns
            if not self._together:
                run = functools.partial(apply, reduced)
            elif on_each is None:
                run = functools.partial(self.strategy.run, lambda: apply(reduced))
            else:
                run = functools.partial(on_each, apply)
            optimizers.apply_reduced(optimizer, run, self._together)
            if self.average is not None:  # gradients that were only accumulated are no update
                averaged = [as_tf(v) for v in variables]
                run_if(optimizers.updated(optimizer), lambda: self.average.update(averaged, self.strategy))
            return tf.constant(0, tf.int32)

        if not self.skips:
            return apply_on_all(), norm
        finite = functools.reduce(tf.logical_and, were_finite, tf.math.is_finite(norm))
        return tf.cond(finite, apply_on_all, lambda: tf.constant(1, tf.int32)), norm

    def _transformed(self, gradients: list[Any], variables: Variables) -> list[Any]:
        """The gradients as the recipe's `transform_gradients` returns them."""
        found = self.transform(list(gradients), list(variables))
        if not isinstance(found, list | tuple) or len(found) != len(gradients):
            what = f"{len(found)} things" if isinstance(found, list | tuple) else type(found).__name__
            raise InputError(f"transform_gradients returned {what}; expected {len(gradients)} gradients, as given.")
        for new, old, variable in zip(found, gradients, variables, strict=True):
            if not tf.is_tensor(new) or not new.shape.is_compatible_with(old.shape):
                what = f"a gradient of shape {new.shape}" if tf.is_tensor(new) else type(new).__name__
                raise InputError(f"transform_gradients returned {what} for {path_of(variable)} of shape {old.shape}.")
        return [
            g if isinstance(g, tf.IndexedSlices) else tf.cast(g, old.dtype)
            for g, old in zip(found, gradients, strict=True)
        ]

    def _reaching(self, by_divisor: list[list[Any]], variables: Variables) -> tuple[list[list[Any]], Variables]:
        """The gradients and variables without those that no gradient reaches."""
        reached = [any(g is not None for g in gs) for gs in zip(*by_divisor, strict=True)]
        variables = [v for v, there in zip(variables, reached, strict=True) if there]
        reaching = [[g for g, there in zip(gs, reached, strict=True) if there] for gs in by_divisor]
        if len(reaching) > 1:
            reaching = [
                [tf.zeros(v.shape, v.dtype) if g is None else g for g, v in zip(gs, variables, strict=True)]
                for gs in reaching
            ]
        return reaching, variables

    def _check_reached(self, variables: Variables, reached: Variables, partial: bool) -> None:
        """Raises `InputError` if no gradient reaches a variable, unless the loss is partial or an audit is told."""
        there = set(map(id, reached))
        missing = [v for v in variables if id(v) not in there]
        if not missing or (partial and reached):
            return
        if self.watch is not None and self.watch.note_missing(missing):
            return
        names = ", ".join(map(path_of, missing))
        raise InputError(
            f"no gradient reaches the trainable variable{'s' if len(missing) > 1 else ''} {names}: "
            "the loss does not depend on it. Set layer.trainable = False, or give minimize(variables=...) what it "
            "trains."
        )


def as_gradient(gradient: Any, variable: Any) -> Any:
    """A gradient that a recipe gives, as a tensor of its variable's dtype, or slices in which each row stands once.

    Raises:
        InputError: if it has another shape than the variable.


    Example:
        >>> as_gradient([1, 2], tf.Variable([0.0, 0.0])).numpy().tolist()
        [1.0, 2.0]
    """
    dtype = as_tf(variable).dtype
    if isinstance(gradient, tf.IndexedSlices):
        found = sum_repeated(tf.IndexedSlices(tf.cast(gradient.values, dtype), gradient.indices, gradient.dense_shape))
    else:
        found = tf.cast(gradient, dtype) if tf.is_tensor(gradient) else tf.convert_to_tensor(gradient, dtype)
    if not found.shape.is_compatible_with(variable.shape):
        raise InputError(
            f"apply_gradients() was given a gradient of shape {found.shape} for {path_of(variable)} of shape "
            f"{variable.shape}."
        )
    return found


def global_norm(gradients: Sequence[Any]) -> tf.Tensor:
    """The L2 norm of all gradients together, float32 or float64 scalar; infinite or NaN if any element is.

    Slices have each row once: see `looper.step.rows`.

    Example:
        >>> float(global_norm([tf.constant([3.0]), tf.constant([4.0])]))
        5.0
    """
    values = [g.values if isinstance(g, tf.IndexedSlices) else g for g in gradients]
    found = [tf.cast(each, tf.float32) if each.dtype.size < 4 else each for each in values]
    sums = _sums_of_squares(found) if xla.traces_for_cpu() else [2.0 * tf.nn.l2_loss(each) for each in found]
    dtype = tf.float64 if any(each.dtype == tf.float64 for each in sums) else tf.float32
    return tf.sqrt(tf.add_n([tf.cast(each, dtype) for each in sums]))


JOINED = 1 << 16
"""The most elements, if they are known, of a tensor that is copied to be added up with others."""


def _sums_of_squares(tensors: Sequence[tf.Tensor]) -> list[tf.Tensor]:
    """Of small tensors with the same last axis together: of all their rows first, and then along that axis.

    XLA on a CPU adds along the last axis element by element, and along the first with vectors, and each reduction is a
    program to compile and to call: see `benchmarks.gradient_norm`.
    """
    rows: dict[Any, list[tf.Tensor]] = {}
    for i, tensor in enumerate(tensors):
        last = (tensor.shape[-1] if tensor.shape.rank else None) or 1  # 1 where it is not known
        alone = i if (tensor.shape.num_elements() or 0) > JOINED else None
        rows.setdefault((tensor.dtype, last, alone), []).append(tf.reshape(tf.square(tensor), [-1, last]))
    return [tf.reduce_sum(tf.reduce_sum(tf.concat(same, 0), 0)) for same in rows.values()]


def _in_xla(micro_step: Callable[[Any], tuple]) -> Callable[[Any], tuple]:
    """The same, with what it computes as an XLA program."""

    def compiled(index: int | tf.Tensor) -> tuple:
        known = None

        def traced(index: tf.Tensor) -> list:
            nonlocal known
            known, *sums = micro_step(index)
            return sums

        sums = xla.program(traced)(tf.constant(index) if isinstance(index, int) else index)
        return known, *sums

    return compiled


@tf.custom_gradient
def _gathered(x: tf.Tensor) -> tuple[tf.Tensor, Callable[[tf.Tensor], tf.Tensor]]:
    """The rows of all replicas of one process, which may have different numbers of them; and its gradient."""
    context = tf.distribute.get_replica_context()
    size = tf.shape(x)[0]

    def join(strategy: tf.distribute.Strategy, x: Any, size: Any) -> tuple[tf.Tensor, tf.Tensor]:
        every = strategy.experimental_local_results
        return tf.concat(every(x), 0), tf.stack(every(size))

    def add(strategy: tf.distribute.Strategy, x: Any) -> tf.Tensor:
        return tf.add_n(strategy.experimental_local_results(x))

    found, sizes = context.merge_call(join, args=(x, size))

    def gradient(upstream: tf.Tensor) -> tf.Tensor:
        total = context.merge_call(add, args=(tf.convert_to_tensor(upstream),))
        start = tf.reduce_sum(sizes[: context.replica_id_in_sync_group])
        return total[start : start + size]

    return found, gradient


def _summed(more: Callable[[tf.Tensor], list], sums: list, count: tf.Tensor) -> list:
    """`sums`, of index 0, with what `more` gives for the indices 1 to `count - 1`, added up in the graph."""

    def body(index: tf.Tensor, *flat: tf.Tensor) -> tuple:
        so_far = tf.nest.pack_sequence_as(sums, flat, expand_composites=True)
        found = tf.nest.map_structure(lambda a, b: added([a, b]), so_far, more(index))
        return index + 1, *tf.nest.flatten(found, expand_composites=True)

    flat = tf.nest.flatten(sums, expand_composites=True)
    shapes = [shape for each in tf.nest.flatten(sums) for shape in shapes_in_a_loop(each)]
    _, *flat = tf.while_loop(
        lambda index, *_: index < count,
        body,
        (1, *flat),
        shape_invariants=(tf.TensorShape([]), *shapes),
        parallel_iterations=1,
    )
    return tf.nest.pack_sequence_as(sums, flat, expand_composites=True)


def _micro_batch(batch: Any, index: int | tf.Tensor, count: tf.Tensor, parts: Parts) -> Any:
    return cut(batch, lambda size: (size * index // count, size * (index + 1) // count), parts)[0]


def _times(gradient: Any, factor: tf.Tensor | None) -> Any:
    if factor is None:
        return gradient
    if isinstance(gradient, tf.IndexedSlices):
        values = gradient.values * tf.cast(factor, gradient.dtype)
        return tf.IndexedSlices(values, gradient.indices, gradient.dense_shape)
    return gradient * tf.cast(factor, gradient.dtype)


def _as_rounded(gradient: Any) -> Any:
    """The gradient, of which TensorFlow does not multiply the factor with the optimizer's first.

    Its optimizer of graphs turns `rate * (factor * gradient)` into `(rate * factor) * gradient` where nothing else uses
    the product (`MinimizeBroadcasts` in TensorFlow 2.21's arithmetic optimizer). The norm uses that of the first
    replica, which alone would be rounded otherwise then.
    """
    return tf.nest.map_structure(
        lambda x: tf.raw_ops.Snapshot(input=x) if x.dtype.is_floating else x, gradient, expand_composites=True
    )


def _reciprocal(divisor: tf.Tensor | None, scale: tf.Tensor | None) -> tf.Tensor | None:
    if divisor is None:
        return None if scale is None else 1.0 / scale
    return tf.math.divide_no_nan(
        tf.ones_like(divisor), divisor if scale is None else divisor * tf.cast(scale, divisor.dtype)
    )
