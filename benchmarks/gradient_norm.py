"""What the norm of the gradients costs in an XLA program, in which a step has it for the logs and for the check of NaN.

    python -m benchmarks.gradient_norm
    python -m benchmarks.gradient_norm --model mlp --rounds 30

Three trainers in one process take turns of many steps in one XLA loop: as looper computes the norm, one reduction for
each variable (`tf.nn.l2_loss`, as in the graph), and without any norm. Programs of one process differ by some percent
for no reason that shows, so that a step with the norm may even come out below the one without.
"""

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import tensorflow as tf

from benchmarks.peers import keras_models
from benchmarks.peers.looper import looper_trainer
from benchmarks.problems import PROBLEMS, Problem
from benchmarks.saving import save
from looper.commands.bench.statistics import median
from looper.step import gradients

RESULTS = Path(__file__).parent / "results"


def one_by_one(found: Any) -> tf.Tensor:
    """A reduction for each variable."""
    return tf.sqrt(2.0 * tf.add_n([tf.nn.l2_loss(gradient) for gradient in found]))


NORMS: dict[str, Callable[[Any], tf.Tensor]] = {
    "looper": gradients.global_norm,
    "one by one": one_by_one,
    "none": lambda _: tf.constant(0.0),
}


class Side:
    """A trainer that computes the norm in one of the ways.

    Args:
        problem: what to train.
        norm: the way.
        steps: of a turn.
    """

    def __init__(self, problem: Problem, norm: Callable[[Any], tf.Tensor], steps: int) -> None:
        self._problem, self._steps = problem, steps
        self._data = keras_models.arrays(problem)
        self._trainer = looper_trainer(problem, execution="xla_loop")
        with mock.patch.object(gradients, "global_norm", norm):  # where the step is traced
            self.turn()

    def turn(self) -> float:
        """Trains. Returns microseconds per step."""
        began, trainer = time.perf_counter(), self._trainer
        trainer.fit(
            self._data,
            batch_size=self._problem.batch,
            shuffle=False,
            steps=trainer.step + self._steps,
            progress=False,
        )
        return (time.perf_counter() - began) / self._steps * 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", choices=PROBLEMS, default="deep_mlp")
    parser.add_argument("--steps", type=int, default=4000, help="of a turn")
    parser.add_argument("--rounds", type=int, default=21, help="turns of each side")
    parser.add_argument("--out", type=Path, default=RESULTS / "gradient_norm.json", help="the JSON file to write")
    arguments = parser.parse_args()
    sides = {name: Side(PROBLEMS[arguments.model], norm, arguments.steps) for name, norm in NORMS.items()}
    times: dict[str, list[float]] = {name: [] for name in sides}
    order = np.random.default_rng(0)
    for _ in range(arguments.rounds):
        for name in order.permutation(list(sides)):
            times[name].append(sides[name].turn())
    ours = np.array(times["looper"])
    result = {
        "microseconds per step": {name: median(found) for name, found in times.items()},
        "ratios": {f"looper / {name}": median(ours / times[name]) for name in times if name != "looper"},
        "model": arguments.model,
        "steps of a turn": arguments.steps,
        "turns": arguments.rounds,
    }
    print(save(arguments.out, result, "benchmarks.gradient_norm"))


if __name__ == "__main__":
    main()
