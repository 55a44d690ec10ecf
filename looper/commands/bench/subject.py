"""The subject of a measurement: a recipe with its options, its data, and the trainers that the sides make of it."""

import dataclasses
from pathlib import Path
from typing import Any

import keras
import tensorflow as tf

from looper.base.errors import InputError
from looper.base.options import FitOptions, TrainerOptions
from looper.commands.bench.messages import LeftOutError
from looper.data.choose import make_source
from looper.data.source import Source
from looper.data.split import split
from looper.recipe import precision
from looper.recipe.layers import inside
from looper.trainer import Trainer

COMPARED = 5
"""First steps whose losses are compared between the sides."""


@dataclasses.dataclass(frozen=True)
class Subject:
    """A recipe and the options that it was given.

    Attributes:
        recipe: the class.
        config: its own settings, or None.
        trainer_options, fit_options: those of the command line, over the recipe's defaults.
    """

    recipe: type[Trainer]
    config: Any
    trainer_options: TrainerOptions
    fit_options: FitOptions

    def trainer(self, execution: str, workdir: Path | None = None) -> Trainer:
        """A new trainer in this mode, whose weights are those of every other."""
        chosen: Any = execution
        options = dataclasses.replace(self.trainer_options, execution=chosen, workdir=workdir)
        return self.recipe(config=self.config, **vars(options))

    def data(self, trainer: Trainer) -> Any:
        """The recipe's training data; a dataset that ends is repeated."""
        data = trainer.train_data()
        if data is None:
            raise InputError(f"{type(trainer).__name__}.train_data() returned None: bench needs data to train on.")
        if hasattr(data, "__next__"):
            raise InputError(
                f"{type(trainer).__name__}.train_data() returned a {type(data).__name__}, which can be read only once, "
                "and bench reads the data many times: return a function that makes it."
            )
        if isinstance(data, tf.data.Dataset) and data.cardinality() != tf.data.INFINITE_CARDINALITY:
            return data.repeat()
        return data

    def arrays(self, data: Any) -> Any:
        """The data without what `validation_split` holds out."""
        fraction = self.fit_options.validation_split
        return data if fraction is None else split(data, fraction)[0]

    def source(self, data: Any) -> Source:
        """The batches that `fit` would train on, in its order."""
        with precision.scope(self.trainer_options.precision):
            return make_source(
                self.arrays(data),
                batch_size=self.fit_options.batch_size,
                shuffle=self.fit_options.shuffle,
                seed=self.trainer_options.seed,
                name="training data",
                training=True,
            )

    def check_plain(self, trainer: Trainer, what: str) -> None:
        """Raises `LeftOutError` if the recipe or its options ask for what only looper does."""
        if overrides(trainer, "train_step"):
            raise LeftOutError(f"the recipe has its own train_step, which {what} cannot call")
        for name in ("accumulate", "ema"):
            value = getattr(self.trainer_options, name)
            if value not in (None, 1):
                raise LeftOutError(f"{what} has no {name}={value}")
        if trainer.strategy.num_replicas_in_sync > 1:
            raise LeftOutError(f"{what} is for one device, and there are {trainer.strategy.num_replicas_in_sync}")


def overrides(trainer: Trainer, method: str) -> bool:
    """Whether the recipe has its own `method`."""
    return getattr(type(trainer), method) is not getattr(Trainer, method)


def report(trainer: Trainer, seconds: float, first: list[float] | None, length: int | None) -> dict[str, Any]:
    """A side's answer about its first steps.

    Args:
        trainer: whose layers may draw random numbers; their classes are named, such as ["Dropout"].
        seconds: from the call to the end of the first step.
        first: the losses of the first steps; None if there are none.
        length: batches of an epoch, or None for data without an end.
    """
    models = [value for value in vars(trainer).values() if isinstance(value, keras.Layer)]
    layers = [layer for model in models for layer in inside(model)]
    drawing = [x for x in layers if any(isinstance(v, keras.random.SeedGenerator) for v in vars(x).values())]
    random = sorted({type(layer).__name__ for layer in drawing})
    return {"first_step_seconds": seconds, "losses": first, "random": random, "batches_per_epoch": length}
