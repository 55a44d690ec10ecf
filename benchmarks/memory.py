"""How much memory looper needs at most, in each of its modes, against the loop written by hand in the same mode.

    python -m benchmarks.memory
    python -m benchmarks.memory --models gpt8 --modes graph,xla_loop --out try.json
    python -m benchmarks.memory --auto

With `--auto` looper chooses its mode, and is compared with that mode by hand: what XLA compiled to compare stays in the
process. Each trains a few bursts in a process of its own, in turns; what is compared is the most memory that was
resident in the process. That of a GPU is not counted. looper has its bar, TensorBoard, metrics.jsonl and checkpoints
on.
"""

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.modes import BY_HAND, add_arguments, chosen
from benchmarks.peers.process import Process, Size
from benchmarks.problems import PROBLEMS
from benchmarks.saving import save
from looper.commands.bench.statistics import median

RESULTS = Path(__file__).parent / "results"
BOUND = 1.05
OF_AUTO = ("mlp", "gpt8", "cnn32", "cnn256", "resnet50")
BOUNDS_OF_AUTO = {
    "nothing compiled": BOUND,
    "one mode compiled": 1.10,
    "two modes compiled": 1.25,
    "graph kept after a trial": 1.40,
}


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


def compare_auto(model: str, pairs: int, bursts: int) -> dict[str, Any]:
    """looper in the mode that it chooses, and the loop by hand in this one; by mode, and by what was tried."""
    problem = PROBLEMS[model]
    found: dict[str, list[tuple[float, float]]] = {}
    for _ in range(pairs):
        with tempfile.TemporaryDirectory() as workdir:
            size = Size(model, problem.steps_per_burst, problem.steps_per_call, workdir=workdir)
            ours = peak_mib("looper", size, bursts)
            choice = json.loads((Path(workdir) / "execution.json").read_text())
        compiled = sum("compile_seconds" in row for row in choice["table"].values())
        tried = {0: "nothing compiled", 1: "one mode compiled", 2: "two modes compiled"}[compiled]
        kind = "graph kept after a trial" if compiled and choice["mode"] == "graph" else tried
        pair = ours, peak_mib(BY_HAND[choice["mode"]], size, bursts)
        found.setdefault(f"{choice['mode']}, {kind}", []).append(pair)
    result = {}
    for name, each in found.items():
        (ours, by_hand), bound = np.array(each).T, BOUNDS_OF_AUTO[name.partition(", ")[2]]
        result[name] = {
            "looper": median(ours),
            "by hand": median(by_hand),
            "ratio": median(ours / by_hand),
            "bound": bound,
            "within the bound": bool(np.median(ours / by_hand) <= bound),
            "pairs": len(each),
        }
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_arguments(parser)
    parser.add_argument("--pairs", type=int, default=5, help="processes of each side")
    parser.add_argument("--bursts", type=int, default=2, help="that each trains")
    parser.add_argument("--out", type=Path, help="the JSON file to write; default: results/memory.json")
    parser.add_argument("--auto", action="store_true", help="compare the mode that looper chooses")
    arguments = parser.parse_args()
    result: dict[str, Any] = {}
    if arguments.auto:
        if arguments.modes != ",".join(BY_HAND):
            parser.error("--auto chooses the mode: leave --modes out")
        for model in OF_AUTO if arguments.models == ",".join(PROBLEMS) else arguments.models.split(","):
            result[model] = compare_auto(model, arguments.pairs, arguments.bursts)
            print(f"{model}: {result[model]}", file=sys.stderr)
        whole = {"peak MiB": result, "pairs": arguments.pairs, "bursts": arguments.bursts}
        print(save(arguments.out or RESULTS / "memory_auto.json", whole, "benchmarks.memory"))
        return
    for model, mode in chosen(parser, arguments):
        result.setdefault(model, {})[mode] = compare(model, mode, arguments.pairs, arguments.bursts)
        print(f"{model}, {mode}: {result[model][mode]['ratio']}", file=sys.stderr)
    whole = {"peak MiB": result, "bound": BOUND, "pairs": arguments.pairs, "bursts": arguments.bursts}
    print(save(arguments.out or RESULTS / "memory.json", whole, "benchmarks.memory"))


if __name__ == "__main__":
    main()
