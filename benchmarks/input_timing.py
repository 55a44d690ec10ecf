"""What it costs to measure, inside the compiled loop, how long steps wait for their batches.

    python -m benchmarks.input_timing

The steps are those of `benchmarks/hot_step.py`, so short that a few operations show: 100 to a call, over batches that
are cached and prefetched. Calls of an execution that measures and of one that does not alternate in random order within
one process. A second execution that does not measure, against the first, shows what the machine's noise alone would.
"""

import argparse
import time
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf

import looper
from benchmarks.peers import keras_models
from benchmarks.problems import PROBLEMS
from benchmarks.saving import save
from looper.base.ledger import Ledger
from looper.commands.bench.statistics import median
from looper.step import programs, replicas

RESULTS = Path(__file__).parent / "results"
PROBLEM = PROBLEMS["mlp"]
STEPS_PER_CALL = PROBLEM.steps_per_call


class Side:
    """looper's steps, with or without the clock.

    Attributes:
        times: microseconds per step, call by call.
        waited: the same, of the waits for batches.
    """

    def __init__(self, timed: bool) -> None:
        trainer = looper.Trainer(
            model=lambda: keras_models.model(PROBLEM, 0.5),
            optimizer=lambda: keras_models.optimizer(PROBLEM),
            loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
            metrics=lambda: [keras.metrics.SparseCategoricalAccuracy("accuracy")],
            execution="graph",
        )
        trainer.fit(keras_models.dataset(PROBLEM), steps=1, progress=False)
        session, names = trainer._session, []
        sharing = replicas.Sharing(session.pipeline.division())
        run = replicas.train_step(session.building.recipe(), session.pipeline, names, sharing)
        step = programs.Step(run, names, tf.float32)
        reader = session.components.reader
        self._execute = programs.Execution(step, mode="graph", counted=True, reader=reader, timed=timed)
        self._iterator = iter(keras_models.dataset(PROBLEM).prefetch(2))
        self.times: list[float] = []
        self.waited: list[float] = []
        for _ in range(5):
            self.call()
        self.times, self.waited = [], []

    def call(self) -> None:
        ledger, began = Ledger(), time.perf_counter()
        self._execute(self._iterator, STEPS_PER_CALL, False, ledger)[0].numpy()
        ledger.settle()
        self.times.append((time.perf_counter() - began) / STEPS_PER_CALL * 1e6)
        self.waited.append(ledger.seconds["input"] / STEPS_PER_CALL * 1e6)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--calls", type=int, default=1000, help="calls of each side (100 steps each)")
    parser.add_argument("--out", type=Path, default=RESULTS / "input_timing.json", help="the JSON file to write")
    arguments = parser.parse_args()
    sides = {"measured": Side(True), "not measured": Side(False), "not measured, again": Side(False)}
    order = np.random.default_rng(0)
    for _ in range(arguments.calls):
        for name in order.permutation(list(sides)):
            sides[name].call()
    times = {name: np.array(side.times) for name, side in sides.items()}
    ratios = {
        "measured / not measured, call by call": times["measured"] / times["not measured"],
        "not measured, again / not measured, call by call": times["not measured, again"] / times["not measured"],
    }
    result = {
        "microseconds per step": {name: median(found) for name, found in times.items()},
        "microseconds of it that a step waited for its batch": np.median(sides["measured"].waited),
        "ratios": {name: median(found) for name, found in ratios.items()},
        "calls": arguments.calls,
    }
    print(save(arguments.out, result, "benchmarks.input_timing"))


if __name__ == "__main__":
    main()
