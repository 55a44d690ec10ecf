"""What `Trainer.train_on_batch` costs beside a compiled step that is called by hand in a loop.

    python -m benchmarks.train_on_batch
    python -m benchmarks.train_on_batch --rounds 100

Both sides get the same NumPy batches, train the MLP of `benchmarks/hot_step.py`, and read the loss and the batch's
accuracy after each step. The step by hand is a `tf.function` that computes these two; a second one has the gradient's
norm, too, by which looper looks for NaN. Turns of many steps alternate in random order within one
process.
"""

import argparse
import functools
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from benchmarks.peers import keras_models
from benchmarks.peers.looper import looper_trainer
from benchmarks.problems import PROBLEMS, Problem
from benchmarks.saving import save
from looper.commands.bench.statistics import median

RESULTS = Path(__file__).parent / "results"

Step = Callable[[Any], dict[str, float]]


def by_looper(problem: Problem) -> Step:
    """`train_on_batch` of a trainer."""
    return looper_trainer(problem, execution="graph").train_on_batch


def by_hand(problem: Problem, norm: bool = False) -> Step:
    """A compiled step, and its results as floats; with `norm`, the gradient's norm is one of them."""
    model, optimizer = keras_models.model(problem, 0.5), keras_models.optimizer(problem)
    loss, accuracy = keras_models.loss(), keras_models.accuracy()
    variables = model.trainable_variables
    optimizer.build(variables)

    @tf.function
    def step(x: tf.Tensor, y: tf.Tensor) -> tuple[tf.Tensor, ...]:
        accuracy.reset_state()
        with tf.GradientTape() as tape:
            outputs = model(x, training=True)
            value = loss(y, outputs)
        gradients = tape.gradient(value, variables)
        optimizer.apply(gradients, variables)
        accuracy.update_state(y, outputs)
        return value, accuracy.result(), *([tf.linalg.global_norm(gradients)] if norm else [])

    def on_batch(batch: Any) -> dict[str, float]:
        return dict(zip(("loss", "accuracy", "norm"), map(float, step(*batch)), strict=False))

    return on_batch


class Side:
    """Steps of one kind over the problem's batches.

    Args:
        step: trains on a batch.
        batches: the batches, again and again.
        steps: of a turn.
    """

    def __init__(self, step: Step, batches: list[Any], steps: int) -> None:
        self._step, self._batches, self._steps = step, batches, steps
        self.turn()

    def turn(self) -> float:
        """Trains. Returns microseconds per step."""
        began = time.perf_counter()
        for i in range(self._steps):
            self._step(self._batches[i % len(self._batches)])
        return (time.perf_counter() - began) / self._steps * 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", choices=PROBLEMS, default="mlp")
    parser.add_argument("--steps", type=int, default=200, help="of a turn")
    parser.add_argument("--rounds", type=int, default=60, help="turns of each side")
    parser.add_argument("--out", type=Path, default=RESULTS / "train_on_batch.json", help="the JSON file to write")
    arguments = parser.parse_args()
    problem = PROBLEMS[arguments.model]
    x, y = keras_models.arrays(problem)
    batches = [
        (x[i : i + problem.batch], y[i : i + problem.batch]) for i in range(0, 100 * problem.batch, problem.batch)
    ]
    makers = {"looper": by_looper, "by hand": by_hand, "by hand, again": by_hand}
    makers["by hand, with the norm"] = functools.partial(by_hand, norm=True)
    sides = {name: Side(make(problem), batches, arguments.steps) for name, make in makers.items()}
    times: dict[str, list[float]] = {name: [] for name in sides}
    order = np.random.default_rng(0)
    for _ in range(arguments.rounds):
        for name in order.permutation(list(sides)):
            times[name].append(sides[name].turn())
    hand, with_norm = np.array(times["by hand"]), np.array(times["by hand, with the norm"])
    ratios = {f"{name} / by hand": median(np.array(times[name]) / hand) for name in times if name != "by hand"}
    ratios["looper / by hand, with the norm"] = median(np.array(times["looper"]) / with_norm)
    result = {
        "microseconds per step": {name: median(found) for name, found in times.items()},
        "ratios": ratios,
        "model": arguments.model,
        "steps of a turn": arguments.steps,
        "turns": arguments.rounds,
    }
    print(save(arguments.out, result, "benchmarks.train_on_batch"))


if __name__ == "__main__":
    main()
