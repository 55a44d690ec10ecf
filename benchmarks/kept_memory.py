"""What it brings that a step's memory stays with the process, where XLA compiled the step: see `looper.memory.keep`.

    python -m benchmarks.kept_memory
    python -m benchmarks.kept_memory --models gpt8 --data arrays --out try.json

looper with and without it, in bursts that alternate. Whether glibc gives a piece back to the system as soon as it is
free depends on where the piece lies, so that some processes lose nothing: `--processes` of each train.
"""

import argparse
import shlex
import sys
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.hot_step import measure
from benchmarks.peers.line import DATA
from benchmarks.peers.process import Size
from benchmarks.problems import PROBLEMS
from benchmarks.saving import save
from looper.bench.statistics import median

RESULTS = Path(__file__).parent / "results" / "kept_memory.json"
SIDES = ("looper", "looper_unkept")


def compare(size: Size, processes: int, bursts: int) -> dict[str, Any]:
    """Both in turns, in several pairs of processes."""
    times, ratios = {side: [] for side in SIDES}, []
    for _ in range(processes):
        found, without = measure(SIDES, size, bursts)
        if without:
            raise SystemExit(f"{size.model}: {without}")
        for side in SIDES:
            times[side] += list(found[side]["seconds"] * 1e6 / size.steps_per_burst)
        ratios.append(float(np.median(found["looper"]["seconds"] / found["looper_unkept"]["seconds"])))
    return {
        "microseconds per step": {side: median(np.array(times[side])) for side in SIDES},
        "ratio kept / not, of each pair of processes": ratios,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", default="mlp,cnn32,cnn256,gpt8,gpt64", help=f"some of {','.join(PROBLEMS)}")
    parser.add_argument("--data", choices=DATA, default="dataset", help="what looper is given")
    parser.add_argument("--processes", type=int, default=3, help="pairs of them")
    parser.add_argument("--bursts", type=int, default=8, help="timed bursts of each process")
    parser.add_argument("--out", type=Path, default=RESULTS, help="the JSON file to write")
    arguments = parser.parse_args()
    models = arguments.models.split(",")
    if not set(models) <= set(PROBLEMS):
        parser.error(f"--models {arguments.models}: expected some of {', '.join(PROBLEMS)}")
    result: dict[str, Any] = {}
    for model in models:
        problem = PROBLEMS[model]
        size = Size(model, problem.steps_per_burst, problem.steps_per_call, execution="xla_step", data=arguments.data)
        result[model] = compare(size, arguments.processes, arguments.bursts)
        print(f"{model}: {result[model]}", file=sys.stderr)
    whole = {"XLA steps": result, "data": arguments.data, "bursts": arguments.bursts}
    print(save(arguments.out, whole, shlex.join(["benchmarks.kept_memory", *sys.argv[1:]])))


if __name__ == "__main__":
    main()
