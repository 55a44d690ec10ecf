"""How a trainer's components are put together: their scope, variables and state, and the steps compiled of them."""

import contextlib
import inspect
import sys
import warnings
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import keras
import tensorflow as tf

from looper.audit import (
    Facts,
    Finding,
    Recorder,
    Report,
    Tree,
    check,
    counted,
    listed,
    replica_batch_of,
    tensor_flag,
)
from looper.base.batches import Parts, count_examples, parts_in
from looper.base.errors import InputError, first_line
from looper.base.names import as_tf, named_objects
from looper.base.options import TrainerOptions
from looper.base.own_world import ONE_AT_A_TIME, OwnRandom
from looper.data import Named, Source, has_batches, make_source, without_lists
from looper.recipe import build, learning_rates, losses, optimizers, outputs, precision
from looper.recipe.averages import WeightAverage
from looper.recipe.describe import describe, describe_components
from looper.recipe.metrics import Reader, set_aside
from looper.run.evaluation import Evaluation, Evaluator, in_set
from looper.run.numbers import read_numbers
from looper.saved import trained
from looper.saved.resume import Restored
from looper.saved.variables import State, averaged_statistics, offset_seeds, trainable_flags, trainable_variables
from looper.step import gradients, lookups, noting, programs, replicas
from looper.step.cache import Executions
from looper.step.counting import Counting
from looper.step.division import Division
from looper.step.idle import find_untouched
from looper.workers.exchange import Workers
from looper.workers.peers import is_of_collectives, said_of_collectives
from looper.workers.strategies import cluster_of, resolve

WARNED = ("metric-not-updated", "undriven-random")
"""The findings of an audit that a run tells as warnings: they are about lines of the recipe, not about layers."""


class Session:
    """Devices, workers and compiled programs of one trainer, which `fit`, `evaluate`, `audit` and the like share.

    The trainer's public attributes are the components; `Trainer.build` sets them.

    Args:
        options: the trainer's.
    """

    if TYPE_CHECKING:  # what `Trainer` has and a recipe overrides
        Config: type | None
        defaults: Mapping[str, Any]
        parts: Parts
        config: Any
        workdir: Path | None
        _window: Any
        _counts: Counting

        @property
        def step(self) -> int | Any: ...
        @property
        def epoch(self) -> int | Any: ...
        def build(self) -> None: ...
        def compute_loss(self, batch: Any, training: bool) -> Any: ...
        def train_step(self, batch: Any) -> Mapping[str, Any]: ...
        def transform_gradients(self, gradients: list[Any], variables: list[Any]) -> Sequence[Any]: ...
        def after_update(self) -> None: ...
        def eval_step(self, batch: Any) -> Mapping[str, Any]: ...
        def predict_step(self, batch: Any) -> Any: ...
        def train_data(self) -> Any: ...
        def eval_data(self) -> Any: ...
        def predict(self, data: Any, *, batch_size: int | None = None, steps: int | None = None) -> Any: ...

    def __init__(self, options: TrainerOptions) -> None:
        self._options = options
        self._captured: tuple[tf.Variable, ...] = ()
        self._timed = False  # whether steps measure how long they wait for their batches
        self._report: Report | None = None
        self._told: list[Finding] = []
        self._loss_scale: precision.LossScale | None = None
        self._seeds_set: set[int] = set()
        self._trained: list[Any] | None = None
        self._phase: Mapping[str, Any] = {}  # of a checkpoint that was restored before the model was built
        self._class_weight: dict[int, float] | None = None
        self._output_rank: int | None = None  # where classes have weights
        self._own_step = noting.OwnStep()
        self._own_step_of: Any = None  # what was traced to know it
        self._own_step_on: tuple[Any, Parts] | None = None  # the batches that it was looked at for
        self._optimizers_for: list[int] = []  # what was trainable when an own step's optimizers were looked at
        self._restored: Restored | None = None
        # a checkpoint that was restored, and since which no step ran: a later fit may have written it
        self._no_step_since: Restored | None = None
        if options.deterministic:
            tf.config.experimental.enable_op_determinism()
        self.strategy = resolve(options.strategy, options.devices)  # before anything that starts TensorFlow
        self._workers = Workers(self.strategy, cluster_of(self.strategy))
        self._workers.check_same(self._started_with)
        if options.execution == "xla_loop" and self.strategy.num_replicas_in_sync > 1:
            raise InputError(
                "execution='xla_loop' is for one device, as XLA has no collectives in a loop, and there are "
                f"{self.strategy.num_replicas_in_sync} replicas: use 'auto' or 'xla_step'."
            )
        self._random = OwnRandom(options.seed)
        self._shared_random_used = False
        with self._scope():
            self._shared_random = keras.random.SeedGenerator(options.seed, name="shared_random")
            self._average = None if options.ema is None else WeightAverage(options.ema)
            self.model: Any = None
            self.optimizer: Any = None
            self.loss: Any = None
            self.loss_weights: Any = None
            self.metrics: Any = []
            self.weighted_metrics: Any = []
            self._build_together()
            self._check_components()
            self._optimizers_for = list(map(id, self._trainable_variables()))
            # now, because training may change it: a callback that sets the learning rate
            self._described = describe_components(self._attributes())
            self._pipeline = gradients.Pipeline(
                self.strategy,
                clip_norm=options.clip_norm,
                clip_value=options.clip_value,
                accumulate=options.accumulate,
                transform=self.transform_gradients if self._overrides("transform_gradients") else None,
                loss_scale=self._loss_scale,
                average=self._average,
                dtype=self._row_dtype,
                workers=self._workers.size,
            )
        self._executions = Executions(
            self._pipeline,
            options.precision,
            compiled=options.execution != "eager",
            workers=self._workers.size,
            counts=self._counts,
        )
        self._offset_seeds()

    def _offset_seeds(self) -> None:
        """Gives replicas seeds of their own, but those of `shared_random`."""
        recipes = {name: thing for name, thing in self._attributes().items() if thing is not self._shared_random}
        offset_seeds(recipes, self.strategy, self._seeds_set, self._workers.first_replica)

    def _overrides(self, method: str) -> bool:
        """Whether the recipe has its own `method`."""
        raise NotImplementedError

    def _build_together(self) -> None:
        try:
            self.build()
        except tf.errors.OpError as error:  # the chief's values could not be given to all
            if self._workers.size == 1:
                raise
            said = said_of_collectives(error) if is_of_collectives(error) else first_line(error)
            raise self._workers.lost(error, "build()") or InputError(
                f"the workers build different models: {said} Start all with the same recipe."
            ) from error

    def _started_with(self) -> dict[str, Any]:
        """The options and code that all workers must be started with alike."""
        options = vars(self._options) | {"workdir": self.workdir is not None}  # another path may be the same storage
        if not isinstance(options["strategy"], str):
            options["strategy"] = type(options["strategy"]).__name__
        kind = type(self)
        try:
            content = zlib.crc32(Path(inspect.getsourcefile(kind) or "").read_bytes())
        except (OSError, TypeError):  # written in an interpreter
            content = None
        return {"recipe": kind.__name__, "recipe_file": content, "options": options, "config": describe(self.config)}

    def _scope(self) -> Any:
        """Where models and optimizers are made: the strategy's scope, the dtype policy, random numbers of one's own."""
        stack = contextlib.ExitStack()
        stack.enter_context(self._random.entered())
        stack.enter_context(self.strategy.scope())
        stack.enter_context(self._policy())
        return stack

    @contextlib.contextmanager
    def _policy(self) -> Iterator[None]:
        with ONE_AT_A_TIME, precision.scope(self._options.precision):
            yield

    def _attributes(self) -> dict[str, Any]:
        """The recipe's attributes, and looper's own loss scale and averages."""
        return {k: v for k, v in vars(self).items() if not k.startswith("_")} | self._own_attributes()

    def _own_attributes(self) -> dict[str, Any]:
        own: dict[str, Any] = {} if self._loss_scale is None else {"loss_scale": self._loss_scale.variables}
        if self._shared_random_used:
            # a checkpoint of a process that had not traced its use yet lacks it, as it may lack what is captured
            own["captured/shared_random"] = self._shared_random
        return own if self._average is None else own | {"ema_updates": self._average.updates}

    def _layers(self) -> dict[str, keras.Layer]:
        return {name: thing for name, thing in named_objects(self._attributes()) if isinstance(thing, keras.Layer)}

    def _averages(self) -> dict[int, tf.Variable]:
        return {} if self._average is None else self._average.averages

    def _trainable_variables(self) -> list[Any]:
        return trainable_variables(self._attributes())

    def _state(self) -> State:
        return self._state_of(self._attributes(), self._captured)

    def _state_of(self, attributes: Mapping[str, Any], captured: Sequence[tf.Variable] = ()) -> State:
        return State(attributes, self.strategy, captured, self._averages(), self._workers.first_replica)

    def _state_in(self, saved: Mapping[str, Any]) -> State:
        """The state to read a checkpoint to, when what is trained is what was trained in its phase."""
        if self._unbuilt:  # all is read when it is built
            self._phase = saved
            return self._state_of({})
        trained.put_back_layers(saved, named_objects(self._attributes()))
        self._build_optimizer(announced=bool(saved))
        if self._own_step_on is not None:
            self._look_at_own_step(*self._own_step_on, announced=bool(saved))
        trained.put_back_optimizers(saved, named_objects(self._attributes()))
        return self._state()

    @property
    def _lacks_variables(self) -> bool:
        """Whether variables that a checkpoint holds may not exist before batches are known."""
        others = build.all_optimizers(self._attributes()).values()
        of_others = self._trains_others or any(not optimizers.inner(other).built for other in others)
        of_others = of_others and self._own_train_step is not None and self._own_step_on is None
        return self._unbuilt or self._output_metrics is None or of_others

    @property
    def _trains_others(self) -> bool:
        """Whether other variables are trainable than when an own step's optimizers were looked at."""
        return self._optimizers_for != list(map(id, self._trainable_variables()))

    def _access(self, state: State) -> dict[str, Any]:
        """How callbacks read and write the variables that there are now: attributes of `Run`."""
        layers = self._state_of({**self._layers(), **self._own_attributes()})

        def set_weights(values: Mapping[str, Any]) -> None:
            # a layer that was frozen then has no average among them: it was the weight itself
            averages = {f"average/{name}": value for name, value in values.items()}
            layers.restore({name: averages[name] for name in layers.variables if name in averages} | dict(values))

        def restore(snapshot: tuple[Mapping[str, Any], Mapping[str, Any]]) -> None:
            state.restore(snapshot[0])
            self._window.restore(snapshot[1])

        return {
            "weights": layers.snapshot,
            "set_weights": set_weights,
            "snapshot": lambda: (state.snapshot(), self._window.state()),
            "restore": restore,
        }

    def _check_components(self) -> None:
        """Looks at what `build` set, and puts it into the form that the steps use."""
        self.loss = losses.resolve(self.loss)
        self.optimizer = build.make("optimizer", self.optimizer)
        found = build.all_optimizers(self._attributes()).values()
        for optimizer in found if self.optimizer is None else [self.optimizer, *found]:
            optimizers.check_optimizer(
                optimizer,
                replicas=self.strategy.num_replicas_in_sync,
                clip_norm=self._options.clip_norm,
                clip_value=self._options.clip_value,
            )
        if self._loss_scale is None:
            self._loss_scale = build.make_loss_scale([self.optimizer, *found], self._options.precision)
        self._output_metrics: outputs.OutputMetrics | None = None
        if not outputs.needs_shapes([self.metrics, self.weighted_metrics]):
            self._resolve_metrics()
        self._seen_components = self._current_components()

    def _resolve_metrics(self, element_spec: Any = None) -> None:
        """Makes metric objects of names and functions; "accuracy" needs the shapes of a batch."""
        y, predicted = None, None
        if element_spec is not None:
            y = element_spec[1] if isinstance(element_spec, tuple | list) and len(element_spec) > 1 else None
            specs = build.output_specs(self.model, element_spec)
            predicted = None if specs is None else outputs.named(specs, getattr(self.model, "output_names", None))
        self.metrics = outputs.resolve_metrics(self.metrics, y, predicted)
        self.weighted_metrics = outputs.resolve_metrics(self.weighted_metrics, y, predicted)
        self._output_metrics = outputs.OutputMetrics(self.metrics, self.weighted_metrics)
        self._reader = Reader(
            build.all_metrics(self._attributes()),
            lambda: build.settings(build.all_optimizers(self._attributes()), self._loss_scale),
            self._output_metrics.name,
            self.strategy if self._workers.size > 1 else None,
        )
        self._seen_components = self._current_components()

    def _current_components(self) -> list[Any]:
        given = [self.loss, self.loss_weights, self.metrics, self.weighted_metrics]
        return [self.model, self.optimizer, *keras.tree.flatten(given)]

    def _refresh(self) -> None:
        """Drops what was compiled if the model, optimizer, loss or metrics were set to other ones."""
        seen, now = self._seen_components, self._current_components()
        if len(now) != len(seen) or any(a is not b for a, b in zip(now, seen, strict=True)):
            self._executions.clear()
            self._window.reset()
            with self._scope():
                self._check_components()
            self._described = describe_components(self._attributes())

    def _check_no_own(self, option: str, *methods: str) -> None:
        for method in methods:
            if self._overrides(method):
                name = type(self).__name__
                raise InputError(f"{option} is for looper's own {method}, and {name} overrides it: weigh there.")

    def _check_trainable(self) -> None:
        """Looks for what the default step needs, before anything is traced."""
        if self._own_train_step is None:
            self._check_default_step()

    def _check_default_step(self) -> None:
        if self.optimizer is None:
            raise InputError("there is no optimizer: set self.optimizer in build, or give optimizer=.")
        if self.model is None and not self._overrides("compute_loss"):
            raise InputError("there is no model: set self.model in build, give model=, or override compute_loss.")
        if not self._trainable_variables():
            raise InputError("there is nothing to train: no attribute of the trainer has trainable variables.")

    @property
    def _own_methods(self) -> frozenset[str]:
        names = ("compute_loss", "train_step", "eval_step")
        return frozenset(filter(self._overrides, names))

    @property
    def _own_train_step(self) -> Callable[[Any], Any] | None:
        return self.train_step if self._overrides("train_step") else None

    @property
    def _row_dtype(self) -> tf.DType:
        return tf.float64 if self._options.precision == "float64" else tf.float32

    def _build_variables(self, element_spec: Any, metrics: bool = True) -> None:
        """Makes the variables of a model that was not built yet, the optimizer's and, with targets, the metrics'."""
        with self._scope():
            build.build_model(self.model, element_spec)
            trained.put_back_layers(self._phase, named_objects(self._attributes()))
            if metrics and self._output_metrics is None:
                self._resolve_metrics(element_spec)
        self._build_optimizer()
        trained.put_back_optimizers(self._phase, named_objects(self._attributes()))
        self._phase = {}
        self._offset_seeds()  # before values are read, which are those of each replica
        for restored in filter(None, (self._restored, self._no_step_since)):
            trained.put_back_optimizers(restored.phase, named_objects(self._attributes()), factors=False)
            restored.load_rest(self._state())

    def _look_at_own_step(self, element_spec: Any, parts: Parts, announced: bool = False) -> None:
        """Finds out what an own `train_step` does, where that matters, and builds the optimizers that it forgot.

        An optimizer that it gives other variables than it was built for, because other layers are trained now, is built
        again with what it can of its state. It warns of that, unless the change was `announced`.

        Raises:
            InputError: if it cannot be done in micro-batches, and is to be.
        """
        several = self.strategy.num_replicas_in_sync > 1 or self._options.accumulate > 1
        found = build.all_optimizers(self._attributes()).values()
        unbuilt = any(not optimizers.inner(optimizer).built for optimizer in found)
        self._own_step_on = (element_spec, parts)
        if self._own_train_step is None or not (several or unbuilt or self._trains_others):
            self._own_step, self._own_step_of = noting.OwnStep(), None  # what was known may be of other batches
            return
        key = (str(element_spec), trainable_flags(self._attributes()), self._pipeline.skip_nonfinite)
        if self._own_step_of != key:
            recipe, policy = self._recipe(), self._options.precision
            division = self._pipeline.division(parts)
            with self._random.entered():
                self._own_step = noting.look(
                    lambda: replicas.noted(recipe, self._pipeline, self.strategy, policy, division, element_spec),
                    self._attributes,
                    self.strategy,
                )
            self._own_step_of = key
        for optimizer, variables in self._own_step.built_for:
            self._build_for(optimizer, variables, announced)
        self._optimizers_for = list(map(id, self._trainable_variables()))
        if self._options.accumulate > 1 and not (self._own_step.waits or self._own_step.through):
            if isinstance(self._own_step.error, InputError):
                raise self._own_step.error
            raise InputError(
                f"accumulate={self._options.accumulate}: train_step {self._own_step.reason}, and so cannot be done in "
                "micro-batches: leave accumulate out, or let train_step call super().train_step(batch) or one "
                "minimize() after which it looks at nothing that is trained (after_update(self) may)."
            ) from self._own_step.error

    def _build_for(self, optimizer: Any, variables: Sequence[Any], announced: bool) -> None:
        """Builds an optimizer for these variables and those that it has already."""
        one = optimizers.inner(optimizer)
        known = optimizers.trained_by(one)
        new = optimizers.others(variables, known)
        with self._scope():
            if not one.built:
                one.build(list(variables))
            elif new:
                self._rebuild(optimizer, [*known, *new], new, announced)
                for restored in () if announced else filter(None, (self._restored, self._no_step_since)):
                    trained.put_back_optimizers(restored.phase, named_objects(self._attributes()), factors=False)

    def _rebuild(self, optimizer: Any, variables: Sequence[Any], new: Sequence[Any], announced: bool) -> None:
        """Builds an optimizer again for other variables, of which some are new. Call it in the scope."""
        before = len(optimizers.trained_by(optimizer))
        reused, fresh = optimizers.rebuild(optimizer, variables)
        self._executions.of_batches.clear()  # they have the variables that went
        learning_rates.begin(optimizer, new)
        if not announced:
            warnings.warn(
                f"{len(variables)} variables are trainable now, {before} were before: the step is compiled anew; of "
                f"the variables of self.{self._name_of(optimizer)} {reused} keep their values and {fresh} are new.",
                stacklevel=6,
            )

    def _name_of(self, optimizer: Any) -> str:
        """The optimizer's attribute; its own name if it has none."""
        names = [name for name, thing in named_objects(self._attributes()) if thing is optimizer]
        return names[0] if names else optimizer.name

    @property
    def _unbuilt(self) -> bool:
        return isinstance(self.model, keras.Layer) and not self.model.built

    def _build_optimizer(self, announced: bool = False) -> None:
        """Makes the optimizer's variables; again if other variables are trainable now, with what it can of its state.

        It warns of that, unless the change was `announced`.
        """
        variables = self._trainable_variables()
        if self._average is not None:
            with self._scope():
                self._average.build([as_tf(v) for v in variables])
        if not (isinstance(self.optimizer, keras.optimizers.Optimizer) and variables):
            return
        before = self._trained
        self._trained = variables
        with self._scope():
            if not optimizers.inner(self.optimizer).built:
                optimizers.inner(self.optimizer).build(variables)
                learning_rates.begin(self.optimizer, [])
            elif before is not None and list(map(id, before)) != list(map(id, variables)):
                self._rebuild(self.optimizer, variables, optimizers.others(variables, before), announced)

    def _recipe(self) -> replicas.Recipe:
        class_weight, output_rank = self._class_weight, self._output_rank

        def compute_loss(batch: Any, training: bool) -> Any:
            if class_weight and training:
                batch = build.class_weighted(batch, class_weight, output_rank)
            return self.compute_loss(batch, training)

        return replicas.Recipe(
            compute_loss=compute_loss,
            train_step=self._own_train_step,
            waits=self._own_step.waits,
            after_update=self.after_update if self._overrides("after_update") else None,
            eval_step=self.eval_step,
            predict_step=self.predict_step,
            optimizer=self.optimizer,
            optimizers=tuple(build.all_optimizers(self._attributes()).values()),
            variables=tuple(self._trainable_variables()),
            untouched=find_untouched(self._attributes(), self.strategy),
            lookups=lookups.find(self._layers().values()),
            counts=self._counts,
        )

    def _execution(
        self, kind: Literal["train", "eval"], source: Source, mode: str = "graph", stack: int | None = None
    ) -> programs.Execution:
        flags = trainable_flags(self._attributes())
        if kind == "eval":
            return self._executions.evaluation(self._recipe(), source, flags)
        weights = tuple(sorted((self._class_weight or {}).items()))
        return self._executions.training(
            self._recipe(),
            source,
            self._reader,
            flags,
            weights,
            self._timed,
            mode,
            stack,
        )

    def _compile(
        self, execute: programs.Execution, source: Source, evaluation: Evaluation | None, strict: bool = False
    ) -> None:
        """Traces and audits training steps for what is trained now; evaluators get steps that fit, too."""
        tree = Tree(self._attributes(), self.strategy)
        self._captured = self._trace(execute, source.element_spec, Recorder(tree, "training"))
        evaluators = {} if evaluation is None else evaluation.sets
        for name, evaluator in evaluators.items():
            evaluator.execute = self._execution("eval", evaluator.source)
            with in_set(name, evaluator.hint):
                self._trace_evaluation(evaluator, Recorder(tree, "evaluation"))
        self._check_flags(execute, list(evaluators.values()), source, strict)

    def _trace(self, execute: programs.Execution, element_spec: Any, recorder: Recorder) -> tuple[tf.Variable, ...]:
        self._pipeline.watch = recorder
        before = execute.traces
        try:
            with self._random.entered(), read_numbers(self) as read:
                captured = execute.trace(element_spec, recorder)
            if execute.traces > before:
                execute.numbers = read
            return captured
        except InputError:
            finding = tensor_flag(recorder)
            if finding is None:
                raise
            raise InputError(f"{finding.path}: {finding.meaning} {finding.remedy}") from None
        finally:
            self._pipeline.watch = None

    def _trace_evaluation(self, evaluator: Evaluator, recorder: Recorder) -> None:
        with self._random.entered():
            evaluator.trace(recorder)

    def _idle_metrics(self, execute: programs.Execution) -> list[keras.Metric]:
        """The metrics that traced steps do not update; looper's own steps update all."""
        own = {"compute_loss", "train_step" if execute.kind == "train" else "eval_step"}
        return execute.idle_metrics(self._reader.metrics, self.strategy) if own & self._own_methods else []

    def _leave_idle_metrics_out(self, evaluators: Sequence[Evaluator]) -> list[keras.Metric]:
        """Leaves out of each evaluator's results what its steps do not update. Returns what none of them updates."""
        idle = [self._idle_metrics(evaluator.execute) for evaluator in evaluators]
        for evaluator, metrics in zip(evaluators, idle, strict=True):
            evaluator.left_out = self._reader.names_of(metrics)
        return [metric for metric in idle[0] if all(metric in others for others in idle)] if idle else []

    def _check_flags(
        self, execute: programs.Execution, evaluators: Sequence[Evaluator], source: Source, strict: bool
    ) -> None:
        """Says what the traces show to be wrong, once for each; with `strict`, errors are raised.

        Of the calls of layers in several evaluation steps it looks at those of the first.
        """
        training = execute.recorder
        evaluation = evaluators[0].execute.recorder if evaluators else None
        idle: dict[Any, Any] = {"training": self._idle_metrics(execute)}
        self._reader.leave_out(idle["training"])
        if evaluators:
            idle["evaluation"] = self._leave_idle_metrics_out(evaluators)
        if training is None:
            return
        facts = Facts(
            tree=training.tree,
            training=training,
            evaluation=evaluation,
            own=self._own_methods,
            trainable=self._trainable_variables(),
            captured=self._captured,
            idle_metrics=idle,
            replica_batch=replica_batch_of(
                source.smallest_batch, self.strategy.num_replicas_in_sync, self._options.accumulate
            ),
        )
        self._report = check(facts)
        if strict and not self._report.ok:
            found = [str(finding) for finding in self._report.findings if finding.severity != "note"]
            raise InputError("strict=True, and the audit found:\n" + "\n".join(found))
        told = [f for f in self._report.findings if f.severity != "note" and f not in self._told]
        self._told += told
        if not self._workers.is_chief:
            return
        shown = [finding for finding in told if finding.kind not in WARNED]
        if shown:
            print(f"looper: audit: {counted(shown)}\n{listed(shown)}", file=sys.stderr)
        for finding in told:
            if finding.kind in WARNED:
                warnings.warn(f"{finding.path}: {finding.meaning} {finding.remedy}", stacklevel=5)

    def _recipes(self, method: Callable[..., Any]) -> tuple[Any, bool]:
        """The recipe's own data, and whether it is this worker's share: of a method that takes a context."""
        takes = bool(inspect.signature(method).parameters)
        with self._random.entered():
            return method(self._workers.context) if takes else method(), takes and self._workers.size > 1

    def _set_parts(self, source: Source) -> None:
        """Makes known which of the recipe's parts, besides those of the data, its batches have."""
        source.parts = parts_in(source.element_spec, (*self.parts, *source.parts))

    def _first_batch(self, batch: Any, batch_size: int | None, data: Any = None) -> tuple[Any, Division]:
        """A batch for the audit: the one given, as `fit` would read it, or the first of `data`.

        Also returns how a training step divides it. `data` is by default the recipe's own for training.
        """
        if isinstance(batch, Named):
            raise InputError("audit() and check_replicas() take one batch, and were given what named() returned.")
        batch = without_lists(batch)
        if batch is not None:
            data = batch
        elif data is None:
            data = self._recipes(self.train_data)[0]
        if isinstance(data, Named):
            data = next(iter(data.sets.values()))
        if data is None:
            raise InputError("there is no data to audit with: give audit() a batch, or override train_data.")
        parts: Parts = self.parts

        def read(data: Any, batch_size: int | None) -> Any:
            nonlocal parts
            source = make_source(data, batch_size=batch_size, shuffle=False, seed=0, name="data")
            parts = (*self.parts, *source.parts)
            return next(iter(source.open(0, 0)))

        def whole(data: Any) -> Any:
            return read(data, int(count_examples(data)))

        with self._policy():
            if has_batches(data):
                found = read(data, None)
            elif batch is None:
                found = read(data, batch_size or self.defaults.get("batch_size"))
            elif not parts_in(batch, self.parts):
                found = whole(batch)
            elif isinstance(batch, Mapping):
                found = {name: whole(part) for name, part in batch.items()}
            else:
                found = tuple(map(whole, batch))
        division = self._pipeline.division(parts_in(found, parts))
        return division.checked(found), division

    @contextlib.contextmanager
    def _evaluating(self, averaged: bool = True) -> Iterator[None]:
        with (
            set_aside(build.all_metrics(self._attributes()), self.strategy),
            self._inference(averaged),
        ):
            yield

    @contextlib.contextmanager
    def _inference(self, averaged: bool = True) -> Iterator[None]:
        """Inside it the weights are those to evaluate and export: averaged over replicas and, with `ema`, over time."""
        own = contextlib.nullcontext() if self._average is None else self._average.swapped_in(self.strategy)
        average = own if averaged else contextlib.nullcontext()
        together = averaged_statistics(self._attributes(), self.strategy, self._workers.mean_over_replicas)
        with self._workers.watching("evaluation or prediction"), together, average:
            yield

    def _loss_alone(self, batch: Any) -> Any:
        with self._evaluating(), self._policy(), self._counts.at(self._counts.tensor()):
            return replicas.split_loss(self.compute_loss(batch, False))[0]
