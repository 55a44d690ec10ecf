"""What a checkpoint costs: the call that the loop waits for, the whole write, and a run that saves beside one without.

    python -m benchmarks.checkpoint
    python -m benchmarks.checkpoint --sizes 10 --turns 3 --runs

States of 25 and of 600 float32 variables are saved in turns by looper, by `tf.train.CheckpointManager` (which Orbit
uses) with and without its thread, by Keras' `model.save` and `save_weights` (`ModelCheckpoint`, `BackupAndRestore`),
and as NumPy arrays that are written and put on disk, which is the least that a save can be. The second part trains two
models, with 100 MB more in their state, with and without saves; its results are in a file of their own.
"""

import argparse
import os
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

import looper
from benchmarks.peers import keras_models
from benchmarks.problems import PROBLEMS
from benchmarks.saving import save
from looper.commands.bench.statistics import median
from looper.saved.resume import take
from looper.saved.variables import State
from looper.workers.exchange import Workers

RESULTS = Path(__file__).parent / "results"
Timed = tuple[float, float]
"""Seconds until the call returns, and until the files are written."""


class Variables(keras.Layer):
    """Holds float32 variables of so many MB together."""

    def __init__(self, megabytes: int, count: int) -> None:
        super().__init__()
        size = megabytes * 250_000 // count
        self.kept = [self.add_weight(shape=(size,), initializer="random_normal") for _ in range(count)]

    def call(self, x: Any) -> Any:
        return x


def sides(model: keras.Model, folder: Path) -> dict[str, Callable[[], Timed]]:
    """What saves the model, by who does."""
    variables = [variable.value for variable in model.variables]
    state = State({"model": model}, tf.distribute.get_strategy())
    alone = Workers(tf.distribute.get_strategy(), None)
    managers = {
        kind: tf.train.CheckpointManager(tf.train.Checkpoint(variables=variables), str(folder / kind), max_to_keep=2)
        for kind in ("sync", "async")
    }
    threaded = tf.train.CheckpointOptions(enable_async=True)

    def by_looper() -> Timed:
        began = time.perf_counter()
        pending = take(folder / "looper", state, {"progress": {}}, None, alone)
        taken = time.perf_counter()
        pending.write()
        return taken - began, time.perf_counter() - began

    def by_numpy() -> Timed:
        began = time.perf_counter()
        with (folder / "numpy").open("wb") as file:
            for variable in variables:
                file.write(variable.numpy().data)
            file.flush()
            os.fsync(file.fileno())
        seconds = time.perf_counter() - began
        return seconds, seconds

    def by_manager(kind: str) -> Timed:
        began = time.perf_counter()
        managers[kind].save(options=threaded if kind == "async" else None)
        called = time.perf_counter() - began
        if kind == "async":
            managers[kind].sync()
        return called, time.perf_counter() - began

    def by_keras(act: Callable[[str], None], name: str) -> Timed:
        began = time.perf_counter()
        act(str(folder / name))
        seconds = time.perf_counter() - began
        return seconds, seconds

    return {
        "numpy, write, fsync": by_numpy,
        "looper": by_looper,
        "tf.train.CheckpointManager": lambda: by_manager("sync"),
        "tf.train.CheckpointManager, asynchronous": lambda: by_manager("async"),
        "Keras ModelCheckpoint": lambda: by_keras(model.save, "model.keras"),
        "Keras BackupAndRestore": lambda: by_keras(model.save_weights, "backup.weights.h5"),
    }


def saves(megabytes: int, count: int, turns: int, folder: Path) -> dict[str, Any]:
    """Milliseconds of the call and of the write, of each side."""
    holder = Variables(megabytes, count)
    model = keras.Sequential([keras.Input((1,)), holder])
    found = sides(model, folder)
    times: dict[str, list[Timed]] = {name: [] for name in found}
    for act in found.values():
        act()  # what is done once
    order = np.random.default_rng(0)
    for _ in range(turns):
        for name in order.permutation(list(found)):
            for variable in holder.kept:  # another state, as after training
                variable.assign_add(tf.ones_like(variable))
            times[name].append(found[name]())
    each = {name: np.array(values) for name, values in times.items()}
    return {
        "milliseconds of the call": {name: median(values[:, 0] * 1e3) for name, values in each.items()},
        "milliseconds of all": {name: median(values[:, 1] * 1e3) for name, values in each.items()},
        "looper's call / looper's whole": median(each["looper"][:, 0] / each["looper"][:, 1]),
        "looper's whole / numpy, write, fsync": median(each["looper"][:, 1] / each["numpy, write, fsync"][:, 1]),
    }


def in_a_run(name: str, turns: int, folder: Path) -> dict[str, Any]:
    """Seconds that a save adds to a run, over the seconds of one that the run waits for."""
    problem = PROBLEMS[name]
    steps = {"mlp": 200_000}.get(name, 1200)
    every = {"mlp": 19_000}.get(name, 120)
    extra = (100 + steps) // every - 100 // every
    assert extra == 10 and (100 + steps) % every, "the one at the end is written in both"
    x, y = keras_models.arrays(problem)

    def seconds(every: int | None) -> float:
        workdir = folder / "run"
        shutil.rmtree(workdir, ignore_errors=True)
        trainer = looper.Trainer(
            model=lambda: keras_models.model(problem, 0.5),
            optimizer=lambda: keras_models.optimizer(problem),
            loss=keras_models.loss(),
            execution="xla_loop" if name == "mlp" else "graph",
            workdir=workdir,
        )
        trainer.more = [tf.Variable(tf.zeros([1_000_000]), trainable=False) for _ in range(25)]  # 100 MB
        options = {"batch_size": problem.batch, "progress": False}
        trainer.fit((x, y), steps=100, save_every=None, **options)  # compiles
        began = time.perf_counter()
        trainer.fit((x, y), steps=100 + steps, save_every=every and looper.Every(steps=every), **options)
        return time.perf_counter() - began

    pairs = np.array([[seconds(None), seconds(every)] for _ in range(turns)])
    with tempfile.TemporaryDirectory(dir=folder) as own:
        variables = [tf.Variable(tf.zeros([1_000_000])) for _ in range(25)]
        state = State({"more": variables}, tf.distribute.get_strategy())
        alone, waits = Workers(tf.distribute.get_strategy(), None), []
        for _ in range(turns):
            began = time.perf_counter()
            take(Path(own) / "one", state, {"progress": {}}, None, alone).write()
            waits.append(time.perf_counter() - began)
    added = (pairs[:, 1] - pairs[:, 0]) / extra
    return {
        "seconds without and with saves": [median(pairs[:, 0]), median(pairs[:, 1])],
        "seconds that a save adds": median(added),
        "seconds of a synchronous save": median(waits),
        "ratio": median(added / np.median(waits)),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", type=int, nargs="*", default=[10, 100, 1000], help="megabytes")
    parser.add_argument("--turns", type=int, default=7)
    parser.add_argument("--runs", nargs="*", default=["mlp", "cnn256"], help="models of the second part")
    parser.add_argument("--out", type=Path, default=RESULTS / "checkpoint.json", help="the JSON file to write")
    arguments = parser.parse_args()
    result: dict[str, Any] = {}
    runs: dict[str, Any] = {}
    for megabytes in arguments.sizes:
        for count in (25, 600):
            with tempfile.TemporaryDirectory() as folder:
                result[f"{megabytes} MB in {count}"] = saves(megabytes, count, arguments.turns, Path(folder))
    for name in arguments.runs:
        with tempfile.TemporaryDirectory() as folder:
            runs[f"a run of {name}, 100 MB"] = in_a_run(name, arguments.turns, Path(folder))
    if result:
        print(save(arguments.out, {"saves": result, "turns": arguments.turns}, "benchmarks.checkpoint"))
    if runs:
        out = arguments.out.with_stem(f"{arguments.out.stem}_runs")
        print(save(out, {"runs": runs, "turns": arguments.turns}, "benchmarks.checkpoint"))


if __name__ == "__main__":
    main()
