"""What the gradient of an `Embedding` costs, by the size of its table.

    python -m benchmarks.embedding_rows
    python -m benchmarks.embedding_rows --rounds 30

Adding up the rows that occur several times, 2,048 rows of 32 elements, in the graph and in an XLA program; and whole
steps of SGD that look 2,048 rows up, with two micro-batches and on two replicas (logical devices of the CPU), where
gradients of large tables stay rows and those of small ones are made dense. Turns alternate in random order within one
process.
"""

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

import looper
from benchmarks.saving import save
from looper.base import xla
from looper.commands.bench.statistics import median
from looper.step.rows import sum_repeated

RESULTS = Path(__file__).parent / "results"
WORDS, WIDTH = 2048, 32
SIZES = {"small": 10**4, "large": 10**6}


def adding_up(size: int, in_xla: bool) -> Callable[[int], float]:
    """Makes a turn of many sums; it returns microseconds for each."""
    rows = tf.constant(np.random.default_rng(0).integers(0, size, WORDS))
    values, shape = tf.random.stateless_normal([WORDS, WIDTH], [0, 0]), tf.constant([size, WIDTH])

    def sums(values: tf.Tensor, rows: tf.Tensor) -> tf.Tensor:
        return sum_repeated(tf.IndexedSlices(values, rows, shape)).values[0]

    program: Any = (xla.program if in_xla else tf.function)(sums)
    program(values, rows)

    def turn(steps: int) -> float:
        began = time.perf_counter()
        for _ in range(steps):
            program(values, rows)
        return (time.perf_counter() - began) / steps * 1e6

    return turn


def training(size: int, **options: Any) -> Callable[[int], float]:
    """Makes a turn of many steps; it returns microseconds for each."""
    words = np.random.default_rng(0).integers(0, size, (64, 16)).astype("int32")

    def model() -> keras.Model:
        inputs = keras.Input((16,), dtype="int32")
        return keras.Model(inputs, keras.ops.mean(keras.layers.Embedding(size, WIDTH)(inputs), 2))

    trainer = looper.Trainer(
        model=model, optimizer=lambda: keras.optimizers.SGD(0.1), loss="mse", execution="graph", **options
    )
    data = (np.repeat(words, 2, 0), np.zeros((128, 16), "float32"))

    def turn(steps: int) -> float:
        began = time.perf_counter()
        trainer.fit(data, batch_size=128, shuffle=False, steps=trainer.step + steps, progress=False)
        return (time.perf_counter() - began) / steps * 1e6

    turn(5)
    return turn


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=100, help="of a turn")
    parser.add_argument("--rounds", type=int, default=15, help="turns of each")
    parser.add_argument("--out", type=Path, default=RESULTS / "embedding_rows.json", help="the JSON file to write")
    arguments = parser.parse_args()
    tf.config.set_logical_device_configuration(
        tf.config.list_physical_devices("CPU")[0], [tf.config.LogicalDeviceConfiguration()] * 2
    )
    one, two = {"strategy": "one_device"}, {"strategy": "mirrored", "devices": 2}
    kinds: dict[str, Callable[[int], Callable[[int], float]]] = {
        "sum of rows, graph": lambda size: adding_up(size, False),
        "sum of rows, XLA": lambda size: adding_up(size, True),
        "SGD": lambda size: training(size, **one),
        "SGD, two micro-batches": lambda size: training(size, accumulate=2, **one),
        "SGD, two replicas": lambda size: training(size, **two),
    }
    turns = {(kind, name): make(size) for kind, make in kinds.items() for name, size in SIZES.items()}
    times: dict[tuple[str, str], list[float]] = {key: [] for key in turns}
    order = np.random.default_rng(0)
    for _ in range(arguments.rounds):
        for i in order.permutation(len(turns)):
            key = list(turns)[i]
            times[key].append(turns[key](arguments.steps))
    result = {
        "rows": WORDS,
        "elements of a row": WIDTH,
        "rows of the tables": SIZES,
        "microseconds": {f"{kind}, {name}": median(found) for (kind, name), found in times.items()},
        "ratios, large / small": {
            kind: median(np.array(times[kind, "large"]) / times[kind, "small"]) for kind in kinds
        },
        "steps of a turn": arguments.steps,
        "turns": arguments.rounds,
    }
    print(save(arguments.out, result, "benchmarks.embedding_rows"))


if __name__ == "__main__":
    main()
