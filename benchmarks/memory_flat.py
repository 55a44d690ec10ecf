"""Whether a trainer's memory stays flat: 100 calls of `fit` and 1,000 of `evaluate` on one trainer.

    python -m benchmarks.memory_flat

The process's resident memory is noted as it goes. Judged is the second half, when caches and the allocator have
settled: its growth per call, and in all as a share of the memory at half-time.
"""

import argparse
import gc
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf

import looper
from benchmarks.saving import save

RESULTS = Path(__file__).parent / "results" / "memory_flat.json"


def resident_mib() -> float:
    """This process's resident memory in MiB."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096 / 2**20


def model() -> keras.Model:
    layers = keras.layers
    return keras.Sequential(
        [
            keras.Input((64,)),
            layers.Dense(64, "relu"),
            layers.BatchNormalization(),
            layers.Dropout(0.3),
            layers.Dense(10),
        ]
    )


def watch(calls: int, call) -> dict:
    """Memory after each tenth of the calls, and the growth in the second half."""
    marks = []
    for done in range(1, calls + 1):
        call(done)
        if done % (calls // 10) == 0:
            gc.collect()
            marks.append(round(resident_mib(), 2))
    growth = marks[-1] - marks[4]
    return {
        "calls": calls,
        "MiB after each tenth": marks,
        "growth of the second half, KiB per call": round(growth * 1024 / (calls / 2), 3),
        "growth of the second half, share": round(growth / marks[4], 5),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--fits", type=int, default=100)
    parser.add_argument("--evaluations", type=int, default=1000)
    parser.add_argument("--out", type=Path, default=RESULTS, help="the JSON file to write")
    arguments = parser.parse_args()
    random = np.random.default_rng(0)
    x, y = random.normal(size=(640, 64)).astype("float32"), random.integers(0, 10, 640)
    dataset = tf.data.Dataset.from_tensor_slices((x, y)).batch(32)
    result = {}
    for kind, data in {"arrays": (x, y), "dataset": dataset}.items():
        trainer = looper.Trainer(
            model=model,
            optimizer="sgd",
            loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
            metrics=["accuracy"],
        )
        result[f"fit on {kind}"] = watch(
            arguments.fits, lambda done, t=trainer, d=data: t.fit(d, epochs=done, eval_data=d, progress=False)
        )
        result[f"evaluate on {kind}"] = watch(arguments.evaluations, lambda _, t=trainer, d=data: t.evaluate(d))
    print(save(arguments.out, result, "benchmarks.memory_flat"))


if __name__ == "__main__":
    main()
