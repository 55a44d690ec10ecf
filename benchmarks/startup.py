"""What looper adds before the first step is done: to the import of TensorFlow, and to the first step by hand.

    python -m benchmarks.startup
    python -m benchmarks.startup --model resnet50 --execution xla_step

Each is measured in processes of its own, in turns: with looper, without, with, without. The time to the first step is
from when all is imported until the loss of one step is on the host; looper has its bar, TensorBoard, metrics.jsonl and
checkpoints on, and audits the steps. The other side is the hand-written in-graph loop.
"""

import argparse
import shlex
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.peers.process import ROOT, Process, Size, summary
from benchmarks.problems import PROBLEMS
from benchmarks.saving import save

RESULTS = Path(__file__).parent / "results" / "startup.json"


def import_seconds(module: str) -> float:
    """How long a new process takes to import a module."""
    code = f"import time; began = time.perf_counter(); import {module}; print(time.perf_counter() - began)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    return float(run.stdout.splitlines()[-1])


def first_step_seconds(peer: str, model: str, execution: str) -> float:
    """How long a peer takes in a new process from its imports to the loss of its first step."""
    with Process(peer, Size(model, steps_per_burst=1, steps_per_call=1, execution=execution)) as process:
        return process.first["seconds"]


def compared(ours: Sequence[float], others: Sequence[float], other: str) -> dict[str, Any]:
    """Both sides, and by how much ours takes longer, pair by pair."""
    return {
        "looper": summary(ours),
        other: summary(others),
        "difference": summary(np.subtract(ours, others)),
        "ratio": summary(np.divide(ours, others)),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", choices=PROBLEMS, default="mlp")
    parser.add_argument("--execution", default="auto", help="looper's mode")
    parser.add_argument("--pairs", type=int, default=9, help="processes of each side")
    parser.add_argument("--out", type=Path, default=RESULTS, help="the JSON file to write")
    arguments = parser.parse_args()
    model, mode = arguments.model, arguments.execution
    imports = [(import_seconds("looper"), import_seconds("tensorflow")) for _ in range(1 + arguments.pairs)][1:]
    firsts = [
        (first_step_seconds("looper", model, mode), first_step_seconds("hand_loop", model, mode))
        for _ in range(arguments.pairs)
    ]
    result = {
        "seconds to import": compared(*zip(*imports, strict=True), "tensorflow"),
        "seconds to the first step": compared(*zip(*firsts, strict=True), "hand-written in-graph loop"),
        "model": model,
        "execution": mode,
        "pairs": arguments.pairs,
    }
    print(save(arguments.out, result, shlex.join(["benchmarks.startup", *sys.argv[1:]])))


if __name__ == "__main__":
    main()
