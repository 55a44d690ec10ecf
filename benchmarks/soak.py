"""Does a long run stay as it is: resident memory, threads, open files, while it logs, evaluates and saves?

    python -m benchmarks.soak

10^6 steps in an XLA loop and 3 * 10^5 in the graph, of the first model of `benchmarks/hot_step.py`, with all that is on
by default: a log each 1,000 steps, an evaluation each 20,000, a checkpoint each 50,000. What there is is noted at each
evaluation; after a tenth of the run nothing may grow but by what `history` takes, which is kept in memory.
"""

import argparse
import os
import sys
import tempfile
import threading
from pathlib import Path
from typing import Any

import numpy as np

import looper
from benchmarks.peers import keras_models
from benchmarks.peers.looper import looper_trainer
from benchmarks.problems import PROBLEMS
from benchmarks.saving import save
from looper import callbacks
from looper.base import memory

RESULTS = Path(__file__).parent / "results"
RUNS = {"xla_loop": 1_000_000, "graph": 300_000}


class Note(callbacks.Callback):
    """Keeps MiB resident, threads and descriptors, at each evaluation."""

    def __init__(self) -> None:
        self.seen: list[tuple[float, int, int]] = []

    def on_eval_end(self, step: int, logs: Any) -> None:
        resident = (memory.resident() or 0) / 2**20
        self.seen.append((resident, threading.active_count(), len(os.listdir("/proc/self/fd"))))


def soak(execution: str, steps: int, folder: Path) -> dict[str, Any]:
    """What one run holds from a tenth of it on."""
    problem = PROBLEMS["mlp"]
    x, y = keras_models.arrays(problem)
    note = Note()
    trainer = looper_trainer(problem, execution=execution, workdir=folder / execution)
    trainer.fit(
        (x, y),
        steps=steps,
        batch_size=problem.batch,
        eval_data=(x[:3200], y[:3200]),
        eval_every=looper.Every(steps=20_000),
        save_every=looper.Every(steps=50_000),
        log_every=looper.Every(steps=1000),
        callbacks=[note],
        progress=False,
    )
    after = np.array(note.seen[len(note.seen) // 10 :])
    middle = np.median(after[: len(after) // 3, 0]), np.median(after[-len(after) // 3 :, 0])
    rows = trainer.history.rows
    taken = sum(sys.getsizeof(row) + 32 * len(row) for row in rows) / 2**20
    return {
        "steps": trainer.step,
        "MiB resident, first third and last": [round(float(value), 1) for value in middle],
        "MiB that history takes": round(taken, 1),
        "threads, least and most": [int(after[:, 1].min()), int(after[:, 1].max())],
        "descriptors, least and most": [int(after[:, 2].min()), int(after[:, 2].max())],
        "microseconds per step": round(1e6 * sum(trainer.ledger.seconds.values()) / trainer.step, 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--share", type=float, default=1.0, help="of the steps")
    parser.add_argument("--out", type=Path, default=RESULTS / "soak.json", help="the JSON file to write")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        found = {name: soak(name, int(steps * arguments.share), Path(folder)) for name, steps in RUNS.items()}
    print(save(arguments.out, {"runs": found}, "benchmarks.soak"))


if __name__ == "__main__":
    main()
