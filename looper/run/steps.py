"""The compiled steps of a trainer: found or made, traced, and looked at for what is wrong."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import keras
import tensorflow as tf

from looper.audit.examine import Examined, check, replica_batch_of
from looper.audit.facts import Facts, Finding
from looper.audit.flag_checks import tensor_flag
from looper.audit.record import Recorder
from looper.audit.report import Report, counted, listed
from looper.audit.tree import Tree
from looper.base.errors import InputError
from looper.base.lines import warn
from looper.base.options import TrainerOptions
from looper.base.say import say
from looper.data.source import Source
from looper.recipe import build
from looper.run.building import Building
from looper.run.components import Components
from looper.run.devices import Devices
from looper.run.evaluation import Evaluation, Evaluator
from looper.run.hooks import Hooks
from looper.step import programs
from looper.step.cache import Executions
from looper.step.gradients import Pipeline

WARNED = ("metric-not-updated", "undriven-random")
"""The findings of an audit that a run tells as warnings: they are about lines of the recipe, not about layers."""


@dataclasses.dataclass(frozen=True)
class Wanted:
    """What a `fit` wants of its training steps.

    Attributes:
        class_weight: weights of classes, or None.
        output_rank: how many axes the model's outputs have, if that is known and classes have weights.
        timed: whether to measure how long steps wait for their batches.
    """

    class_weight: Mapping[int, float] | None = None
    output_rank: int | None = None
    timed: bool = False

    @classmethod
    def of(cls, class_weight: Mapping[int, float] | None, timed: bool, model: Any, element_spec: Any) -> "Wanted":
        """The same, with the rank looked up where it matters."""
        rank = build.output_rank(model, element_spec) if class_weight else None
        return cls(class_weight, rank, timed)


class Steps:
    """The compiled steps of one trainer.

    Attributes:
        captured: the variables that the training steps use which were traced last.
        report: what the audit of them found; None before there were any.

    Args:
        devices, components, building, pipeline, executions: the trainer's.
        hooks: the recipe's methods.
        options: the trainer's.
    """

    def __init__(
        self,
        devices: Devices,
        components: Components,
        building: Building,
        pipeline: Pipeline,
        executions: Executions,
        hooks: Hooks,
        options: TrainerOptions,
    ) -> None:
        self._devices, self._components, self._building = devices, components, building
        self._pipeline, self._executions, self._hooks, self._options = pipeline, executions, hooks, options
        self.captured: tuple[tf.Variable, ...] = ()
        self.report: Report | None = None
        self._told: list[Finding] = []

    @property
    def tree(self) -> Tree:
        """The recipe's layers."""
        return Tree(self._components.attributes(), self._devices.strategy)

    def examined(self) -> Examined:
        """What an audit or a comparison of replicas looks at."""
        components = self._components
        return Examined(
            tree=self.tree,
            trainable=components.trainable_variables(),
            make_state=lambda used: components.state([*self.captured, *used]),
            compiled=self._options.execution != "eager",
            own=self._hooks.own_steps,
            metrics=components.reader.metrics if self._hooks.own_steps else (),
        )

    def training(
        self, wanted: Wanted, source: Source, mode: str = "graph", stack: int | None = None
    ) -> programs.Execution:
        """Training steps over a source, in a mode and, with stacks, of so many batches in one."""
        recipe = self._building.recipe(wanted.class_weight, wanted.output_rank)
        weights = tuple(sorted((wanted.class_weight or {}).items()))
        reader, flags = self._components.reader, self._building.flags()
        return self._executions.training(recipe, source, reader, flags, weights, wanted.timed, mode, stack)

    def evaluation(self, source: Source) -> programs.Execution:
        """Evaluation steps over a source."""
        return self._executions.evaluation(self._building.recipe(), source, self._building.flags())

    def prediction(self, source: Source) -> Any:
        """From an iterator over a source to the outputs for its next batch."""
        return self._executions.prediction(self._building.recipe(), source)

    def on_batches(self, source: Source) -> programs.BatchExecution:
        """A training step on single batches."""
        mode = "xla_step" if self._options.execution == "xla_step" else "graph"
        recipe, flags = self._building.recipe(), self._building.flags()
        return self._executions.on_batches(recipe, source, self._components.reader, flags, mode)

    def compile(
        self, execute: programs.Execution, source: Source, evaluation: Evaluation | None, strict: bool = False
    ) -> None:
        """Traces and audits training steps for what is trained now; evaluators get steps that fit, too."""
        tree = self.tree
        self.captured = self._trace(execute, source.element_spec, Recorder(tree, "training"))

        def renew(evaluator: Evaluator) -> None:
            evaluator.use(self.evaluation(evaluator.source))
            self.trace_evaluation(evaluator, Recorder(tree, "evaluation"))

        if evaluation is not None:
            evaluation.each(renew)
        self._check(execute, [] if evaluation is None else evaluation.evaluators, source, strict)

    def trace_evaluation(self, evaluator: Evaluator, recorder: Recorder | None = None) -> None:
        """Traces an evaluator's steps; by default recorded for a later audit."""
        evaluator.trace(recorder or Recorder(self.tree, "evaluation"))

    def leave_idle_metrics_out(self, evaluators: Sequence[Evaluator]) -> list[keras.Metric]:
        """Leaves out of each evaluator's results what its steps do not update. Returns what none of them updates."""
        idle = [self._idle_metrics(evaluator.execute) for evaluator in evaluators]
        for evaluator, metrics in zip(evaluators, idle, strict=True):
            evaluator.leave_out(self._components.reader.names_of(metrics))
        return [metric for metric in idle[0] if all(metric in others for others in idle)] if idle else []

    def _trace(self, execute: programs.Execution, element_spec: Any, recorder: Recorder) -> tuple[tf.Variable, ...]:
        before = execute.traces
        try:
            with self._pipeline.watched_by(recorder), self._hooks.reading() as read:
                captured = execute.trace(element_spec, recorder)
            if execute.traces > before:
                execute.note_numbers(read)
            return captured
        except InputError:
            finding = tensor_flag(recorder)
            if finding is None:
                raise
            raise InputError(f"{finding.path}: {finding.meaning} {finding.remedy}") from None

    def _idle_metrics(self, execute: programs.Execution) -> list[keras.Metric]:
        """The metrics that traced steps do not update; looper's own steps update all."""
        own = {"compute_loss", "train_step" if execute.kind == "train" else "eval_step"}
        if not own & self._hooks.own_steps:
            return []
        return execute.idle_metrics(self._components.reader.metrics, self._devices.strategy)

    def _check(
        self, execute: programs.Execution, evaluators: Sequence[Evaluator], source: Source, strict: bool
    ) -> None:
        """Says what the traces show to be wrong, once for each; with `strict`, errors are raised.

        Of the calls of layers in several evaluation steps it looks at those of the first.
        """
        training = execute.recorder
        idle: dict[Any, Any] = {"training": self._idle_metrics(execute)}
        self._components.reader.leave_out(idle["training"])
        if evaluators:
            idle["evaluation"] = self.leave_idle_metrics_out(evaluators)
        if training is None:
            return
        facts = Facts(
            tree=training.tree,
            training=training,
            evaluation=evaluators[0].execute.recorder if evaluators else None,
            own=self._hooks.own_steps,
            trainable=self._components.trainable_variables(),
            captured=self.captured,
            idle_metrics=idle,
            replica_batch=replica_batch_of(source.smallest_batch, self._devices.replicas, self._options.accumulate),
        )
        self.report = check(facts)
        if strict and not self.report.ok:
            found = [str(finding) for finding in self.report.findings if finding.severity != "note"]
            raise InputError("strict=True, and the audit found:\n" + "\n".join(found))
        told = [f for f in self.report.findings if f.severity != "note" and f not in self._told]
        self._told += told
        if self._devices.workers.is_chief:
            _tell(told)


def _tell(findings: Sequence[Finding]) -> None:
    shown = [finding for finding in findings if finding.kind not in WARNED]
    if shown:
        say(f"looper: audit: {counted(shown)}\n{listed(shown)}")
    for finding in findings:
        if finding.kind in WARNED:
            warn(f"{finding.path}: {finding.meaning} {finding.remedy}")
