"""What looper adds before the first step is done: to the import of TensorFlow, and to the first step by hand.

    python -m benchmarks.startup
    python -m benchmarks.startup --model resnet50 --execution xla_step

Each is measured in processes of its own, in turns: with looper, without, with, without. What is imported of looper is
what training needs (`import looper` alone loads next to nothing), beside TensorFlow, and TensorFlow with Keras. The
time to the first step is from when all is imported until the loss of one step is on the host; looper has its bar,
TensorBoard, metrics.jsonl and checkpoints on, and audits the steps. The other side is the hand-written in-graph loop.
"""

import argparse
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.peers import PEERS
from benchmarks.peers.process import ROOT, Process, Size
from benchmarks.problems import PROBLEMS
from benchmarks.saving import save
from looper.bench.statistics import median

RESULTS = Path(__file__).parent / "results" / "startup.json"
IMPORTS = {
    "looper": "from looper import Trainer, callbacks",
    "tensorflow": "import tensorflow",
    "tensorflow and keras": "import tensorflow, keras",
}


def import_seconds(statement: str) -> float:
    """How long a new process takes for an import."""
    code = f"import time; began = time.perf_counter(); {statement}; print(time.perf_counter() - began)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    return float(run.stdout.splitlines()[-1])


def first_step_seconds(peer: str, model: str, execution: str) -> float:
    """How long a peer takes in a new process from its imports to the loss of its first step."""
    with Process(peer, Size(model, steps_per_burst=1, steps_per_call=1, execution=execution)) as process:
        return process.first["seconds"]


def compared(seconds: Mapping[str, Sequence[float]]) -> dict[str, Any]:
    """All sides, and by how much looper takes longer than each other one, turn by turn."""
    ours = seconds["looper"]
    result: dict[str, Any] = {name: median(values) for name, values in seconds.items()}
    for other in [name for name in seconds if name != "looper"]:
        result[f"looper - {other}"] = median(np.subtract(ours, seconds[other]))
        result[f"looper / {other}"] = median(np.divide(ours, seconds[other]))
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", choices=PROBLEMS, default="mlp")
    parser.add_argument("--execution", default="auto", help="looper's mode")
    parser.add_argument("--pairs", type=int, default=9, help="turns of each side")
    parser.add_argument("--out", type=Path, default=RESULTS, help="the JSON file to write")
    arguments = parser.parse_args()
    model, mode = arguments.model, arguments.execution
    for statement in IMPORTS.values():
        import_seconds(statement)  # from here on the files are in memory
    imports: dict[str, list[float]] = {name: [] for name in IMPORTS}
    firsts: dict[str, list[float]] = {"looper": [], "hand_loop": []}
    for _ in range(arguments.pairs):
        for name, statement in IMPORTS.items():
            imports[name].append(import_seconds(statement))
        for peer, seconds in firsts.items():
            seconds.append(first_step_seconds(peer, model, mode))
    result = {
        "seconds to import": compared(imports),
        "seconds to the first step": compared({PEERS[peer].title: seconds for peer, seconds in firsts.items()}),
        "model": model,
        "execution": mode,
        "pairs": arguments.pairs,
    }
    print(save(arguments.out, result, shlex.join(["benchmarks.startup", *sys.argv[1:]])))


if __name__ == "__main__":
    main()
