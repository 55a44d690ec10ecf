"""What the programs share: their data's size, small networks, and how each side is trained."""

import contextlib
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import keras
import numpy as np
import tensorflow as tf

import looper
from looper.base.names import as_tf
from looper.saved import checkpoint
from tests.support import inside

L = keras.layers

EXAMPLES, BATCH, STEPS = 41, 9, 12
"""Batches of 9 and, at the end of each pass, of 5: two replicas have 4 and 5, then 2 and 3."""


def normal(*shape: int, seed: int = 0) -> np.ndarray:
    """Numbers for each example, the same ones at every call."""
    return np.random.default_rng(seed).normal(size=(EXAMPLES, *shape))


def whole(below: int, *shape: int, seed: int = 0) -> np.ndarray:
    """Whole numbers for each example, from 0 up to one less than `below`."""
    return np.random.default_rng(seed).integers(0, below, (EXAMPLES, *shape)).astype("int32")


def dense(inputs: int, outputs: int, hidden: int = 8) -> keras.Model:
    return keras.Sequential([keras.Input((inputs,)), L.Dense(hidden, "tanh"), L.Dense(outputs)])


def cross_entropy(y: Any, logits: Any) -> Any:
    """One value for each example, or for each token."""
    return keras.losses.sparse_categorical_crossentropy(y, logits, from_logits=True)


def cast(data: Any, precision: str) -> Any:
    """The data with its real numbers in a run's precision."""
    dtype = "float64" if precision == "float64" else "float32"
    return tf.nest.map_structure(lambda x: x.astype(dtype) if x.dtype.kind == "f" else x, data)


@contextlib.contextmanager
def policy(precision: str) -> Iterator[None]:
    """Inside it Keras makes layers of a precision."""
    before = keras.config.floatx(), keras.config.dtype_policy()
    keras.config.set_floatx(precision)
    keras.config.set_dtype_policy(precision)
    try:
        yield
    finally:
        keras.config.set_floatx(before[0])
        keras.config.set_dtype_policy(before[1])


def values(thing: Any, strategy: tf.distribute.Strategy | None = None) -> list[np.ndarray]:
    """The values of all variables of a model, of several in a dict, or of one variable, on each replica."""
    if isinstance(thing, dict):
        return [value for each in thing.values() for value in values(each, strategy)]
    variables = [as_tf(v) for v in (thing.weights if isinstance(thing, keras.Layer) else [thing])]
    copies = [[v] if strategy is None else strategy.experimental_local_results(v) for v in variables]
    return [np.stack([copy.numpy() for copy in of_one]) for of_one in copies]


def by_hand(program: Any, precision: str, steps: int = STEPS, compiled: bool = True) -> dict[str, list[np.ndarray]]:
    """What a program by hand ends with, by the name of the recipe's attribute. Uncompiled, it begins earlier."""
    with policy(precision):
        keras.utils.set_random_seed(0)  # the default of a Trainer
        tf.config.run_functions_eagerly(not compiled)
        try:
            ended = program.by_hand(first_batches(program, precision, steps))
        finally:
            tf.config.run_functions_eagerly(False)
        return {name: values(thing) for name, thing in ended.items()}


def first_batches(program: Any, precision: str, steps: int) -> list[Any]:
    """The batches of so many steps, in the order of the data, pass after pass."""
    data = cast(program.data(), precision)
    parts = data if isinstance(data, dict) else {None: data}
    sizes = getattr(program, "SIZES", {None: BATCH})
    found = {name: [_batch(part, i, sizes[name]) for i in range(steps)] for name, part in parts.items()}
    return [
        {name: of_part[i] for name, of_part in found.items()} if None not in found else found[None][i]
        for i in range(steps)
    ]


def _batch(data: Any, i: int, size: int) -> Any:
    starts = range(0, len(tf.nest.flatten(data)[0]), size)
    start = starts[i % len(starts)]
    return tf.nest.map_structure(lambda x: tf.constant(x[start : start + size]), data)


def fit(program: Any, trainer: looper.Trainer, precision: str = "float32", steps: int = STEPS, **options: Any) -> None:
    """Trains a recipe of a program until so many steps are done, on the batches of the program by hand."""
    data = cast(program.data(), precision)
    options = {"batch_size": getattr(program, "SIZES", BATCH), "shuffle": False, "progress": False} | options
    if isinstance(data, dict):
        data = looper.data.zipped(**data, batch_size=options.pop("batch_size"))
    trainer.fit(data, steps=steps, **options)


def train(program: Any, names: Sequence[str], precision: str, **options: Any) -> dict[str, list[np.ndarray]]:
    """What a recipe ends with in its attributes, on each replica."""
    trainer = program.Recipe(**{"execution": "graph", "precision": precision} | options)
    fit(program, trainer, precision)
    return {name: values(getattr(trainer, name), trainer.strategy) for name in names}


def drawn(program: Any) -> type[looper.Trainer]:
    """A recipe with Adam, which draws how much smaller it makes its numbers, and which whole numbers become 1."""

    def noisy(x: Any, seeds: Any) -> Any:
        if x.dtype.is_floating:
            return x * keras.random.uniform(tf.shape(x), 0.8, 1.0, seed=seeds, dtype=x.dtype)
        return tf.where(keras.random.uniform(tf.shape(x), seed=seeds) < 0.1, tf.ones_like(x), x)

    class Drawn(program.Recipe):
        def build(self) -> None:
            with mock.patch.object(keras.optimizers, "SGD", lambda rate: keras.optimizers.Adam(0.1 * rate)):
                super().build()
            self.seeds = keras.random.SeedGenerator(5)

        def noisy(self, batch: Any) -> Any:
            return tf.nest.map_structure(lambda x: noisy(x, self.seeds), batch)

    class InStep(Drawn):
        def train_step(self, batch: Any) -> Any:
            return super().train_step(self.noisy(batch))

    class InLoss(Drawn):
        def compute_loss(self, batch: Any, training: bool) -> Any:
            return super().compute_loss(self.noisy(batch) if training else batch, training)

    return InStep if "train_step" in vars(program.Recipe) else InLoss


def stopped_and_undisturbed(
    program: Any, folder: Path, steps: int = STEPS, stop: int = 7, **options: Any
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """What a run ends with that is continued from its workdir of step `stop`, and what one does that was not stopped.

    The first is the second's own workdir without what was saved later, as if the process had been killed.
    """
    kind, found = drawn(program), []
    for _ in range(2):
        trainer = kind(**{"execution": "graph", "workdir": folder} | options)
        fit(program, trainer, steps=steps, shuffle=True, save_every=looper.Every(steps=stop))
        found.append(inside.values(trainer))
        for path in (folder / "checkpoints").iterdir():
            if checkpoint.step_of(path) > stop:
                shutil.rmtree(path)
    return found[1], found[0]
