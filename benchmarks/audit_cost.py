"""What the check at the start of `fit` costs: the time to the first step with it, against the time without.

    python -m benchmarks.audit_cost

Both sides build the same model anew and train one step of it, with evaluation data, alternately in one process. Without
the check, nothing is recorded and nothing looked at. All that the check does is done while the steps are made: what
they take longer with it is its cost, given as a share of the whole time to the first step. The other part of that time
(TensorFlow's optimization and first run of equal graphs, on threads of its own) varies by more than that. After the
first step there is nothing of it: tests/audit/test_audit.py compares the compiled graphs of both sides, operation by
operation.

It is processor time that counts: tracing is Python on one core, and the machine is shared. As in Python's `timeit`, the
garbage collector is off meanwhile: whether a pass of it over all that is loaded falls into the time to the first
step depends on what the process did before. That the check makes it come a little sooner is shown
by the objects made.
"""

import argparse
import contextlib
import gc
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import keras
import numpy as np

import looper
from benchmarks.saving import save
from looper.commands.bench.statistics import median
from looper.run.steps import Steps

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
        mock.patch("looper.run.steps.Tree", lambda *_: None),
        mock.patch("looper.run.steps.Recorder", lambda *_: None),
        mock.patch("looper.run.steps.Steps._check", lambda *_: None),
        mock.patch("looper.trainer.read_numbers", lambda _: contextlib.nullcontext({})),
    ):
        yield


def new_trainer(make: Callable[[], keras.Model]) -> looper.Trainer:
    keras.utils.clear_session(free_memory=False)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    return looper.Trainer(model=make, optimizer="sgd", loss=loss)


def first_step(trainer: looper.Trainer, shape: tuple[int, ...]) -> tuple[float, float, int]:
    """Processor time from `fit` to the end of the first step, and in it to make the steps; objects left alive."""
    x, y = np.ones((8, *shape), "float32"), np.zeros(8)
    gc.collect()
    before = len(gc.get_objects())
    gc.disable()
    made: list[float] = []
    make_steps = Steps.compile

    def timed(*arguments: Any, **options: Any) -> Any:
        began = time.process_time()
        try:
            return make_steps(*arguments, **options)
        finally:
            made.append(time.process_time() - began)

    with mock.patch.object(Steps, "compile", timed):
        started = time.process_time()
        trainer.fit((x, y), steps=1, batch_size=8, eval_data=(x, y), progress=False)
        seconds = time.process_time() - started
    gc.enable()
    return seconds, sum(made), len(gc.get_objects()) - before


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", type=int, default=21, help="pairs of each model")
    parser.add_argument("--out", type=Path, default=RESULTS, help="the JSON file to write")
    arguments = parser.parse_args()
    rows = {}
    for name, (make, shape) in MODELS.items():
        first_step(new_trainer(make), shape)  # warm-up
        checked: list[tuple[float, float, int]] = []
        without: list[tuple[float, float, int]] = []
        for pair in range(arguments.pairs):
            for check in (True, False) if pair % 2 else (False, True):
                with contextlib.nullcontext() if check else unchecked():
                    (checked if check else without).append(first_step(new_trainer(make), shape))
        (whole, steps, objects), (whole_without, steps_without, objects_without) = (
            np.array(times).T for times in (checked, without)
        )
        share = (steps - steps_without) / np.median(whole_without)
        rows[name] = {
            "processor seconds to the first step, without the check": np.median(whole_without),
            "of them to make the steps": np.median(steps_without),
            "to make the steps with the check": np.median(steps),
            "cost of the check, share of the time to the first step": median(share),
            "the whole time with the check over that without": median(whole / whole_without),
            "objects made, with the check over without": np.median(objects / objects_without),
        }
        print(name, json.dumps(rows[name], default=float), flush=True)
    save(arguments.out, {"models": rows, "pairs": arguments.pairs}, "benchmarks.audit_cost")


if __name__ == "__main__":
    main()
