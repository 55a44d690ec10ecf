"""How soon is the first burst of a long run done, everything from the end of the imports included?

    python -m benchmarks.first_burst
    python -m benchmarks.first_burst --models mlp --turns 1 --out try.json

looper is told that the run will be 100 times that long, knows nothing of earlier processes, and chooses its mode. The
loop by hand is in the mode that looper chose. Each is a process of its own, in turns.
"""

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.modes import BY_HAND
from benchmarks.peers.process import Process, Size
from benchmarks.saving import save
from looper.commands.bench.statistics import median

RESULTS = Path(__file__).parent / "results" / "first_burst.json"
BURSTS = {"mlp": (20_000, 250), "cnn32": (5_000, 50), "gpt8": (1_000, 20)}
"""Steps of the first burst, and of a call of the loops by hand."""
TIMES = 100


def turn(model: str) -> tuple[float, float, str]:
    """Seconds of looper and of the loop by hand, and the mode."""
    steps, call = BURSTS[model]
    with tempfile.TemporaryDirectory() as workdir:
        size = Size(model, steps, call, workdir=workdir, bursts=TIMES)
        with Process("looper", size) as process:
            ours = process.first["seconds"]
            mode = json.loads((Path(workdir) / "execution.json").read_text())["mode"]
    with Process(BY_HAND[mode], Size(model, steps, call)) as process:
        return ours, process.first["seconds"], mode


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="*", choices=list(BURSTS), default=list(BURSTS))
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--out", type=Path, default=RESULTS, help="the JSON file to write")
    given = parser.parse_args()
    result: dict[str, Any] = {}
    for model in given.models:
        turns = [turn(model) for _ in range(given.turns)]
        ours, by_hand = np.array([seconds for *seconds, _ in turns]).T
        result[model] = {
            "modes": [mode for *_, mode in turns],
            "seconds": {"looper": median(ours), "by hand": median(by_hand)},
            "ratio": median(ours / by_hand),
            "steps of the burst": BURSTS[model][0],
        }
        print(f"{model}: {result[model]}", file=sys.stderr)
    print(save(given.out, {"models": result, "turns": given.turns}, "benchmarks.first_burst"))


if __name__ == "__main__":
    main()
