"""How much looper adds to a step: against a hand-written in-graph loop of the same step, alternated in one run.

    python -m benchmarks.hot_step
    python -m benchmarks.hot_step --execution xla_loop

The model is launch-bound: Dense-BN-Dropout-Dense, batch 32, SGD with momentum, loss and accuracy. Both sides loop 100
steps in one `tf.function` call over the same `tf.data` pipeline. looper runs as a user has it: progress bar,
TensorBoard, metrics.jsonl and checkpoints on (by default one in five minutes), a log every 100 steps. The hand-written
loop only trains: it shows, logs and saves nothing. Bursts alternate within one process: a callback
lets the hand-written loop run between two of looper's.
"""

import argparse
import io
import tempfile
import time
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf

import looper
from benchmarks.saving import save

BATCH, STEPS_PER_CALL, CALLS = 32, 100, 10
RESULTS = Path(__file__).parent / "results"


def model() -> keras.Model:
    layers = keras.layers
    return keras.Sequential(
        [
            keras.Input((32,)),
            layers.Dense(32, activation="relu"),
            layers.BatchNormalization(),
            layers.Dropout(0.5),
            layers.Dense(10),
        ]
    )


def optimizer() -> keras.optimizers.Optimizer:
    return keras.optimizers.SGD(0.01, momentum=0.9)


def dataset() -> tf.data.Dataset:
    random = np.random.default_rng(0)
    x, y = random.normal(size=(BATCH * 200, 32)).astype("float32"), random.integers(0, 10, BATCH * 200)
    return tf.data.Dataset.from_tensor_slices((x, y)).cache().repeat().batch(BATCH, drop_remainder=True)


class ByHand:
    """What a careful user writes: the step, a loop of 100 in the graph, a metric for the loss and one for accuracy."""

    def __init__(self) -> None:
        keras.utils.set_random_seed(0)
        self.model, self.optimizer = model(), optimizer()
        self.optimizer.build(self.model.trainable_variables)
        self.loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        self.metrics = [keras.metrics.Mean(), keras.metrics.SparseCategoricalAccuracy()]
        self.iterator = iter(dataset().prefetch(2))

    @tf.function
    def steps(self, iterator, count):
        for _ in tf.range(count):
            x, y = next(iterator)
            with tf.GradientTape() as tape:
                outputs = self.model(x, training=True)
                loss = self.loss(y, outputs)
            variables = self.model.trainable_variables
            self.optimizer.apply(tape.gradient(loss, variables), variables)
            self.metrics[0].update_state(loss)
            self.metrics[1].update_state(y, outputs)

    def burst(self) -> float:
        """Seconds for `CALLS` calls and one look at the loss after them."""
        started = time.perf_counter()
        for _ in range(CALLS):
            self.steps(self.iterator, tf.constant(STEPS_PER_CALL))
        float(self.metrics[0].result())
        return time.perf_counter() - started


class Terminal(io.StringIO):
    """A terminal that shows nothing, so that the real progress bar runs."""

    def isatty(self) -> bool:
        return True


class Alternate(looper.callbacks.Callback):
    """Times looper from one call to the next, and in each call a burst of the hand-written loop."""

    every = looper.Every(steps=STEPS_PER_CALL * CALLS)

    def __init__(self, by_hand: ByHand) -> None:
        self.by_hand = by_hand
        self.looper: list[float] = []
        self.hand: list[float] = []
        self._left: float | None = None

    def on_step(self, step, logs):
        if self._left is not None:
            self.looper.append(time.perf_counter() - self._left)
            self.hand.append(self.by_hand.burst())
        else:
            self.by_hand.burst()  # warm-up
        self._left = time.perf_counter()


def interval(values: np.ndarray, draws: int = 2000) -> tuple[float, float]:
    """The 95% bootstrap interval of the median."""
    random = np.random.default_rng(0)
    medians = np.median(random.choice(values, (draws, len(values))), axis=1)
    return tuple(np.quantile(medians, [0.025, 0.975]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--bursts", type=int, default=60, help="bursts of each side (1,000 steps each)")
    parser.add_argument("--execution", default="graph", help="looper's mode; the loop by hand is always in the graph")
    parser.add_argument("--out", type=Path, help="the JSON file to write")
    arguments = parser.parse_args()
    mode = arguments.execution
    out = arguments.out or RESULTS / ("hot_step.json" if mode == "graph" else f"hot_step_{mode}.json")
    alternate = Alternate(ByHand())
    with tempfile.TemporaryDirectory() as workdir:
        trainer = looper.Trainer(
            model=model,
            optimizer=optimizer,
            loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
            metrics=lambda: [keras.metrics.SparseCategoricalAccuracy("accuracy")],
            execution=mode,
            steps_per_execution=STEPS_PER_CALL,
            workdir=workdir,
        )
        steps = STEPS_PER_CALL * CALLS * (arguments.bursts + 1)
        bar = looper.callbacks.ProgressBar(stream=Terminal())
        trainer.fit(dataset(), steps=steps, callbacks=[alternate, bar])
    scale = 1e6 / (STEPS_PER_CALL * CALLS)
    ours, hand = np.array(alternate.looper) * scale, np.array(alternate.hand) * scale
    ratio = ours / hand
    result = {
        "microseconds per step": {
            "looper": {"median": np.median(ours), "interval": interval(ours)},
            "hand-written in-graph loop": {"median": np.median(hand), "interval": interval(hand)},
        },
        "ratio looper / hand-written, pair by pair": {"median": np.median(ratio), "interval": interval(ratio)},
        "bursts": len(ratio),
        "steps per burst": STEPS_PER_CALL * CALLS,
    }
    command = "benchmarks.hot_step" + (f" --execution {mode}" if mode != "graph" else "")
    print(save(out, {"execution": mode, **result}, command))


if __name__ == "__main__":
    main()
