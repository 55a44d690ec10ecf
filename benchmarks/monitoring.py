"""What it costs to watch a run: bar, TensorBoard and files, beside the same fit that shows and writes nothing.

    python -m benchmarks.monitoring
    python -m benchmarks.monitoring --model cnn32 --turns 40

Three fits of the same model train in turns, each in a thread of its own: "off" has neither bar nor workdir; "default"
has both, with the bar on a terminal of 100 columns, and what comes with a workdir; "everything" has, besides,
`CSVLogger`, `Throughput`, and each 1,000 steps `Histograms` of weights and updates, a picture and a text. All log each
100 steps, and choose their mode once, before the clock runs.
"""

import argparse
import os
import pty
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np

import looper
from benchmarks.peers import keras_models
from benchmarks.peers.looper import looper_trainer
from benchmarks.problems import PROBLEMS, Problem
from benchmarks.saving import save
from looper import callbacks
from looper.commands.bench.statistics import median

RESULTS = Path(__file__).parent / "results"
EACH = looper.Every(steps=1000)


class Turn(callbacks.Callback):
    """Trains a number of steps each time that it is let, and waits for the next."""

    def __init__(self, steps: int) -> None:
        self.every = looper.Every(steps=steps)
        self._may_go, self._done = threading.Semaphore(0), threading.Semaphore(0)
        self._ended = False

    def on_step(self, step: int, logs: callbacks.Run) -> None:
        self._done.release()
        self._may_go.acquire()
        if self._ended:
            self.run.stop("measured")

    def wait(self) -> None:
        """Waits until the steps are done."""
        self._done.acquire()

    def seconds(self) -> float:
        """Lets it train once. Returns how long it took."""
        began = time.perf_counter()
        self._may_go.release()
        self.wait()
        return time.perf_counter() - began

    def end(self) -> None:
        """Ends its fit."""
        self._ended = True
        self._may_go.release()


def watched(kind: str, folder: Path, terminal: Any) -> tuple[dict[str, Any], list[callbacks.Callback]]:
    """The workdir, and the callbacks, of a side."""
    if kind == "off":
        return {}, []
    given: list[callbacks.Callback] = [callbacks.ProgressBar(terminal)]
    if kind == "everything":
        given += [
            callbacks.CSVLogger(),
            callbacks.Throughput(),
            callbacks.Histograms(every=EACH, updates=True),
            callbacks.Images(np.zeros((4, 32, 32, 1), "uint8"), every=EACH),
            callbacks.Text(lambda run: "a sample", every=EACH),
        ]
    return {"workdir": folder / kind}, given


def measure(problem: Problem, steps: int, turns: int, folder: Path, execution: str) -> dict[str, np.ndarray]:
    """Seconds of each turn, by the side."""
    controlling, terminal = pty.openpty()
    threading.Thread(
        target=lambda: [None for _ in iter(lambda: os.read(controlling, 1 << 16), b"")], daemon=True
    ).start()
    out = os.fdopen(terminal, "w")
    x, y = keras_models.arrays(problem)
    turn_of: dict[str, Turn] = {}
    threads = []
    for kind in ("off", "default", "everything"):
        options, given = watched(kind, folder, out)
        turn_of[kind] = turn = Turn(steps)
        trainer = looper_trainer(problem, execution=execution, **options)
        fit = {"steps": 10**9, "batch_size": problem.batch, "progress": kind != "off", "save_every": None}
        threads.append(
            threading.Thread(target=lambda t=trainer, f=fit, c=[*given, turn]: t.fit((x, y), callbacks=c, **f))
        )
        threads[-1].start()
        turn.wait()
        turn.seconds()  # warm
    times: dict[str, list[float]] = {kind: [] for kind in turn_of}
    order = np.random.default_rng(0)
    for _ in range(turns):
        for kind in order.permutation(list(turn_of)):
            times[kind].append(turn_of[kind].seconds())
    for turn, thread in zip(turn_of.values(), threads, strict=True):
        turn.end()
        thread.join()
    return {kind: np.array(found) for kind, found in times.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", choices=PROBLEMS, nargs="*", default=["mlp", "cnn32"])
    parser.add_argument("--turns", type=int, default=60, help="of each side")
    parser.add_argument("--out", type=Path, default=RESULTS / "monitoring.json", help="the JSON file to write")
    arguments = parser.parse_args()
    found = {}
    for model in arguments.model:
        problem = PROBLEMS[model]
        execution = {"mlp": "xla_loop", "deep_mlp": "xla_loop"}.get(model, "graph")
        steps = {"mlp": 10_000, "cnn32": 1000}.get(model, problem.steps_per_burst)
        with tempfile.TemporaryDirectory() as folder:
            seconds = measure(problem, steps, arguments.turns, Path(folder), execution)
        found[model] = {
            "microseconds per step": {kind: median(times / steps * 1e6) for kind, times in seconds.items()},
            "default / off": median(seconds["default"] / seconds["off"]),
            "everything / off": median(seconds["everything"] / seconds["off"]),
            "execution": execution,
            "steps of a turn": steps,
        }
    print(save(arguments.out, {"models": found, "turns": arguments.turns}, "benchmarks.monitoring"))


if __name__ == "__main__":
    main()
