"""A recipe's model, optimizer, loss and metrics, as its attributes hold them at the moment."""

import contextlib
from collections.abc import Iterator, Mapping, MutableMapping
from typing import Any

import keras

from looper.base.errors import InputError
from looper.base.names import named_objects
from looper.base.options import TrainerOptions
from looper.recipe import build, losses, optimizers, outputs
from looper.recipe.averages import WeightAverage
from looper.recipe.describe import describe_components
from looper.recipe.metrics import Reader, set_aside
from looper.recipe.precision import LossScale
from looper.run.devices import Devices
from looper.saved.variables import State, averaged_statistics, trainable_variables


class Components:
    """The components of one trainer, and looper's own variables beside them.

    Attributes:
        loss_scale: the dynamic loss scale, or None.
        average: moving averages of the weights, or None.
        output_metrics: the metrics of the model's outputs; None before `resolve_metrics`.
        reader: reads all metrics; known from then on.
        described: them as JSON, as they were when they were set: a callback may set the learning rate.

    Args:
        attributes: the recipe's own, as they change: what `vars` gives.
        options: the trainer's.
        devices: whose replicas hold the variables; it is made in their scope.
    """

    loss_scale: LossScale | None
    output_metrics: outputs.OutputMetrics | None
    reader: Reader
    described: dict[str, Any]

    def __init__(self, attributes: MutableMapping[str, Any], options: TrainerOptions, devices: Devices) -> None:
        self._all, self._options, self._devices = attributes, options, devices
        self._shared_random = keras.random.SeedGenerator(options.seed, name="shared_random")
        self._shared_random_used = False
        self.average = None if options.ema is None else WeightAverage(options.ema)
        self.loss_scale = None

    @property
    def model(self) -> Any:
        """The recipe's `model`, or None."""
        return self._all["model"]

    @property
    def optimizer(self) -> Any:
        """The recipe's `optimizer`, or None."""
        return self._all["optimizer"]

    @property
    def loss(self) -> Any:
        """The recipe's `loss`, or None."""
        return self._all["loss"]

    def attributes(self) -> dict[str, Any]:
        """The recipe's public attributes, and looper's own variables."""
        return self._public() | self._own()

    def layers(self) -> dict[str, keras.Layer]:
        """The layers and models among them, by name."""
        return {name: thing for name, thing in self.named() if isinstance(thing, keras.Layer)}

    def models(self) -> dict[str, keras.Model]:
        """The models alone."""
        return {name: layer for name, layer in self.layers().items() if isinstance(layer, keras.Model)}

    def named(self) -> list[tuple[str, Any]]:
        """All objects with variables, by name."""
        return list(named_objects(self.attributes()))

    def recipes_own(self) -> dict[str, Any]:
        """The attributes without the generator that all replicas share."""
        return {name: thing for name, thing in self.attributes().items() if thing is not self._shared_random}

    def optimizers(self) -> dict[str, Any]:
        """The optimizers, each by the first of its names."""
        first: dict[int, tuple[str, Any]] = {}
        for name, optimizer in self.named_optimizers().items():
            first.setdefault(id(optimizer), (name, optimizer))
        return dict(first.values())

    def named_optimizers(self) -> dict[str, Any]:
        """The optimizers, each by all of its names."""
        return {name: thing for name, thing in self.named() if isinstance(thing, keras.optimizers.Optimizer)}

    def name_of(self, optimizer: Any) -> str:
        """An optimizer's attribute; its own name if it has none."""
        names = [name for name, thing in self.named() if thing is optimizer]
        return names[0] if names else optimizer.name

    def trainable_variables(self) -> list[Any]:
        """The variables that the default step trains."""
        return trainable_variables(self.attributes())

    def metrics(self) -> list[keras.Metric]:
        """All metrics, and those that layers hold, each once."""
        return list({id(metric): metric for _, thing in self.named() for metric in build.metrics_of(thing)}.values())

    def use_shared_random(self) -> keras.random.SeedGenerator:
        """The generator that draws the same on all replicas; it is saved from now on."""
        self._shared_random_used = True
        return self._shared_random

    def state(self, captured: Any = ()) -> State:
        """All variables; `captured` are those that traced steps use."""
        return self._state_of(self.attributes(), captured)

    def state_of_layers(self) -> State:
        """The layers' variables, and looper's own."""
        return self._state_of({**self.layers(), **self._own()})

    @contextlib.contextmanager
    def evaluating(self, averaged: bool = True) -> Iterator[None]:
        """Inside it the weights are those to evaluate, and metrics are empty; after it, metrics hold what they held."""
        with set_aside(self.metrics(), self._devices.strategy), self.evaluation_weights(averaged):
            yield

    @contextlib.contextmanager
    def evaluation_weights(self, averaged: bool = True) -> Iterator[None]:
        """Inside it the statistics are the replicas' mean and, with `ema` and if they shall, the weights averages."""
        strategy, workers = self._devices.strategy, self._devices.workers
        own = self.average.swapped_in(strategy) if self.average and averaged else contextlib.nullcontext()
        together = averaged_statistics(self.attributes(), strategy, workers.mean_over_replicas)
        with workers.watching("evaluation or prediction"), together, own:
            yield

    @property
    def unbuilt(self) -> bool:
        """Whether the model has no variables yet."""
        return isinstance(self.model, keras.Layer) and not self.model.built

    def check(self) -> None:
        """Looks at what the recipe has set, and puts it into the form that the steps use. Call it in the scope."""
        self._all["loss"] = losses.resolve(self._all["loss"])
        self._all["optimizer"] = build.make("optimizer", self.optimizer)
        found = self.optimizers().values()
        for optimizer in found if self.optimizer is None else [self.optimizer, *found]:
            optimizers.check_optimizer(
                optimizer,
                replicas=self._devices.replicas,
                clip_norm=self._options.clip_norm,
                clip_value=self._options.clip_value,
            )
        if self.loss_scale is None:
            self.loss_scale = build.make_loss_scale([self.optimizer, *found], self._options.precision)
        self.output_metrics = None
        if not outputs.needs_shapes([self._all["metrics"], self._all["weighted_metrics"]]):
            self.resolve_metrics()
        self._seen = self._current()
        self.described = describe_components(self.attributes())

    def resolve_metrics(self, element_spec: Any = None) -> None:
        """Makes metric objects of names and functions; "accuracy" needs the shapes of a batch."""
        names = ("metrics", "weighted_metrics")
        found = build.metrics_for(self.model, element_spec, *(self._all[name] for name in names))
        self._all.update(zip(names, found, strict=True))
        self.output_metrics = outputs.OutputMetrics(self._all["metrics"], self._all["weighted_metrics"])
        self.reader = Reader(
            self.metrics(),
            lambda: build.settings(self.optimizers(), self.loss_scale),
            self.output_metrics.name,
            self._devices.strategy if self._devices.workers.size > 1 else None,
        )
        self._seen = self._current()

    def are_replaced(self) -> bool:
        """Whether the model, optimizer, loss or metrics were set to other ones since `check`."""
        now = self._current()
        return len(now) != len(self._seen) or any(a is not b for a, b in zip(now, self._seen, strict=True))

    def check_default_step(self, own_loss: bool) -> None:
        """Raises `InputError` if there is not what the default step needs; `own_loss`: `compute_loss` is overridden."""
        if self.optimizer is None:
            raise InputError("there is no optimizer: set self.optimizer in build, or give optimizer=.")
        if self.model is None and not own_loss:
            raise InputError("there is no model: set self.model in build, give model=, or override compute_loss.")
        if not self.trainable_variables():
            raise InputError("there is nothing to train: no attribute of the trainer has trainable variables.")

    def _public(self) -> dict[str, Any]:
        return {name: thing for name, thing in self._all.items() if not name.startswith("_")}

    def _own(self) -> dict[str, Any]:
        own: dict[str, Any] = {} if self.loss_scale is None else {"loss_scale": self.loss_scale.variables}
        if self._shared_random_used:
            # a checkpoint of a process that had not traced its use yet lacks it, as it may lack what is captured
            own["captured/shared_random"] = self._shared_random
        return own if self.average is None else own | {"ema_updates": self.average.updates}

    def _state_of(self, attributes: Mapping[str, Any], captured: Any = ()) -> State:
        averages = {} if self.average is None else self.average.averages
        return State(attributes, self._devices.strategy, captured, averages, self._devices.workers.first_replica)

    def _current(self) -> list[Any]:
        given = [self._all[name] for name in ("loss", "loss_weights", "metrics", "weighted_metrics")]
        return [self.model, self.optimizer, *keras.tree.flatten(given)]
