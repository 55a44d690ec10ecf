"""Cases that must end with the same numbers on any number of replicas and workers.

Models without randomness and without unsynchronized batch statistics, 20 steps each. As a program it runs cases on
one set of devices, in a process of its own because TensorFlow has one set of devices per process:

    python -m tests.support.one_equals_many --cases sgd_momentum,adam --strategy mirrored --devices 2 --out two.npz

The file holds for each case and precision the final weights, every step's logs and the results of an evaluation,
called `CASE/PRECISION/weights/0`, `CASE/PRECISION/log/loss` and `CASE/PRECISION/eval/loss`.
"""

import argparse
import dataclasses
import os
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
import tensorflow as tf

import looper
from looper.workers.cluster import local_cluster
from tests.support import graphs, models
from tests.support.processes import ROOT

L = keras.layers

STEPS = 20
BATCH = 16
NOT_COMPARED = ("steps_per_second", "examples_per_second")


def dense() -> keras.Model:
    return keras.Sequential([keras.Input((6,)), L.Dense(16, activation="tanh"), L.Dense(3)])


def embedding() -> keras.Model:
    layers = [L.Embedding(5, 4), L.Flatten(), L.Dense(3)]
    return keras.Sequential([keras.Input((6,), dtype="int32"), *layers])


class Activity(L.Layer):
    """Adds a loss that depends on the examples."""

    def call(self, x: Any) -> Any:
        self.add_loss(0.1 * keras.ops.mean(keras.ops.square(x)))
        return x


def with_losses() -> keras.Model:
    hidden = L.Dense(16, activation="tanh", kernel_regularizer="l2", activity_regularizer="l2")
    return keras.Sequential([keras.Input((6,)), hidden, Activity(), L.Dense(3, bias_regularizer="l1")])


def synchronized() -> keras.Model:
    hidden = [L.Dense(16, use_bias=False), L.BatchNormalization(synchronized=True), L.Activation("tanh")]
    return keras.Sequential([keras.Input((6,)), *hidden, L.Dense(3)])


def classes(examples: int, dtype: str) -> tuple[np.ndarray, ...]:
    return models.data(examples=examples, dtype=dtype)


def weighted(examples: int, dtype: str) -> tuple[np.ndarray, ...]:
    return *classes(examples, dtype), np.linspace(0.2, 2.0, examples).astype(dtype)


def tokens(examples: int, dtype: str) -> tuple[np.ndarray, ...]:
    x = np.random.default_rng(0).integers(0, 5, (examples, 6)).astype("int32")
    return x, x[:, 0] % 3


def infinite(examples: int, dtype: str) -> tuple[np.ndarray, ...]:
    """The last example of the second batch, which the last replica gets, has an infinite input."""
    x, y = classes(examples, dtype)
    x[2 * BATCH - 1] = np.inf
    return x, y


def latent(examples: int, dtype: str) -> tuple[np.ndarray, ...]:
    """Real examples and the numbers to make false ones of: what is random lies in the data."""
    x, _ = classes(examples, dtype)
    return x, np.random.default_rng(1).normal(size=(examples, 4)).astype(dtype)


class Adversaries(looper.Trainer):
    """Two optimizers, each of which updates its own model in every step."""

    def build(self) -> None:
        self.maker = keras.Sequential([keras.Input((4,)), L.Dense(8, activation="tanh"), L.Dense(6)])
        self.judge = keras.Sequential([keras.Input((6,)), L.Dense(8, activation="tanh"), L.Dense(1)])
        self.maker_optimizer = keras.optimizers.SGD(0.1, momentum=0.9, global_clipnorm=0.3)
        self.judge_optimizer = keras.optimizers.SGD(0.05, momentum=0.5)
        for optimizer, part in ((self.maker_optimizer, self.maker), (self.judge_optimizer, self.judge)):
            optimizer.build(part.trainable_variables)

    def losses(self, real: Any, z: Any, training: bool) -> tuple[Any, Any]:
        false = self.judge(self.maker(z, training=training), training=training)
        true = self.judge(real, training=training)
        return keras.ops.softplus(-false), keras.ops.softplus(-true) + keras.ops.softplus(false)

    def train_step(self, batch: Any) -> Mapping[str, Any]:
        with tf.GradientTape() as tape:
            _, judged = self.losses(*batch, training=True)
        self.minimize(judged, tape, self.judge_optimizer, self.judge.trainable_variables)
        with tf.GradientTape() as tape:
            made, _ = self.losses(*batch, training=True)
        self.minimize(made, tape, self.maker_optimizer, self.maker.trainable_variables)
        return {"made": made, "judged": judged}

    def eval_step(self, batch: Any) -> Mapping[str, Any]:
        made, judged = self.losses(*batch, training=False)
        return {"made": made, "judged": judged}


def sgd(**options: Any) -> Callable[[], keras.optimizers.Optimizer]:
    return lambda: keras.optimizers.SGD(0.1, momentum=0.9, **options)


@dataclasses.dataclass(frozen=True)
class Case:
    """One recipe.

    Attributes:
        model, optimizer: make them.
        data: from a number of examples and a dtype to the arrays.
        examples: 62 are three batches of 16 and one of 14.
        options: of the Trainer.
        precisions: to run in. float64 is the stricter proof; float32 is beside it where its sums are long or clipped.
        trainer: the recipe's class; one of its own has its own model.
    """

    model: Callable[[], keras.Model] = dense
    optimizer: Callable[[], keras.optimizers.Optimizer] = sgd()
    data: Callable[[int, str], tuple[np.ndarray, ...]] = classes
    examples: int = 62
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    precisions: tuple[str, ...] = ("float64",)
    trainer: type[looper.Trainer] = looper.Trainer


BOTH = ("float64", "float32")

CASES = {
    "sgd_momentum": Case(precisions=BOTH),
    "global_clipnorm": Case(optimizer=sgd(global_clipnorm=0.05)),
    "clipnorm": Case(optimizer=sgd(clipnorm=0.05)),
    "clipvalue": Case(optimizer=sgd(clipvalue=0.01)),
    "accumulate": Case(options={"accumulate": 4}),
    "ema": Case(options={"ema": 0.8}),
    "ema_of_the_optimizer": Case(optimizer=sgd(use_ema=True, ema_momentum=0.8, ema_overwrite_frequency=3)),
    "embedding": Case(embedding, data=tokens),
    "sample_weights": Case(data=weighted),
    "model_losses": Case(with_losses),
    "synchronized_batch_norm": Case(synchronized),
    "last_batch_of_one": Case(with_losses, data=weighted, examples=49),
    "last_batch_of_one_synchronized": Case(synchronized, examples=49),
    "two_optimizers": Case(trainer=Adversaries, data=latent, examples=49),
    "infinity_on_the_last_replica": Case(data=infinite, precisions=("mixed_float16",)),
    "adam": Case(optimizer=lambda: keras.optimizers.Adam(0.01)),
    "adamw": Case(optimizer=lambda: keras.optimizers.AdamW(0.01, weight_decay=0.1)),
}


def run(case: Case, precision: str, strategy: str, devices: int | None) -> dict[str, np.ndarray]:
    """Trains 20 steps and evaluates. Returns weights, every step's logs and the evaluation's results."""
    parts: dict[str, Any] = {}
    if case.trainer is looper.Trainer:
        parts = {
            "model": case.model,
            "optimizer": case.optimizer,
            "loss": models.cross_entropy,
            "metrics": lambda: [keras.metrics.SparseCategoricalAccuracy("accuracy")],
        }
    trainer = case.trainer(
        **parts, **case.options, strategy=strategy, devices=devices, precision=precision, execution="graph"
    )
    data = case.data(case.examples, "float64" if precision == "float64" else "float32")
    history = trainer.fit(
        data, steps=STEPS, batch_size=BATCH, shuffle=False, log_every=looper.Every(steps=1), progress=False
    )
    kept = [thing for thing in vars(trainer).values() if isinstance(thing, keras.Model)]
    found = {f"weights/{i}": w.numpy() for i, w in enumerate(w for model in kept for w in model.weights)}
    found |= {f"log/{name}": np.array(history[name]) for name in history.names() if name not in NOT_COMPARED}
    return found | {f"eval/{name}": np.array(v) for name, v in trainer.evaluate(data, batch_size=BATCH).items()}


def runs(names: Sequence[str], float32: bool = False) -> list[tuple[str, str]]:
    """Each of the cases in each of its precisions; with `float32` in that, too, where it is not of float16."""
    found = {name: CASES[name].precisions for name in names}
    if float32:
        found = {name: BOTH if "float64" in precisions else precisions for name, precisions in found.items()}
    return [(name, precision) for name, precisions in found.items() for precision in precisions]


def run_all(names: Sequence[str], strategy: str, devices: int | None, float32: bool = False) -> dict[str, np.ndarray]:
    """What cases end with on one set of devices, called `CASE/PRECISION/weights/0` and so on."""
    found: dict[str, np.ndarray] = {}
    for name, precision in runs(names, float32):
        results = run(CASES[name], precision, strategy, devices)
        found |= {f"{name}/{precision}/{key}": value for key, value in results.items()}
    return found


DEVICES = {
    "one": ["--strategy", "one_device"],
    "2_replicas": ["--strategy", "mirrored", "--devices", "2"],
    "3_replicas": ["--strategy", "mirrored", "--devices", "3"],
    "2_workers": ["--strategy", "auto"],
    "2_workers_of_2_replicas": ["--strategy", "multi_worker", "--cpus-per-worker", "2"],
}
"""Sets of devices, as options of this program; workers are pairs of processes."""


def start(devices: str, names: Sequence[str], folder: Path, *options: str) -> dict[str, subprocess.Popen]:
    """Starts processes that run cases on a set of devices. Each writes `NAME.npz`; returned by name."""
    configs = local_cluster(2) if "workers" in devices else [None]
    found = {}
    for rank, config in enumerate(configs):
        name = devices if rank == 0 else f"{devices}_second"
        words = [*DEVICES[devices], "--cases", ",".join(names), "--out", str(folder / f"{name}.npz"), *options]
        environment = {**os.environ, "PYTHONPATH": str(ROOT)} | ({} if config is None else {"TF_CONFIG": config})
        command = [sys.executable, "-m", "tests.support.one_equals_many", *words]
        found[name] = subprocess.Popen(command, cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True)
    return found


def several_cpus(count: int) -> None:
    """Lets a worker have several CPUs as its devices, as it may have several GPUs.

    TensorFlow's multi-worker strategy takes one CPU for each worker and has no option for it, so the method of
    TensorFlow 2.21 that picks the devices is replaced, here alone.
    """
    from tensorflow.python.distribute import collective_all_reduce_strategy

    cpu = tf.config.list_physical_devices("CPU")[0]
    tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * count)
    collective_all_reduce_strategy.CollectiveAllReduceExtended._initialize_local_devices = (
        lambda self, resolver, worker: (tuple(f"{worker}/device:CPU:{i}" for i in range(count)), "CPU")
    )


def main() -> None:
    """Runs the cases and writes what they end with."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", default=",".join(CASES), help="names, with commas between (default: all)")
    parser.add_argument("--strategy", required=True)
    parser.add_argument("--devices", type=int)
    parser.add_argument("--cpus-per-worker", type=int, default=1, help="in a cluster that TF_CONFIG tells of")
    parser.add_argument("--float32", action="store_true", help="each case in float32, too")
    parser.add_argument("--out", required=True, help="the .npz file to write")
    asked = parser.parse_args()
    graphs.leave_small_ones()
    if asked.cpus_per_worker > 1:
        several_cpus(asked.cpus_per_worker)
    np.savez(asked.out, **run_all(asked.cases.split(","), asked.strategy, asked.devices, asked.float32))


if __name__ == "__main__":
    main()
