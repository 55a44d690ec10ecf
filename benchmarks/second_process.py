"""What the second process of a recipe takes: modes that were measured, and XLA programs that were kept, by the first.

    python -m benchmarks.second_process
    python -m benchmarks.second_process --turns 3 --out try.json

Seconds from the end of the imports to the last loss, of 20,000 steps of the first model of `benchmarks/hot_step.py`,
each in a process of its own, in turns: the XLA loop by hand, without a cache and with TensorFlow's own that an earlier
process has filled; looper with `execution="auto"`, bar, TensorBoard, files and checkpoints, in a process that knows
nothing (the first) and in one that follows it.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.peers.process import ROOT, Process, Size
from benchmarks.saving import save
from looper.commands.bench.statistics import median

RESULTS = Path(__file__).parent / "results" / "second_process.json"
STEPS, CALL = 20_000, 250


def inside() -> None:
    """looper's side: prints its seconds and its mode."""
    import looper.trainer  # noqa: F401  (TensorFlow, too)
    from benchmarks.peers import keras_models
    from benchmarks.peers.line import Terminal
    from benchmarks.peers.looper import looper_trainer
    from benchmarks.problems import PROBLEMS
    from looper import callbacks

    problem = PROBLEMS["mlp"]
    data = keras_models.arrays(problem)
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as workdir:
        trainer = looper_trainer(problem, workdir=workdir)
        bar = callbacks.ProgressBar(stream=Terminal())
        trainer.fit(data, batch_size=problem.batch, shuffle=False, steps=STEPS, callbacks=[bar])
    print(time.perf_counter() - began, trainer.ledger.seconds)


def of_looper(cache: Path) -> float:
    """Seconds of a process."""
    command = [sys.executable, "-m", "benchmarks.second_process", "--inside"]
    environment = {"TF_CPP_MIN_LOG_LEVEL": "3", **os.environ, "LOOPER_CACHE": str(cache)}
    run = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT, env=environment)
    return float(run.stdout.splitlines()[-1].split()[0])


def by_hand(cache: Path | None) -> float:
    """The same by hand."""
    environment = {} if cache is None else {"TF_XLA_FLAGS": f"--tf_xla_persistent_cache_directory={cache}"}
    with Process("hand_xla_loop", Size("mlp", STEPS, CALL), environment=environment) as process:
        return process.first["seconds"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--turns", type=int, default=9)
    parser.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, default=RESULTS, help="the JSON file to write")
    given = parser.parse_args()
    if given.inside:
        inside()
        return
    seconds: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        warm, theirs = Path(folder, "warm"), Path(folder, "theirs")
        of_looper(warm), by_hand(theirs)
        for turn in range(given.turns):
            turns: dict[str, Any] = {
                "by hand": lambda: by_hand(None),
                "by hand, warm cache": lambda: by_hand(theirs),
                "looper, the first": lambda turn=turn: of_looper(Path(folder, str(turn))),
                "looper, the second": lambda: of_looper(warm),
            }
            for side, take in turns.items():
                seconds.setdefault(side, []).append(take())
    found = {side: np.array(each) for side, each in seconds.items()}
    result = {
        "seconds": {side: median(each) for side, each in found.items()},
        "the second / by hand": median(found["looper, the second"] / found["by hand"]),
        "the second / by hand with a warm cache": median(found["looper, the second"] / found["by hand, warm cache"]),
        "the first / by hand": median(found["looper, the first"] / found["by hand"]),
        "steps": STEPS,
    }
    print(save(given.out, result, "benchmarks.second_process"))


if __name__ == "__main__":
    main()
