"""From a recipe's steps to a report. `check` looks at traces; `examine` runs the steps too, and undoes it."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from looper.audit.facts import Facts
from looper.audit.findings import find
from looper.audit.flag_checks import tensor_flag
from looper.audit.record import Call, Phase, Recorder
from looper.audit.report import Effect, Report, rows_of
from looper.audit.sensitivity import sensitivity
from looper.audit.tree import Tree
from looper.base.errors import InputError, first_line
from looper.base.names import as_tf
from looper.saved.variables import State
from looper.step.effects import not_updated
from looper.step.gradients import Pipeline

L = keras.layers

Step = Callable[[Any], tf.Tensor]


@dataclasses.dataclass(frozen=True)
class Examined:
    """A recipe whose steps are run to be examined, and what is looked at and put back.

    Attributes:
        tree: its layers.
        trainable: the variables that it counts as trained.
        make_state: makes the list of all state, of the variables that a step was seen to use.
        compiled: whether to compile the steps.
        own: the methods that it overrides.
        metrics: those that it is to update itself.
    """

    tree: Tree
    trainable: Sequence[Any]
    make_state: Callable[[Sequence[tf.Variable]], State]
    compiled: bool
    own: frozenset[str]
    metrics: Sequence[keras.Metric]


def check(facts: Facts) -> Report:
    """A report of what the traces of a training and, if there is one, an evaluation step show."""
    evaluation = facts.evaluation.calls if facts.evaluation else []
    return Report(rows_of(facts.training.calls, evaluation, {}), tuple(find(facts)))


def examine(
    recipe: Examined,
    *,
    pipeline: Pipeline,
    train_step: Step,
    eval_step: Step,
    batch: Any,
    eval_batch: Any,
    must_evaluate: bool,
    replica_batch: int,
    evaluating: Callable[[], AbstractContextManager],
) -> Report:
    """Runs a training step on a batch, and an evaluation step twice. All state is put back.

    Args:
        recipe: whose steps they are.
        pipeline: which the training step updates variables with.
        train_step, eval_step: from a global batch to a row.
        batch, eval_batch: a global batch for each of them.
        must_evaluate: whether it is an error if the evaluation step cannot be run; else training alone is reported.
        replica_batch: its examples per replica and micro-batch.
        evaluating: makes the context to evaluate in.

    Raises:
        InputError: if a step cannot be run at all.
    """
    tree, compiled, make_state, metrics = recipe.tree, recipe.compiled, recipe.make_state, recipe.metrics
    training = Recorder(tree, "training", eager=not compiled, measuring=True)
    evaluation = Recorder(tree, "evaluation", eager=not compiled, measuring=True)
    state = make_state(())
    snapshot = state.snapshot()
    captured: list[tf.Variable] = []
    done: dict[int, Effect] = {}
    zero: list[Any] = []
    varying: Call | str | None = None
    at, not_evaluated = "train_step", ""
    idle: dict[Phase, list[keras.Metric]] = {}
    stopped = False
    dropped: dict[int, tuple[float, float]] = {}
    try:
        with pipeline.watched_by(training):
            run, graph = _prepared(train_step, training, batch, compiled)
            captured = _variables(graph)
            state = make_state(captured)
            snapshot = state.snapshot()
            before = _values(training.calls)
            _, measured, gradients = run(batch)
        idle["training"] = _idle(metrics, graph, pipeline)
        done |= _done(training.calls, measured, before)
        dropped |= _dropped(training.calls, measured)
        sizes = {key: float(size) for key, size in zip(training.gradients, gradients, strict=True)}
        zero = [v for v in recipe.trainable if sizes.get(id(as_tf(v))) == 0.0]
        state.restore(snapshot)

        at = "eval_step"
        run, graph = _prepared(eval_step, evaluation, eval_batch, compiled)
        idle["evaluation"] = _idle(metrics, graph, pipeline)
        state = make_state([*captured, *_variables(graph)])
        snapshot = state.snapshot()
        with evaluating():
            before = _values(evaluation.calls)
            row, measured, _ = run(eval_batch)
            again, measured_again, _ = run(eval_batch)
            done |= _done(evaluation.calls, measured, before)
            dropped |= _dropped(evaluation.calls, measured)
        varying = _first_to_differ(evaluation.calls, measured, measured_again)
        if varying is None and not _equal(row, again):
            varying = "eval_step"
    except Exception as error:
        # a flag that is a tensor is recorded, and stops the trace
        stopped = bool(tensor_flag(training) or tensor_flag(evaluation))
        if not (stopped and isinstance(error, InputError | tf.errors.OperatorNotAllowedInGraphError)):
            if at == "train_step" or must_evaluate:
                raise
            stopped, not_evaluated = False, first_line(error)
    finally:
        state.restore(snapshot)
    seen = None if not_evaluated else evaluation
    facts = Facts(
        tree=tree,
        training=training,
        evaluation=seen,
        own=recipe.own,
        trainable=recipe.trainable,
        captured=captured,
        replica_batch=replica_batch,
        zero=zero,
        varying=varying,
        idle_metrics=idle,
        stopped=stopped,
        dropped=dropped,
        not_evaluated=not_evaluated,
    )
    return Report(rows_of(training.calls, seen.calls if seen else [], done), tuple(find(facts)))


def _prepared(step: Step, recorder: Recorder, batch: Any, compiled: bool) -> tuple[Callable, tf.Graph | None]:
    """The step with what it measures, recorded as it is traced (in eager mode: run); and the graph of the trace."""

    def run(batch: Any) -> tuple[tf.Tensor, dict[int, dict[str, tf.Tensor]], list[tf.Tensor]]:
        recorder.begin()
        row = step(batch)
        return row, {i: call.measured for i, call in enumerate(recorder.calls)}, list(recorder.gradients.values())

    if not compiled:

        def run_eagerly(batch: Any) -> tuple:
            with recorder:
                return run(batch)

        return run_eagerly, None
    function = tf.function(run, autograph=False)
    with recorder:
        concrete = function.get_concrete_function(batch)
    return function, concrete.graph


def _variables(graph: tf.Graph | None) -> list[tf.Variable]:
    """The variables that a traced step uses."""
    return [] if graph is None else list(graph.variables)


def _idle(metrics: Sequence[keras.Metric], graph: tf.Graph | None, pipeline: Pipeline) -> list[keras.Metric]:
    """The metrics that a traced step does not update."""
    return [] if graph is None else not_updated(metrics, graph, pipeline.strategy)


def _values(calls: Sequence[Call]) -> dict[int, np.ndarray]:
    """The present values of the variables that layers assign to."""
    return {id(v): v.numpy() for call in calls for v in call.assigned}


def _done(
    calls: Sequence[Call], measured: Mapping[int, Mapping[str, tf.Tensor]], before: Mapping[int, np.ndarray]
) -> dict[int, Effect]:
    """The measured effects of calls."""
    found: dict[int, Effect] = {}
    for i, call in enumerate(calls):
        kind = sensitivity(call.layer)
        numbers = {name: float(value) for name, value in measured[i].items()}
        if kind == "batch statistics":
            moved = any(not np.array_equal(v.numpy(), before.get(id(v))) for v in call.assigned)
            found[id(call)] = ("moved statistics" if moved else "kept statistics", None)
        elif kind == "dropout" and "dropped" in numbers:
            dropped, changed = numbers["dropped"], numbers["changed"]
            if dropped or changed:
                found[id(call)] = ("dropped", dropped) if dropped else ("changed", changed)
            else:
                found[id(call)] = ("dropped nothing", None)
        elif kind in ("noise", "augmentation") and "changed" in numbers:
            found[id(call)] = ("changed", numbers["changed"])
    return found


def _dropped(calls: Sequence[Call], measured: Mapping[int, Mapping[str, tf.Tensor]]) -> dict[int, tuple[float, float]]:
    """The share of elements that each dropout layer dropped, and of how many."""
    return {
        id(call): (float(measured[i]["dropped"]), float(measured[i]["there"]))
        for i, call in enumerate(calls)
        if "dropped" in measured[i]
        and isinstance(call.layer, L.Dropout)
        # others draw for many elements at once
        and call.layer.noise_shape is None
        and not isinstance(call.layer, L.SpatialDropout1D | L.SpatialDropout2D | L.SpatialDropout3D)
    }


def _first_to_differ(calls: Sequence[Call], first: Mapping, second: Mapping) -> Call | None:
    """The innermost call that made other outputs of the same inputs, the first of them."""

    def same(i: int, name: str) -> bool:
        return _equal(first[i][name], second[i][name])

    differ = [call for i, call in enumerate(calls) if first[i] and same(i, "in") and not same(i, "out")]
    around = {id(outer) for call in differ for outer in call.outside}
    return next((call for call in differ if id(call) not in around), None)


def _equal(a: tf.Tensor, b: tf.Tensor) -> bool:
    # Compiled steps give the same bits on the CPU; 1e-6 leaves room for a GPU's order of additions.
    return np.allclose(a.numpy(), b.numpy(), rtol=1e-6, atol=0, equal_nan=True)


def replica_batch_of(examples: int | None, replicas: int, accumulate: int) -> int | None:
    """Examples of a micro-batch on a replica; None if unknown.

    Example:
        >>> replica_batch_of(8, 2, 4)
        1
    """
    if examples is None:
        return None
    own = examples if examples < replicas else examples // replicas  # see `looper.step.idle`
    return max(1, own // accumulate)
