"""What the check at the start of `fit` costs: the time to the first step with it, against the time without.

    python -m benchmarks.audit_cost

Both sides build the same model anew and train one step of it, with evaluation data, alternately in one process. Without
the check, nothing is recorded and nothing looked at. It is processor time that counts: tracing is Python on one core,
and the machine is shared. After the first step there is nothing of it: tests/test_audit.py compares the compiled graphs
of both sides, operation by operation.
"""

import argparse
import contextlib
import gc
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from unittest import mock

import keras
import numpy as np

import looper
from benchmarks.hot_step import interval
from benchmarks.saving import save

RESULTS = Path(__file__).parent / "results" / "audit_cost.json"
L = keras.layers


def small() -> keras.Model:
    layers = [L.Dense(64), L.BatchNormalization(), L.ReLU(), L.Dropout(0.3), L.Dense(10)]
    return keras.Sequential([keras.Input((32,)), *layers])


def transformer() -> keras.Model:
    x = inputs = keras.Input((32, 64))
    for _ in range(4):
        x = L.LayerNormalization()(x + L.MultiHeadAttention(4, 16, dropout=0.1)(x, x))
        x = L.LayerNormalization()(x + L.Dropout(0.1)(L.Dense(64)(L.Dense(256, "gelu")(x))))
    return keras.Model(inputs, L.Dense(10)(L.GlobalAveragePooling1D()(x)))


def resnet() -> keras.Model:
    return keras.applications.ResNet50(weights=None, input_shape=(32, 32, 3), classes=10, classifier_activation=None)


MODELS: dict[str, tuple[Callable[[], keras.Model], tuple[int, ...]]] = {
    "five layers": (small, (32,)),
    "transformer of four blocks": (transformer, (32, 64)),
    "ResNet50": (resnet, (32, 32, 3)),
}


@contextlib.contextmanager
def unchecked() -> Iterator[None]:
    """Inside it, `fit` neither records nor looks."""
    with (
        mock.patch("looper.assembly.Tree", lambda *_: None),
        mock.patch("looper.assembly.Recorder", lambda *_: None),
        mock.patch("looper.assembly.Assembly._check_flags", lambda *_: None),
    ):
        yield


def first_step(make: Callable[[], keras.Model], shape: tuple[int, ...]) -> tuple[float, looper.Trainer]:
    """Seconds of processor time from `fit` to the end of the first step, and the trainer."""
    keras.utils.clear_session(free_memory=False)
    x, y = np.ones((8, *shape), "float32"), np.zeros(8)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    trainer = looper.Trainer(model=make, optimizer="sgd", loss=loss)
    gc.collect()
    started = time.process_time()
    trainer.fit((x, y), steps=1, batch_size=8, eval_data=(x, y), progress=False)
    return time.process_time() - started, trainer


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", type=int, default=15, help="pairs of each model")
    parser.add_argument("--out", type=Path, default=RESULTS, help="the JSON file to write")
    arguments = parser.parse_args()
    rows = {}
    for name, (make, shape) in MODELS.items():
        first_step(make, shape)  # warm-up
        checked, without = [], []
        for pair in range(arguments.pairs):
            for check in (True, False) if pair % 2 else (False, True):
                with contextlib.nullcontext() if check else unchecked():
                    (checked if check else without).append(first_step(make, shape)[0])
        ratio = np.array(checked) / np.array(without)
        rows[name] = {
            "processor seconds to the first step, with the check": np.median(checked),
            "without": np.median(without),
            "ratio, pair by pair": {"median": np.median(ratio), "interval": interval(ratio)},
        }
        print(name, json.dumps(rows[name], default=float), flush=True)
    save(arguments.out, {"models": rows, "pairs": arguments.pairs}, "benchmarks.audit_cost")


if __name__ == "__main__":
    main()
