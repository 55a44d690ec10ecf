"""What a trainer has for its whole life: devices, components, pipeline and compiled steps."""

from collections.abc import Callable, MutableMapping
from typing import Any

import tensorflow as tf

from looper.base.errors import InputError, first_line
from looper.base.options import TrainerOptions
from looper.run.building import Building
from looper.run.components import Components
from looper.run.devices import Devices
from looper.run.hooks import Hooks
from looper.run.sources import Sources
from looper.run.steps import Steps
from looper.step.cache import Executions
from looper.step.counting import Counting
from looper.step.gradients import Pipeline
from looper.step.replicas import split_loss
from looper.workers.peers import is_of_collectives, said_of_collectives


class Session:
    """Made once for a trainer; all but options, hooks, counts and devices when it is built.

    Attributes:
        options: the trainer's.
        hooks: the recipe's methods.
        counts: the numbers of steps and epochs done.
        devices: strategy, workers, number format.
        components: model, optimizer, loss, metrics.
        pipeline: from a loss to an update.
        executions: the compiled steps that are kept.
        building: makes variables.
        steps: compiles and looks at steps.
        sources: opens data.

    Args:
        options, hooks: see above.
        attributes: the recipe's own, as they change: what `vars` gives.
        numbers: gives the steps and epochs done, and the step that training ends at.
    """

    components: Components
    pipeline: Pipeline
    executions: Executions
    building: Building
    steps: Steps
    sources: Sources

    def __init__(
        self,
        options: TrainerOptions,
        hooks: Hooks,
        attributes: MutableMapping[str, Any],
        numbers: Callable[[], tuple[int, int, int | None]],
    ) -> None:
        self.options, self.hooks, self.counts = options, hooks, Counting(numbers)
        self.devices = Devices(options)
        self._attributes = attributes

    def build(self) -> None:
        """Builds the recipe, in the scope and by its seed, and what stands on its components.

        Raises:
            InputError: if the devices cannot run in the mode that is asked for; what a recipe's `build` raises.
        """
        options, hooks, devices, workers = self.options, self.hooks, self.devices, self.devices.workers
        devices.check_mode(options.execution)
        with devices.scope():
            self.components = components = Components(self._attributes, options, devices)
            self._build_together()
            components.check()
            self.pipeline = Pipeline(
                devices.strategy,
                clip_norm=options.clip_norm,
                clip_value=options.clip_value,
                accumulate=options.accumulate,
                transform=hooks.transform_gradients if "transform_gradients" in hooks.own else None,
                loss_scale=components.loss_scale,
                average=components.average,
                dtype=devices.row_dtype,
                workers=workers.size,
            )
        compiled = options.execution != "eager"
        self.executions = Executions(self.pipeline, compiled=compiled, workers=workers.size, counts=self.counts)
        self.building = Building(devices, components, self.pipeline, self.executions, hooks, options, self.counts)
        self.steps = Steps(devices, components, self.building, self.pipeline, self.executions, hooks, options)
        self.sources = Sources(devices, components, self.building, self.steps, self.pipeline, hooks, options.seed)

    def refresh(self) -> bool:
        """Drops what was compiled if the model, optimizer, loss or metrics were set to other ones; whether it did."""
        replaced = self.components.are_replaced()
        if replaced:
            self.executions.clear()
            with self.devices.scope():
                self.components.check()
        return replaced

    def check_trainable(self) -> None:
        """Looks for what the default step needs, before anything is traced."""
        if self.hooks.own_train_step is None:
            self.check_default_step()

    def check_default_step(self) -> None:
        """The same, for a recipe's own step that calls the default one."""
        self.components.check_default_step("compute_loss" in self.hooks.own)

    def loss_alone(self, batch: Any) -> Any:
        """The loss of a batch in evaluation; metrics stay as they are."""
        with self.components.evaluating(), self.devices.policy(), self.counts.at(self.counts.tensor()):
            return split_loss(self.hooks.compute_loss(batch, False))[0]

    def _build_together(self) -> None:
        workers = self.devices.workers
        try:
            self.hooks.build()
        except tf.errors.OpError as error:  # the chief's values could not be given to all
            if workers.size == 1:
                raise
            said = said_of_collectives(error) if is_of_collectives(error) else first_line(error)
            raise workers.lost(error, "build()") or InputError(
                f"the workers build different models: {said} Start all with the same recipe."
            ) from error
