"""The report of one replica's step, which its updates write while it is traced or run."""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import tensorflow as tf

from looper.base.batches import Length, Parts, count_examples, parts_in
from looper.base.errors import InputError
from looper.base.names import as_tf
from looper.recipe import losses, metrics
from looper.step.division import Division

if TYPE_CHECKING:
    from looper.step.gradients import Local
    from looper.step.noting import Notes


class StepRecord:
    """What the updates of one step report.

    Args:
        examples: int scalar, this replica's number of examples that count.
        global_examples: int scalar, the number over all replicas.
        idle: whether that may be none, as on an idle replica (`looper.step.idle`).
        in_xla: whether the default step makes forward and backward an XLA program.
        notes: what to note the step's calls in, which then update nothing; or None.
        division: how batches are divided.
        of_parts: the lengths of the global batch's parts.
        evaluating: whether it is a step of an evaluation, which updates nothing.

    Attributes:
        examples, global_examples, idle, in_xla, notes, division, evaluating: see the arguments; `examples` are those of
            the micro-batch while one is computed.
        waiting: whether `minimize` leaves its update to the end of the step.
        local: what a waiting `minimize` found, or None.
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
        in_xla: bool,
        notes: "Notes | None",
        division: Division,
        of_parts: Sequence[Length],
        evaluating: bool,
    ) -> None:
        self.examples, self.global_examples, self.idle = examples, global_examples, idle
        self.in_xla, self.notes = in_xla, notes
        self.division, self._of_parts, self.evaluating = division, of_parts, evaluating
        self.waiting = False
        self.local: Local | None = None
        self.skipped: tf.Tensor = tf.constant(0, tf.int32)
        self.norms: dict[str, tf.Tensor] = {}
        self.reduced: dict[Any, list[tuple[tf.Tensor, tf.Tensor]]] = {}
        self._graph, self._whole = _graph(), True
        self._finite: list[tuple[set[int], tf.Tensor]] = []

    def keep(self, local: "Local") -> None:
        """Keeps what a waiting `minimize` found until the step has returned.

        Raises:
            InputError: if it was called before.
        """
        if self.local is not None:
            raise InputError("train_step called minimize() once when it was looked at, and calls it again now.")
        self.local = local

    def take(self) -> "Local":
        """What `keep` has kept.

        Raises:
            InputError: if that is nothing.
        """
        local, self.local = self.local, None
        if local is None:
            raise InputError("train_step called minimize() when it was looked at, and does not call it now.")
        return local

    @contextlib.contextmanager
    def micro_batch(self, examples: tf.Tensor, waiting: bool, whole: bool) -> Iterator[None]:
        """Surrounds what is computed of one micro-batch of `examples` examples; `whole` if it is the whole batch."""
        before = self.examples, self.waiting, self._graph, self._whole
        self.examples, self.waiting, self._graph, self._whole = examples, waiting, _graph(), whole
        try:
            yield
        finally:
            self.examples, self.waiting, self._graph, self._whole = before

    def exchanges(self, method: str, replicas: int) -> bool:
        """Whether the replicas are to exchange something now.

        Raises:
            InputError: if they cannot, as in micro-batches, of which each may have another number.
        """
        if self.notes is not None:
            self.notes.note(method, None, ())
        elif replicas > 1 and not self._whole:
            raise InputError(
                f"{method}() is called in a step of micro-batches, or of an XLA program on {replicas} replicas, which "
                "cannot exchange anything there: leave accumulate out, and give execution='graph'."
            )
        return replicas > 1 and self.notes is None

    def check_place(self, method: str) -> None:
        """Raises `InputError` inside a `tf.cond`, `tf.while_loop` or `tf.function` that the recipe opened in a step."""
        if _graph() is not self._graph:
            raise InputError(
                f"{method}() is called inside a tf.cond, tf.while_loop or tf.function of the recipe, out of which "
                "neither its reduction over replicas nor its report comes: call it in a Python loop, or outside."
            )

    def count(self, batch: Any, parts: Parts) -> tf.Tensor:
        """How many examples of this replica's batch, or of a part of it, count: int scalar."""
        examples = count_examples(batch, parts)
        return tf.where(self.examples > 0, examples, 0) if self.idle else examples

    def terms(self, loss: object, examples: tf.Tensor) -> Sequence[losses.Term]:
        """The terms of a loss; takes note of what of it is a scalar.

        Of a batch with parts each has a divisor of its own: examples of which part it is about is not known.
        """
        terms = losses.as_terms("loss", loss, examples)
        if not self.division.parts:
            return terms
        self.division.note_means({"loss": loss}, examples)
        return losses.with_own_divisors(terms)

    def note_means(self, logs: Mapping[str, object], examples: tf.Tensor, batch: Any) -> None:
        """Takes note of what of the logs of a batch is a scalar, if the batch has parts."""
        if parts_in(batch, self.division.parts):
            self.division.note_means(logs, examples)

    def checked(self, tensors: Any) -> Any:
        """Some tensors, which can be had only if the scalars noted are right for this batch."""
        return self.division.means_checked(self._of_parts, tensors)

    def weighted(self, terms: Sequence[losses.Term]) -> Sequence[losses.Term]:
        """The terms of a loss, without weight where no examples count."""
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

    def note_finite(self, variables: Sequence[Any], finite: tf.Tensor) -> None:
        """Takes note of whether gradients of some variables were finite, bool scalar."""
        self._finite.append(({id(as_tf(v)) for v in variables}, finite))

    def were_finite(self, variables: Sequence[Any]) -> list[tf.Tensor]:
        """What was noted of gradients of any of these variables."""
        asked = {id(as_tf(v)) for v in variables}
        return [finite for noted, finite in self._finite if noted & asked]


def _graph() -> tf.Graph | None:
    return tf.compat.v1.get_default_graph() if tf.inside_function() else None
