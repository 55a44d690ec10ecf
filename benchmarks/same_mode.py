"""How long a step takes under looper in each of its modes, against the loop written by hand in the same mode.

    python -m benchmarks.same_mode
    python -m benchmarks.same_mode --data dataset --out dataset.json
    python -m benchmarks.same_mode --models gpt8 --modes graph,xla_loop --bursts 20 --out try.json

As `benchmarks.hot_step` measures it: looper has its bar, TensorBoard, metrics.jsonl and checkpoints on, and logs every
100 steps or every burst; the loop by hand only trains. It reads a `tf.data.Dataset`; looper is given arrays, or that.
"""

import argparse
import sys
from pathlib import Path
from typing import Any

from benchmarks.hot_step import compare
from benchmarks.modes import BY_HAND, add_arguments, chosen
from benchmarks.peers.line import DATA
from benchmarks.peers.process import Size
from benchmarks.problems import PROBLEMS
from benchmarks.saving import save

RESULTS = Path(__file__).parent / "results" / "same_mode.json"
BOUND = 1.02
"""What the interval of the ratio, or what is below it, is to include."""


def in_mode(model: str, mode: str, bursts: int, data: str) -> dict[str, Any]:
    """looper and the loop by hand in one mode."""
    problem = PROBLEMS[model]
    size = Size(model, problem.steps_per_burst, problem.steps_per_call, execution=mode, data=data)
    found = compare([BY_HAND[mode]], bursts, size)
    [ratio] = found["ratios looper / peer, turn by turn"].values()
    [difference] = found["largest relative difference of losses from looper's"].values()
    return {
        "microseconds per step": found["microseconds per step"],
        "ratio": ratio,
        "within the bound": ratio["interval"][0] <= BOUND,
        "largest relative difference of losses": difference,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_arguments(parser)
    parser.add_argument("--data", choices=DATA, default="arrays", help="what looper is given")
    parser.add_argument("--bursts", type=int, default=20, help="timed bursts of each")
    parser.add_argument("--out", type=Path, default=RESULTS, help="the JSON file to write")
    arguments = parser.parse_args()
    result: dict[str, Any] = {}
    for model, mode in chosen(parser, arguments):
        result.setdefault(model, {})[mode] = in_mode(model, mode, arguments.bursts, arguments.data)
        print(f"{model}, {mode}: {result[model][mode]['ratio']}", file=sys.stderr)
    whole = {"looper / by hand": result, "bound": BOUND, "bursts": arguments.bursts, "data": arguments.data}
    print(save(arguments.out, whole, "benchmarks.same_mode"))


if __name__ == "__main__":
    main()
