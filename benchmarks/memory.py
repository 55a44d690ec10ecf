"""How much memory looper needs at most, in each of its modes, against the loop written by hand in the same mode.

    python -m benchmarks.memory
    python -m benchmarks.memory --model gpt8 --modes graph,xla_loop

Each trains a few bursts in a process of its own, in turns; what is compared is the most memory that was resident
in the process. That of a GPU is not counted. looper has its bar, TensorBoard, metrics.jsonl and checkpoints on.
"""

import argparse
import shlex
import sys
from pathlib import Path

import numpy as np

from benchmarks.peers.process import Process, Size
from benchmarks.problems import PROBLEMS
from benchmarks.saving import save
from looper.bench.statistics import median

RESULTS = Path(__file__).parent / "results" / "memory.json"
BY_HAND = {"graph": "hand_loop", "xla_step": "hand_xla_step", "xla_loop": "hand_xla_loop"}


def peak_mib(peer: str, size: Size, bursts: int) -> float:
    """The most memory that a peer had resident while it trained."""
    with Process(peer, size) as process:
        for _ in range(bursts - 1):
            process.burst()
        return process.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", choices=PROBLEMS, default="mlp")
    parser.add_argument("--modes", default=",".join(BY_HAND), help=f"some of {','.join(BY_HAND)}")
    parser.add_argument("--pairs", type=int, default=7, help="processes of each side")
    parser.add_argument("--bursts", type=int, default=5, help="that each trains")
    parser.add_argument("--out", type=Path, default=RESULTS, help="the JSON file to write")
    arguments = parser.parse_args()
    modes = arguments.modes.split(",")
    if not set(modes) <= set(BY_HAND):
        parser.error(f"--modes {arguments.modes}: expected some of {','.join(BY_HAND)}")
    problem = PROBLEMS[arguments.model]
    result = {}
    for mode in modes:
        size = Size(arguments.model, problem.steps_per_burst, problem.steps_per_call, execution=mode)
        pairs = [
            (peak_mib("looper", size, arguments.bursts), peak_mib(BY_HAND[mode], size, arguments.bursts))
            for _ in range(arguments.pairs)
        ]
        ours, by_hand = np.array(pairs).T
        result[mode] = {
            "looper": median(ours),
            "by hand": median(by_hand),
            "difference": median(ours - by_hand),
            "ratio": median(ours / by_hand),
        }
    chosen = {"model": arguments.model, "pairs": arguments.pairs, "steps": arguments.bursts * problem.steps_per_burst}
    result = {"peak MiB": result, **chosen}
    print(save(arguments.out, result, shlex.join(["benchmarks.memory", *sys.argv[1:]])))


if __name__ == "__main__":
    main()
