"""Runs that an older looper began: their checkpoints are committed, and go on as they did then.

`python -m tests.support.golden NAME...` writes those of cases that are added, with the looper at hand: a checkpoint in
the middle of an undisturbed run, and the run's last weights and logs. One that is there is never written again.
"""

import dataclasses
import functools
import shutil
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

import looper
from tests.support import processes

FOLDER = Path(__file__).parents[1] / "saved" / "golden"
STOPPED, STEPS = 9, 18
"""In the middle of the second epoch of six batches, and the end of the third."""

L = keras.layers
REPLICAS = {"strategy": "mirrored", "devices": 2}


def arrays() -> tuple[np.ndarray, np.ndarray]:
    x = np.sin(np.arange(24 * 6, dtype="float64").reshape(24, 6))
    return x, np.arange(24) % 3


def dataset() -> tf.data.Dataset:
    return tf.data.Dataset.from_tensor_slices(arrays()).shuffle(10, seed=3).batch(4).repeat()


class LazyDropout(L.Layer):
    """Makes its dropout, and so its seeds, when it is built."""

    def build(self, input_shape):
        self.dropout = L.Dropout(0.3)
        self.built = True

    def call(self, x, training=False):
        return self.dropout(x, training=training)


def model(norm: bool = False, lazy: bool = False) -> keras.Model:
    layers = [L.Dense(5, activation="relu", name="first"), L.Dropout(0.3), L.Dense(4, name="second")]
    if norm:
        layers.append(L.BatchNormalization())
    if lazy:
        return keras.Sequential([L.Dense(5, name="first"), LazyDropout(), L.Dense(3, name="head")])
    return keras.Sequential([keras.Input((6,)), *layers, L.Dense(3, name="head")])


def frozen() -> keras.Model:
    made = model()
    looper.freeze(made, until="second")
    return made


class Noisy(looper.Trainer):
    """Draws with Keras' global generator, which no attribute holds."""

    def compute_loss(self, batch, training):
        x, y = batch
        return super().compute_loss((x + 0.1 * keras.random.normal((6,), dtype=x.dtype), y), training)


@dataclasses.dataclass(frozen=True)
class Case:
    """A run.

    Attributes:
        kind, options: of the trainer.
        make: its model.
        data: what it trains on.
        callbacks: made anew for each `fit`.
        fit: options of it.
    """

    kind: type[looper.Trainer] = looper.Trainer
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    make: Callable[[], keras.Model] = model
    data: Callable[[], Any] = arrays
    callbacks: Callable[[], Sequence[Any]] = list
    fit: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def trainer(self, workdir: Path | None = None) -> looper.Trainer:
        return self.kind(
            model=self.make,
            optimizer=lambda: keras.optimizers.Adam(0.01),
            loss=lambda: keras.losses.SparseCategoricalCrossentropy(from_logits=True),
            metrics=lambda: [keras.metrics.SparseCategoricalAccuracy("accuracy")],
            workdir=workdir,
            precision="float64",
            **{"execution": "graph"} | self.options,
        )

    def run(self, trainer: looper.Trainer) -> looper.Trainer:
        size = {"batch_size": 4} if self.data is arrays else {}
        times = {"log_every": looper.Every(steps=6), "save_every": looper.Every(steps=STOPPED)}
        trainer.fit(self.data(), steps=STEPS, callbacks=self.callbacks(), progress=False, **size | times | self.fit)
        return trainer


def unfreezing() -> Sequence[Any]:
    return [looper.callbacks.Unfreeze(looper.At([4]), "first", learning_rate=0.005)]


def two_of_a_kind() -> Sequence[Any]:
    return [
        looper.callbacks.EarlyStopping(log, patience=99, restore_best_weights=False) for log in ("loss", "accuracy")
    ]


CASES = {
    "arrays": Case(callbacks=lambda: [looper.callbacks.ReduceLROnPlateau("loss", patience=1, min_delta=9)]),
    "dataset": Case(data=dataset, fit={"steps_per_epoch": 6}),
    "replicas": Case(options=REPLICAS, make=lambda: model(norm=True)),
    "workers": Case(options={"strategy": "multi_worker"}, make=lambda: model(norm=True)),
    "xla_loop": Case(options={"execution": "xla_loop"}, data=dataset, fit={"steps_per_epoch": 6}),
    "unfrozen": Case(make=frozen, callbacks=unfreezing),
    "unseeded": Case(kind=Noisy),
    "lazy": Case(options=REPLICAS, make=lambda: model(lazy=True)),
    "restored": Case(),
    "two_of_a_kind": Case(callbacks=two_of_a_kind),
}


def found(trainer: looper.Trainer) -> dict[str, np.ndarray]:
    """What a run ended with; batch statistics of the chief's replicas alone, which are those that were committed."""
    last = {name: np.array(trainer.history[name][-1]) for name in ("loss", "accuracy")}
    weights = {i: v for i, v in enumerate(trainer.model.weights) if v.trainable or trainer.is_chief}
    return last | {f"weight_{i}": np.array(v) for i, v in weights.items()}


def expected(name: str) -> dict[str, np.ndarray]:
    """What it ended with when it was committed."""
    with np.load(FOLDER / name / "expected.npz") as arrays:
        return dict(arrays)


def checkpoint(name: str) -> Path:
    """The checkpoint in its middle."""
    return FOLDER / name / f"step_{STOPPED:08}"


def check(name: str, trainer: looper.Trainer) -> None:
    """Asserts that a run that went on ended as it did then."""
    mine, then = found(trainer), expected(name)
    assert mine.keys() == then.keys() or not trainer.is_chief
    for what, value in ((what, then[what]) for what in mine):
        # in float64; other processors round otherwise. A lost mask, moment, batch or sum shows in the first digits
        np.testing.assert_allclose(mine[what], value, rtol=1e-7, atol=1e-9, err_msg=f"{name}: {what}")


def _write(name: str) -> None:
    case, folder = CASES[name], FOLDER / name
    workdir = folder / "workdir"
    undisturbed = case.run(case.trainer(workdir))
    if not undisturbed.is_chief:
        return
    (workdir / "checkpoints" / checkpoint(name).name).rename(checkpoint(name))
    if name == "restored":
        restored = case.trainer()
        restored.restore(checkpoint(name))
        restored.save(checkpoint(name))
    np.savez(folder / "expected.npz", **found(undisturbed))
    shutil.rmtree(workdir)


@functools.cache
def split_cpu() -> None:
    [cpu] = tf.config.list_physical_devices("CPU")
    tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)


def main(names: Sequence[str]) -> None:
    for name in names or CASES:
        if name == "workers" and "WRITING" not in names:
            codes = processes.together(2, ["-m", "tests.support.golden", name, "WRITING"], FOLDER)
            assert codes == [0, 0], [processes.output(FOLDER, rank) for rank in range(2)]
            for rank in range(2):
                (FOLDER / f"rank_{rank}.txt").unlink()
        elif name in CASES:
            if name != "workers":
                split_cpu()
            _write(name)


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    main(sys.argv[1:])
