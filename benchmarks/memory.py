"""How much memory looper needs at most, in each of its modes, against the loop written by hand in the same mode.

    python -m benchmarks.memory
    python -m benchmarks.memory --models gpt8 --modes graph,xla_loop --out try.json

Each trains a few bursts in a process of its own, in turns; what is compared is the most memory that was resident
in the process. That of a GPU is not counted. looper has its bar, TensorBoard, metrics.jsonl and checkpoints on.
"""

import argparse
import sys
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.modes import BY_HAND, add_arguments, chosen
from benchmarks.peers.process import Process, Size
from benchmarks.problems import PROBLEMS
from benchmarks.saving import save
from looper.commands.bench.statistics import median

RESULTS = Path(__file__).parent / "results" / "memory.json"
BOUND = 1.05


def peak_mib(peer: str, size: Size, bursts: int) -> float:
    """The most memory that a peer had resident while it trained."""
    with Process(peer, size) as process:
        for _ in range(bursts - 1):
            process.burst()
        return process.close()


def compare(model: str, mode: str, pairs: int, bursts: int) -> dict[str, Any]:
    """looper and the loop by hand in one mode."""
    problem = PROBLEMS[model]
    size = Size(model, problem.steps_per_burst, problem.steps_per_call, execution=mode)
    found = [(peak_mib("looper", size, bursts), peak_mib(BY_HAND[mode], size, bursts)) for _ in range(pairs)]
    ours, by_hand = np.array(found).T
    return {
        "looper": median(ours),
        "by hand": median(by_hand),
        "difference": median(ours - by_hand),
        "ratio": median(ours / by_hand),
        "within the bound": bool(np.median(ours / by_hand) <= BOUND),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_arguments(parser)
    parser.add_argument("--pairs", type=int, default=5, help="processes of each side")
    parser.add_argument("--bursts", type=int, default=2, help="that each trains")
    parser.add_argument("--out", type=Path, default=RESULTS, help="the JSON file to write")
    arguments = parser.parse_args()
    result: dict[str, Any] = {}
    for model, mode in chosen(parser, arguments):
        result.setdefault(model, {})[mode] = compare(model, mode, arguments.pairs, arguments.bursts)
        print(f"{model}, {mode}: {result[model][mode]['ratio']}", file=sys.stderr)
    whole = {"peak MiB": result, "bound": BOUND, "pairs": arguments.pairs, "bursts": arguments.bursts}
    print(save(arguments.out, whole, "benchmarks.memory"))


if __name__ == "__main__":
    main()
