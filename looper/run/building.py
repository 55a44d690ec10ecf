"""The variables of models and optimizers: made for the batches and for what is trained, and put into a saved phase."""

from collections.abc import Mapping, Sequence
from typing import Any

import keras
import tensorflow as tf

from looper.base.batches import Parts
from looper.base.errors import InputError
from looper.base.lines import warn
from looper.base.names import as_tf
from looper.base.options import TrainerOptions
from looper.recipe import build, learning_rates, optimizers
from looper.run.components import Components
from looper.run.devices import Devices
from looper.run.hooks import Hooks
from looper.saved import trained
from looper.saved.resume import Saved
from looper.saved.variables import offset_seeds, trainable_flags
from looper.step import lookups, noting, replicas
from looper.step.cache import Executions
from looper.step.counting import Counting
from looper.step.gradients import Pipeline
from looper.step.idle import find_untouched


class Building:
    """Makes the variables of one trainer's components.

    Attributes:
        own_step: what is known of an own `train_step`.

    Args:
        devices: where they are made.
        components: what they are of.
        pipeline, executions: which know of optimizers and what is trained.
        hooks: the recipe's methods.
        options: the trainer's.
        counts: the numbers of steps and epochs done.
    """

    def __init__(
        self,
        devices: Devices,
        components: Components,
        pipeline: Pipeline,
        executions: Executions,
        hooks: Hooks,
        options: TrainerOptions,
        counts: Counting,
    ) -> None:
        self._devices, self._components, self._pipeline, self._executions = devices, components, pipeline, executions
        self._hooks, self._options, self._counts = hooks, options, counts
        self.own_step = noting.OwnStep()
        self._own_step_of: Any = None  # what was traced to know it
        self._own_step_on: tuple[Any, Parts] | None = None  # the batches that it was looked at for
        self._optimizers_for = self._trainable_ids()  # what was trainable then
        self._trained: list[Any] | None = None  # what `optimizer` was built for
        self._seeds_set: set[int] = set()
        self._phase: Mapping[str, Any] = {}  # of a checkpoint that was restored before the model was built
        self._offset_seeds()

    def recipe(
        self, class_weight: Mapping[int, float] | None = None, output_rank: int | None = None
    ) -> replicas.Recipe:
        """The methods and variables that a step needs; classes have weights in training, if these are given."""
        hooks, components = self._hooks, self._components

        def compute_loss(batch: Any, training: bool) -> Any:
            if class_weight and training:
                batch = build.class_weighted(batch, class_weight, output_rank)
            return hooks.compute_loss(batch, training)

        return replicas.Recipe(
            compute_loss=compute_loss,
            train_step=hooks.own_train_step,
            waits=self.own_step.waits,
            after_update=hooks.after_update if "after_update" in hooks.own else None,
            eval_step=hooks.eval_step,
            predict_step=hooks.predict_step,
            optimizer=components.optimizer,
            optimizers=tuple(components.optimizers().values()),
            variables=tuple(components.trainable_variables()),
            untouched=find_untouched(components.attributes(), self._devices.strategy),
            lookups=lookups.find(components.layers().values()),
            counts=self._counts,
            precision=self._devices.precision,
            world=self._devices.random.entered,
        )

    def flags(self) -> tuple[Any, ...]:
        """What steps depend on besides their batches: what is trainable, and how."""
        return trainable_flags(self._components.attributes())

    def make_variables(self, element_spec: Any, saved: Saved | None = None, metrics: bool = True) -> None:
        """Makes the variables of a model that was not built yet, the optimizer's and, with targets, the metrics'.

        Args:
            element_spec: of a batch.
            saved: a checkpoint whose values they will be given, or None.
            metrics: whether to make metrics' variables.
        """
        named = self._components.named
        if self._components.unbuilt:
            with self._devices.scope():
                build.build_model(self._components.model, element_spec)
        trained.put_back_layers(self._phase, named())  # also where the user has built it since
        if metrics and self._components.output_metrics is None:
            with self._devices.scope():
                self._components.resolve_metrics(element_spec)
        self.make_optimizer()
        trained.put_back_optimizers(self._phase, named())
        self._phase = {}
        self._offset_seeds()  # before values are given, which are those of each replica
        if saved is not None:
            trained.put_back_optimizers(saved.phase, named(), factors=False)

    def enter(self, saved: Saved) -> None:
        """Puts what is trained, and how, to what a checkpoint says; of a model that is not built, when it is.

        First what layers are trained, then the optimizers for that, then which of their variables began when. Values
        are given later: `Saved.apply`.
        """
        wanted = {} if saved.is_past else saved.phase  # what a later `fit` trained is not trained yet
        if self._components.unbuilt:
            self._phase = wanted
            return
        named, announced = self._components.named, bool(wanted)
        trained.put_back_layers(wanted, named())
        self.make_optimizer(announced)
        if self._own_step_on is not None:
            self.look(*self._own_step_on, announced=announced)
        trained.put_back_optimizers(wanted, named())

    @property
    def lacks_variables(self) -> bool:
        """Whether variables that a checkpoint holds may not exist before batches are known."""
        others = self._components.optimizers().values()
        of_others = self._trains_others or any(not optimizers.inner(other).built for other in others)
        of_others = of_others and self._hooks.own_train_step is not None and self._own_step_on is None
        return self._components.unbuilt or self._components.output_metrics is None or of_others

    def look(self, element_spec: Any, parts: Parts, saved: Saved | None = None, announced: bool = False) -> None:
        """Finds out what an own `train_step` does, where that matters, and builds the optimizers that it forgot.

        An optimizer that it gives other variables than it was built for, because other layers are trained now, is built
        again with what it can of its state. It warns of that, unless the change was `announced`.

        Raises:
            InputError: if it cannot be done in micro-batches, and is to be.
        """
        several = self._devices.replicas > 1 or self._options.accumulate > 1
        found = self._components.optimizers().values()
        unbuilt = any(not optimizers.inner(optimizer).built for optimizer in found)
        self._own_step_on = (element_spec, parts)
        if self._hooks.own_train_step is None or not (several or unbuilt or self._trains_others):
            self.own_step, self._own_step_of = noting.OwnStep(), None  # what was known may be of other batches
            return
        key = (str(element_spec), self.flags(), self._pipeline.skip_nonfinite)
        if self._own_step_of != key:
            recipe, division = self.recipe(), self._pipeline.division(parts)
            self.own_step = noting.look(
                lambda: replicas.noted(recipe, self._pipeline, division, element_spec),
                self._components.attributes,
                self._devices.strategy,
            )
            self._own_step_of = key
        for optimizer, variables in self.own_step.built_for:
            self._make_for(optimizer, variables, saved, announced)
        self._optimizers_for = self._trainable_ids()
        if self._options.accumulate > 1 and not (self.own_step.waits or self.own_step.through):
            if isinstance(self.own_step.error, InputError):
                raise self.own_step.error
            raise InputError(
                f"accumulate={self._options.accumulate}: train_step {self.own_step.reason}, and so cannot be done in "
                "micro-batches: leave accumulate out, or let train_step call super().train_step(batch) or one "
                "minimize() after which it looks at nothing that is trained (after_update(self) may)."
            ) from self.own_step.error

    def make_optimizer(self, announced: bool = False) -> None:
        """Makes the optimizer's variables; again if other variables are trainable now, with what it can of its state.

        It warns of that, unless the change was `announced`.
        """
        variables, optimizer = self._components.trainable_variables(), self._components.optimizer
        if self._components.average is not None:
            with self._devices.scope():
                self._components.average.build([as_tf(v) for v in variables])
        if not (isinstance(optimizer, keras.optimizers.Optimizer) and variables):
            return
        before, self._trained = self._trained, variables
        if not optimizers.inner(optimizer).built:
            with self._devices.scope():
                optimizers.inner(optimizer).build(variables)
                learning_rates.begin(optimizer, [])
        elif before is not None and list(map(id, before)) != list(map(id, variables)):
            with self._devices.scope():
                self._make_again(optimizer, variables, optimizers.others(variables, before), announced)

    def make_ready(self, optimizer: Any, variables: Sequence[Any]) -> None:
        """Builds, in a step, an optimizer that no first look has shown; in a replica's thread it cannot be."""
        if optimizer is None:
            raise InputError("there is no optimizer: set self.optimizer in build, or give one.")
        if self._pipeline.is_noting or optimizers.inner(optimizer).built:
            return
        if self._devices.replicas > 1:
            raise InputError(
                f"the optimizer {optimizer.name!r} is not built: call optimizer.build(variables) in build()."
            )
        with tf.init_scope():
            optimizers.inner(optimizer).build(list(variables))

    def finish_optimizers(self) -> None:
        """Does what Keras' optimizers do at the end of training."""
        found = self._components.optimizers().values()
        if any(member.use_ema for optimizer in found for member in optimizers.members(optimizer)):
            with self._devices.scope():
                for optimizer in found:
                    optimizers.finalize(optimizer)

    def _make_for(self, optimizer: Any, variables: Sequence[Any], saved: Saved | None, announced: bool) -> None:
        """Builds an optimizer for these variables and those that it has already."""
        one = optimizers.inner(optimizer)
        known = optimizers.trained_by(one)
        new = optimizers.others(variables, known)
        with self._devices.scope():
            if not one.built:
                one.build(list(variables))
            elif new:
                self._make_again(optimizer, [*known, *new], new, announced)
                if saved is not None:
                    trained.put_back_optimizers(saved.phase, self._components.named(), factors=False)

    def _make_again(self, optimizer: Any, variables: Sequence[Any], new: Sequence[Any], announced: bool) -> None:
        """Builds an optimizer for other variables, of which some are new. Call it in the scope."""
        before = len(optimizers.trained_by(optimizer))
        reused, fresh = optimizers.rebuild(optimizer, variables)
        self._executions.of_batches.clear()  # they have the variables that went
        learning_rates.begin(optimizer, new)
        if not announced:
            warn(
                f"{len(variables)} variables are trainable now, {before} were before: the step is compiled anew; of "
                f"the variables of self.{self._components.name_of(optimizer)} {reused} keep their values and {fresh} "
                "are new."
            )

    @property
    def _trains_others(self) -> bool:
        """Whether other variables are trainable than when an own step's optimizers were looked at."""
        return self._optimizers_for != self._trainable_ids()

    def _trainable_ids(self) -> list[int]:
        return list(map(id, self._components.trainable_variables()))

    def _offset_seeds(self) -> None:
        """Gives replicas seeds of their own, but those of the generator that they share."""
        found, first = self._components.recipes_own(), self._devices.workers.first_replica
        offset_seeds(found, self._devices.strategy, self._seeds_set, first)
