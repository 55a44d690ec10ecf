"""The gradient pipeline: from a loss to one update, the same on any number of replicas and micro-batches.

The order is: forward per micro-batch, elementwise losses and weights, local sums, gradients, one reduction of
gradients, weights and logs together, one division, unscale, finite check on the reduced gradients, clip, apply (or
skip, and halve the loss scale). Keras' optimizers clip, and check for infinities, before the reduction.
"""

import contextlib
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import tensorflow as tf

from looper.base import xla
from looper.base.batches import Length, Parts, count_examples, cut, lengths, parts_in
from looper.base.errors import InputError
from looper.base.names import as_tf, path_of
from looper.recipe import losses, metrics, optimizers
from looper.recipe.averages import WeightAverage
from looper.recipe.precision import LossScale
from looper.step.division import Division
from looper.step.rows import sum_repeated

Variables = Sequence[Any]
Forward = Callable[[Any], tuple[object, Mapping[str, object]]]


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

    Attributes:
        skip_nonfinite: whether to skip updates with non-finite gradients, as under a loss scale. Set it before
            tracing.
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
    ) -> None:
        self.strategy = strategy
        self.replicas = strategy.num_replicas_in_sync
        self.clip_norm, self.clip_value = clip_norm, clip_value
        self.accumulate = accumulate
        self.loss_scale = loss_scale
        self.average = average
        self.transform = transform
        self.dtype = dtype
        self.skip_nonfinite = False
        self.watch: Any = None
        self._thread = threading.local()  # a mirrored strategy traces each replica in a thread of its own

    @contextlib.contextmanager
    def step(
        self,
        examples: tf.Tensor,
        global_examples: tf.Tensor,
        idle: bool = False,
        division: Division | None = None,
        of_parts: Sequence[Length] = (),
    ) -> Iterator["StepRecord"]:
        """Surrounds the tracing of one replica's step, which may have no examples if `idle`. Collects what its updates
        report. `division` and `of_parts`: how batches are divided, and the lengths of the global batch's parts."""
        division = division or Division((), self.replicas, self.accumulate)
        self._thread.record = StepRecord(examples, global_examples, idle, division, of_parts)
        try:
            yield self._thread.record
        finally:
            del self._thread.record

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
        if getattr(self._thread, "record", None) is None:  # somebody else's, in another thread
            return
        said, remedy = f"train_step calls {optimizer}.apply", "self.minimize(loss, tape, optimizer)"
        if self.replicas > 1:
            raise InputError(
                f"{said}: on {self.replicas} replicas the gradients are those of each one's part of the batch. Call "
                f"{remedy} in its place."
            )
        if given := self._options():
            raise InputError(f"{said}, which goes around {' and '.join(given)}: call {remedy} in its place.")
        warnings.warn(f"{said}: looper neither checks nor logs its gradients. {remedy} does.", stacklevel=3)

    def check_used(self, record: "StepRecord") -> None:
        """Raises `InputError` if an own `train_step` went around the pipeline and the options that act in it."""
        if self.accumulate > 1 and not record.norms:
            raise InputError(
                f"accumulate={self.accumulate} is for compute_loss and super().train_step(batch), which this "
                "train_step does not call. Leave accumulate out, or add up there by yourself."
            )
        given = self._options()
        if given and not record.norms:
            raise InputError(
                f"{' and '.join(given)} act in self.minimize(loss, tape), which this train_step does not call: call it "
                "in place of optimizer.apply."
            )

    def minimize(
        self, loss: object, tape: tf.GradientTape, optimizer: Any, variables: Variables, label: str = "optimizer"
    ) -> None:
        """One update from one loss: for a recipe's own `train_step`. `label` is what its gradient norm is logged as.

        Raises:
            InputError: if called outside a step, or a variable has no gradient.
        """
        record = self._record("minimize")
        if self.accumulate > 1:
            raise InputError(
                f"accumulate={self.accumulate} is for compute_loss and super().train_step(batch): minimize() in a "
                "train_step of your own updates at once. Leave accumulate out, or add up there by yourself."
            )
        terms = record.weighted(record.terms(loss, record.examples))
        by_divisor, divisors = self._local_gradients(tape, terms, optimizer, variables, record.global_examples)
        by_divisor = record.checked(by_divisor)
        by_divisor, variables = self._drop_missing(
            by_divisor, variables, isinstance(loss, losses.Loss) and loss.partial
        )
        if variables:
            self._update(record, by_divisor, divisors, [], self._own(terms), optimizer, variables, label)

    def default_step(self, forward: Forward, batch: Any, optimizer: Any, variables: Variables) -> dict[str, tf.Tensor]:
        """The default step inside a recipe's own: its logs, each a scalar that is the mean over the global batch.

        Where the step returns these very tensors, their sums over all replicas are logged as they are.

        Raises:
            InputError: if called outside a step, or a variable has no gradient.
        """
        record = self._record("train_step")
        return record.logs_of(*self.forward_and_minimize(forward, batch, optimizer, variables))

    def _record(self, method: str) -> "StepRecord":
        record = getattr(self._thread, "record", None)
        if record is None:
            raise InputError(f"{method}() was called outside a step: it needs the batch that looper is stepping on.")
        return record

    def forward_and_minimize(
        self, forward: Forward, batch: Any, optimizer: Any, variables: Variables, in_xla: bool = False
    ) -> tuple[list[str], list[tf.Tensor]]:
        """The default step: forward, backward and one update, with accumulation.

        Args:
            forward: from a batch to `(loss, logs)`; it is called inside the tape.
            batch: this replica's batch.
            optimizer: a Keras optimizer.
            variables: what it updates.
            in_xla: whether to make forward and backward an XLA program, as several replicas do, whose reduction and
                update XLA cannot have.

        Returns:
            The names of the log pairs, and the pairs' scalars summed over all replicas.
        """
        record = self._thread.record
        # A small last batch has fewer micro-batches, so that none is empty.
        parts = parts_in(batch, record.division.parts)
        shortest = tf.reduce_min(tf.stack(lengths(batch, parts))) if parts else count_examples(batch)
        count = None if self.accumulate == 1 else tf.clip_by_value(shortest, 1, self.accumulate)

        def micro_step(index: int | tf.Tensor) -> tuple:
            micro_batch = batch if count is None else _micro_batch(batch, index, count, parts)
            examples = count_examples(micro_batch, parts)
            with tf.GradientTape(persistent=not self._alone) as tape:
                tape.watch([v for v in map(as_tf, variables) if not v.trainable])  # made while they were frozen
                loss, logs = forward(micro_batch)
            terms = record.weighted(record.terms(loss, examples, logs, parts))
            # A plain sum's weight is 1 over the whole step, however many micro-batches there are.
            shares = self.replicas if count is None else tf.cast(self.replicas * count, self.dtype)
            whole = loss if isinstance(loss, losses.Loss) else losses.Loss(terms, examples)
            names, scalars = metrics.local_pairs({"loss": whole, **logs}, examples, shares, self.dtype, record.idle)
            by_divisor, divisors = self._local_gradients(tape, terms, optimizer, variables, record.global_examples)
            by_divisor, trained = self._drop_missing(by_divisor, variables, whole.partial)
            return (names, self._own(terms), trained), by_divisor, divisors, scalars

        if in_xla:
            micro_step = _in_xla(micro_step)  # type: ignore[assignment]  # its argument has no name then
        (names, own, trained), *sums = micro_step(0)
        sums = record.checked(sums)
        if count is not None:
            _, *sums = tf.while_loop(
                lambda index, *_: index < count,
                lambda index, *sums: (index + 1, *tf.nest.map_structure(tf.add, sums, tuple(micro_step(index)[1:]))),
                (1, *sums),
                parallel_iterations=1,
            )
        by_divisor, divisors, scalars = sums
        if not trained:  # in an audit, which tells it
            return names, scalars
        return names, self._update(record, by_divisor, divisors, scalars, own, optimizer, trained)

    @property
    def _alone(self) -> bool:
        """One replica, no accumulation: all divisors are known before the gradient is taken."""
        return self.replicas == 1 and self.accumulate == 1

    @staticmethod
    def _own(terms: Sequence[losses.Term]) -> list[bool]:
        """For each group of terms, whether its divisor is known only after the reduction."""
        return [group[0].group is None for group in losses.by_divisor(terms)]

    def _scale(self, optimizer: Any) -> tf.Tensor | None:
        """The factor of the loss, float64: the dynamic loss scale, the optimizer's `loss_scale_factor`, or None."""
        factor = optimizers.inner(optimizer).loss_scale_factor
        factor = None if factor is None else tf.constant(factor, tf.float64)
        if self.loss_scale is None:
            return factor
        scale = tf.cast(self.loss_scale.scale, tf.float64)
        return scale if factor is None else scale * factor

    def _local_gradients(
        self,
        tape: tf.GradientTape,
        terms: Sequence[losses.Term],
        optimizer: Any,
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
        scale = self._scale(optimizer)

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
            return [g if g is None else sum_repeated(g) if self._alone else tf.convert_to_tensor(g) for g in found]

        if self._alone:
            by_divisor, divisors = [gradients([t for group in groups for t in group])], []
        else:
            by_divisor = [gradients(group) for group in groups]
            own = [group[0].divisor for group in groups if group[0].group is None]
            divisors = [tf.cast(d, self.dtype) / tf.cast(examples, self.dtype) for d in own]
        return by_divisor, divisors

    def _update(
        self,
        record: "StepRecord",
        by_divisor: list[list[Any]],
        divisors: list[tf.Tensor],
        scalars: list[tf.Tensor],
        own: list[bool],
        optimizer: Any,
        variables: Variables,
        label: str = "optimizer",
    ) -> list[tf.Tensor]:
        """Reduces everything over the replicas and updates the variables. Returns the reduced `scalars`."""
        if self.replicas == 1:
            record.note(label, *self._apply(by_divisor, divisors, own, optimizer, variables))
            return scalars
        if record.idle:
            by_divisor = finite_if_idle(by_divisor, record.examples)
        vector = tf.stack([*divisors, *scalars]) if divisors or scalars else tf.zeros([0], self.dtype)
        context = tf.distribute.get_replica_context()
        # merge_call traces this in another thread, once for all replicas
        vector, skipped, norm = context.merge_call(
            self._reduce_and_apply,
            args=(vector, by_divisor),
            kwargs={"own": own, "optimizer": optimizer, "to": variables},
        )
        record.note(label, skipped, norm)
        return tf.unstack(vector[len(divisors) :], num=len(scalars))

    def _reduce_and_apply(
        self,
        strategy: tf.distribute.Strategy,
        vector: Any,
        by_divisor: Any,
        own: list[bool],
        optimizer: Any,
        to: Variables,
    ) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        if not all(isinstance(is_own, bool) for is_own in own):
            raise InputError(
                "the loss has another shape on a replica without examples: Keras' losses are not reduced there with "
                "execution='eager'. Leave execution out, or leave out the last batch, which is smaller than the number "
                "of replicas."
            )
        destinations = [as_tf(v) for v in to]
        pairs = [(vector, destinations[0])]
        pairs += [pair for gs in by_divisor for pair in zip(gs, destinations, strict=True)]
        vector, *flat = strategy.extended.batch_reduce_to(tf.distribute.ReduceOp.SUM, pairs)
        vector = strategy.experimental_local_results(vector)[0]
        size = len(destinations)
        by_divisor = [flat[i : i + size] for i in range(0, len(flat), size)]
        divisors = tf.unstack(vector[: sum(own)], num=sum(own))
        return vector, *self._apply(by_divisor, divisors, own, optimizer, to)

    def _apply(
        self, by_divisor: list, divisors: list[tf.Tensor], own: list[bool], optimizer: Any, variables: Variables
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """Divides, unscales, checks, clips and applies gradients that are already summed over the replicas.

        Returns 1 if the update was skipped, else 0, and the gradients' norm before clipping.
        """
        remaining = iter(divisors)
        scale = self._scale(optimizer)
        own = [False] if self._alone else own
        factors = [_reciprocal(next(remaining) if is_own else None, scale) for is_own in own]

        def combine(by_divisor: list[list[Any]]) -> list[Any]:
            scaled = [[_times(g, factor) for g in gs] for gs, factor in zip(by_divisor, factors, strict=True)]
            return [gs[0] if len(gs) == 1 else tf.add_n(gs) for gs in zip(*scaled, strict=True)]

        reduced = combine([[self.strategy.experimental_local_results(g)[0] for g in gs] for gs in by_divisor])
        if self.watch is not None:
            self.watch.note_gradients(variables, reduced)
        norm = global_norm(reduced)
        given, transformed = norm, None
        if self.transform is not None:  # once for all replicas: what it draws cannot drive them apart
            transformed = self._transformed(reduced, variables)
            norm = global_norm(transformed)
        clip = None if self.clip_norm is None else self.clip_norm / tf.maximum(norm, self.clip_norm)

        def apply(by_divisor: list[list[Any]]) -> None:
            gradients = [_times(g, clip) for g in (combine(by_divisor) if transformed is None else transformed)]
            if self.clip_value is not None:
                dense = [tf.convert_to_tensor(g) for g in gradients]
                gradients = [tf.clip_by_value(g, -self.clip_value, self.clip_value) for g in dense]
            optimizers.inner(optimizer).apply(gradients, variables)

        def apply_on_all() -> tf.Tensor:
            # around all replicas: their threads take turns
            run = apply if self.replicas == 1 else lambda by_divisor: self.strategy.run(apply, (by_divisor,))
            optimizers.apply_reduced(optimizer, lambda: run(by_divisor), self.replicas)
            self._update_averages(optimizer, [as_tf(v) for v in variables])
            return tf.constant(0, tf.int32)

        if self.loss_scale is None and not self.skip_nonfinite:
            return apply_on_all(), norm
        finite = tf.math.is_finite(norm)
        if transformed is not None:  # which may hide what is infinite
            finite &= tf.math.is_finite(given)
        skipped = tf.cond(finite, apply_on_all, lambda: tf.constant(1, tf.int32))
        if self.loss_scale is not None:
            self.loss_scale.update(finite)
        return skipped, norm

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

    def _update_averages(self, optimizer: Any, variables: list[Any]) -> None:
        """Takes an update into account in the moving averages; gradients that were only accumulated are none."""
        if self.average is None:
            return

        def update() -> tf.Tensor:
            self.average.update(variables, self.strategy)
            return tf.constant(0)

        updated = optimizers.updated(optimizer)
        if updated is None:
            update()
        else:
            tf.cond(updated, update, lambda: tf.constant(0))

    def _drop_missing(
        self, by_divisor: list[list[Any]], variables: Variables, partial: bool
    ) -> tuple[list[list[Any]], Variables]:
        """The gradients and variables without those that no gradient reaches; an error unless the loss is partial."""
        reached = [any(g is not None for g in gs) for gs in zip(*by_divisor, strict=True)]
        missing = [path_of(v) for v, there in zip(variables, reached, strict=True) if not there]
        if missing and (not partial or len(missing) == len(variables)) and not self._told(variables, reached):
            raise InputError(
                f"no gradient reaches the trainable variable{'s' if len(missing) > 1 else ''} {', '.join(missing)}: "
                "the loss does not depend on it. Set layer.trainable = False, or give minimize(variables=...) what it "
                "trains."
            )
        variables = [v for v, there in zip(variables, reached, strict=True) if there]
        reaching = [[g for g, there in zip(gs, reached, strict=True) if there] for gs in by_divisor]
        if len(reaching) > 1:
            zeros = [
                [tf.zeros(v.shape, v.dtype) if g is None else g for g, v in zip(gs, variables, strict=True)]
                for gs in reaching
            ]
            return zeros, variables
        return reaching, variables

    def _told(self, variables: Variables, reached: list[bool]) -> bool:
        """Whether an audit takes note of the variables without a gradient, and goes on."""
        missing = [v for v, there in zip(variables, reached, strict=True) if not there]
        return self.watch is not None and self.watch.note_missing(missing)


class StepRecord:
    """The report of the updates of one step, while it is traced.

    Attributes:
        examples: int scalar, this replica's number of examples.
        global_examples: int scalar, the number over all replicas.
        idle: whether this replica may have no examples.
        division: how batches are divided.
        skipped: int scalar, 1 if an update was skipped.
        norms: the global norm of the last gradients of each optimizer before clipping, by its label.
        reduced: of logs that the default step returned to a recipe's own, the pairs of a sum and its weight over all
            replicas, by the log's `ref()`.
    """

    def __init__(
        self,
        examples: tf.Tensor,
        global_examples: tf.Tensor,
        idle: bool,
        division: Division,
        of_parts: Sequence[Length],
    ) -> None:
        self.examples, self.global_examples, self.idle = examples, global_examples, idle
        self.division, self._of_parts = division, of_parts
        self.skipped: tf.Tensor = tf.constant(0, tf.int32)
        self.norms: dict[str, tf.Tensor] = {}
        self.reduced: dict[Any, list[tuple[tf.Tensor, tf.Tensor]]] = {}

    def terms(
        self, loss: object, examples: tf.Tensor, logs: Mapping[str, object] = MappingProxyType({}), parts: Any = None
    ) -> Sequence[losses.Term]:
        """The terms of a loss; takes note of what is a scalar, in the logs beside it, too.

        Of a batch with parts each has a divisor of its own: examples of which part it is about is not known.

        Args:
            loss: as a recipe returns it.
            examples: int scalar, of the batch that it is about.
            logs: beside it.
            parts: those that this batch has; default: those of the global batch.
        """
        terms = losses.as_terms("loss", loss, examples)
        if not self.division.parts:
            return terms
        if parts is None or parts:
            self.division.note_means({"loss": loss, **logs}, examples)
        return losses.with_own_divisors(terms)

    def checked(self, tensors: Any) -> Any:
        """Some tensors, which can be had only if the scalars noted are right for this batch."""
        return self.division.means_checked(self._of_parts, tensors)

    def weighted(self, terms: Sequence[losses.Term]) -> Sequence[losses.Term]:
        """The terms of a loss, without weight where there are no examples."""
        return losses.weightless_if_idle(terms, self.examples) if self.idle else terms

    def logs_of(self, names: Sequence[str], scalars: Sequence[tf.Tensor]) -> dict[str, tf.Tensor]:
        """The means of pairs that are summed over all replicas, by name; takes note of the pairs."""
        logs = {}
        for name, pairs in metrics.by_name(names, scalars).items():
            logs[name] = tf.add_n([tf.math.divide_no_nan(total, weight) for total, weight in pairs])
            self.reduced[logs[name].ref()] = pairs
        return logs

    def note(self, label: str, skipped: tf.Tensor, norm: tf.Tensor) -> None:
        """Takes note of one update."""
        self.skipped = tf.maximum(self.skipped, skipped)
        self.norms[label] = norm


def finite_if_idle(by_divisor: list[list[tf.Tensor]], examples: tf.Tensor) -> list[list[tf.Tensor]]:
    """A replica's gradients; if it has no examples, with zeros for what is not finite, as means over nothing are.

    Example:
        >>> [[a, b]] = finite_if_idle([[tf.constant(float("nan")), tf.constant(1.0)]], tf.constant(0))
        >>> float(a), float(b)
        (0.0, 1.0)
    """

    def finite() -> list[list[tf.Tensor]]:
        return tf.nest.map_structure(lambda g: tf.where(tf.math.is_finite(g), g, tf.zeros_like(g)), by_divisor)

    return tf.cond(examples > 0, lambda: tf.nest.map_structure(tf.identity, by_divisor), finite)


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


def _micro_batch(batch: Any, index: int | tf.Tensor, count: tf.Tensor, parts: Parts) -> Any:
    return cut(batch, lambda size: (size * index // count, size * (index + 1) // count), parts)[0]


def _times(gradient: Any, factor: tf.Tensor | None) -> Any:
    if factor is None:
        return gradient
    if isinstance(gradient, tf.IndexedSlices):
        values = gradient.values * tf.cast(factor, gradient.dtype)
        return tf.IndexedSlices(values, gradient.indices, gradient.dense_shape)
    return gradient * tf.cast(factor, gradient.dtype)


def _reciprocal(divisor: tf.Tensor | None, scale: tf.Tensor | None) -> tf.Tensor | None:
    if divisor is None:
        return None if scale is None else 1.0 / scale
    return tf.math.divide_no_nan(
        tf.ones_like(divisor), divisor if scale is None else divisor * tf.cast(scale, divisor.dtype)
    )
