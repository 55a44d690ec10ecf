"""A batch of fewer examples than replicas, of a convolution, on any number of devices.

As a program it runs all cases on mirrored CPUs, in a process of its own because TensorFlow has one set of devices per
process:

    python -m tests.support.few_examples --devices 4 --out four.npz

The file holds for each case the arrays that `run` returns, called `CASE/NAME`, and the size of its last batch.
"""

import argparse
import dataclasses
import os
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
import tensorflow as tf

import looper
from tests.support import models

L = keras.layers
FIRST = 8
"""Examples of the first batch, which moves no weight."""


@dataclasses.dataclass(frozen=True)
class Case:
    """One recipe.

    Attributes:
        norm: batch normalization: None, "synchronized" or "alone" (each replica by itself).
        precision, execution, accumulate: of the trainer.
        reduction: of the loss.
    """

    norm: str | None = None
    precision: str = "float64"
    execution: str = "graph"
    accumulate: int = 1
    reduction: str = "sum_over_batch_size"


CASES = {
    # only float32 has a kernel of convolution and ReLU together, and only in a graph
    "fused": Case("synchronized", "float32"),
    "alone": Case("alone", execution="eager"),
    "synchronized": Case("synchronized", execution="eager"),
    "summed": Case(accumulate=2, reduction="sum"),
}


ON_FOUR = ("fused", "summed")
"""The cases that four replicas try, too."""


class Logging(looper.Trainer):
    """The default with a log of each kind: a mean over all elements, and one over the examples."""

    def compute_loss(self, batch: Any, training: bool) -> Any:
        loss = super().compute_loss(batch, training)
        return loss, {"pixels": batch[0], "mean": tf.reduce_mean(batch[0])}


def model(norm: str | None) -> keras.Model:
    hidden = [L.Conv2D(4, 3, strides=2, activation="relu")]
    # without momentum its statistics are those of the last batch
    hidden += [] if norm is None else [L.BatchNormalization(momentum=0.0, synchronized=norm == "synchronized")]
    return keras.Sequential([keras.Input((6, 6, 1)), *hidden, L.Flatten(), L.Dense(3)])


def run(case: Case, last: int, execution: str | None = None, **devices: Any) -> dict[str, np.ndarray]:
    """A step on 8 examples that moves no weight and one on the last few, then evaluation and prediction.

    Returns:
        The weights as the first replica has them (statistics too), the logs' means over both steps, what an evaluation
        returned, and the outputs.
    """
    x, y = models.data((6, 6, 1), FIRST + last, "float64" if case.precision == "float64" else "float32")
    rate = keras.optimizers.schedules.PiecewiseConstantDecay([0], [0.0, 0.1])
    trainer = Logging(
        model=lambda: model(case.norm),
        optimizer=lambda: keras.optimizers.SGD(rate),
        loss=lambda: keras.losses.SparseCategoricalCrossentropy(from_logits=True, reduction=case.reduction),
        metrics=lambda: [keras.metrics.SparseCategoricalAccuracy("accuracy")],
        precision=case.precision,
        execution=execution or case.execution,
        accumulate=case.accumulate,
        **devices,
    )
    history = trainer.fit((x, y), epochs=1, batch_size=FIRST, shuffle=False, progress=False)
    found = {
        f"weights/{i}": trainer.strategy.experimental_local_results(weight.value)[0].numpy()
        for i, weight in enumerate(trainer.model.weights)
    }
    found |= {f"log/{name}": np.array(history[name]) for name in ("pixels", "mean")}
    if case.norm != "alone":  # the first batch is another one then, and an evaluation takes the mean of the statistics
        found |= {f"log/{name}": np.array(history[name]) for name in ("loss", "accuracy", "gradient_norm")}
        evaluated = trainer.evaluate((x, y), batch_size=FIRST)
        found |= {f"eval/{name}": np.array(value) for name, value in evaluated.items()}
        found["outputs"] = trainer.predict(x, batch_size=FIRST)
    return found


def main() -> None:
    """Runs the cases, of which all but one are not compiled, to save time, and writes what they end with."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--devices", type=int, required=True)
    parser.add_argument("--out", required=True, help="the .npz file to write")
    asked = parser.parse_args()
    found: dict[str, np.ndarray] = {}
    for i, name in enumerate(ON_FOUR):
        case, last = CASES[name], 1 + 2 * i % (asked.devices - 1)
        results = run(case, last, None if name == "fused" else "eager", strategy="mirrored", devices=asked.devices)
        found |= {f"{name}/{key}": value for key, value in results.items()} | {f"{name}/last": np.array(last)}
    np.savez(asked.out, **found)


if __name__ == "__main__":
    main()
