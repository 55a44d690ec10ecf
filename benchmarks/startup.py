"""What looper adds before the first step is done: to the import of TensorFlow, and to the first step by hand.

    python -m benchmarks.startup
    python -m benchmarks.startup --model resnet50 --execution xla_step

Each is measured in processes of its own, in turns: with looper, without, with, without. Imported are TensorFlow with
looper (which loads next to nothing by itself), and what training needs of looper, beside TensorFlow, and TensorFlow
with Keras. The time to the first step is from when all is imported until the loss of one step is on the host; looper
has its bar, TensorBoard, metrics.jsonl and checkpoints on, and audits the steps. The other side is the hand-written
in-graph loop. And once more with what an earlier process of the same left in looper's cache folder.
"""

import argparse
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.peers import PEERS
from benchmarks.peers.process import ROOT, Process, Size
from benchmarks.problems import PROBLEMS
from benchmarks.saving import save
from looper.commands.bench.statistics import median

RESULTS = Path(__file__).parent / "results" / "startup.json"
IMPORTS = {
    "looper": "from looper import Trainer, callbacks",
    "tensorflow and looper": "import tensorflow, looper",
    "tensorflow": "import tensorflow",
    "tensorflow and keras": "import tensorflow, keras",
}


def import_seconds(statement: str) -> float:
    """How long a new process takes for an import."""
    code = f"import time; began = time.perf_counter(); {statement}; print(time.perf_counter() - began)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    return float(run.stdout.splitlines()[-1])


def first_step(peer: str, model: str, execution: str, cache: str | None = None) -> dict[str, float]:
    """The "seconds" that a peer takes in a new process from its imports to the first step's "loss".

    With `cache`, looper keeps XLA programs and what it measured in this folder, and finds them there.
    """
    environment = {} if cache is None else {"LOOPER_CACHE": cache}
    size = Size(model, steps_per_burst=1, steps_per_call=1, execution=execution)
    with Process(peer, size, environment=environment) as process:
        return process.first


def compared(seconds: Mapping[str, Sequence[float]], *pairs: tuple[str, str]) -> dict[str, Any]:
    """All sides, and by how much the first of each pair takes longer than the second, turn by turn."""
    result: dict[str, Any] = {name: median(values) for name, values in seconds.items()}
    for one, other in pairs:
        result[f"{one} - {other}"] = median(np.subtract(seconds[one], seconds[other]))
        result[f"{one} / {other}"] = median(np.divide(seconds[one], seconds[other]))
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
    by_hand, cached = PEERS["hand_loop"].title, "looper, a second process"
    firsts: dict[str, list[float]] = {"looper": [], cached: [], by_hand: []}
    with tempfile.TemporaryDirectory() as cache:
        loss = first_step("looper", model, mode, cache)["loss"]
        for _ in range(arguments.pairs):
            for name, statement in IMPORTS.items():
                imports[name].append(import_seconds(statement))
            firsts["looper"].append(first_step("looper", model, mode)["seconds"])
            firsts[by_hand].append(first_step("hand_loop", model, mode)["seconds"])
            again = first_step("looper", model, mode, cache)
            firsts[cached].append(again["seconds"])
            if again["loss"] != loss:
                raise SystemExit(f"with what was kept the first loss is {again['loss']}, and was {loss}")
    result = {
        "seconds to import": compared(
            imports,
            ("tensorflow and looper", "tensorflow"),
            ("looper", "tensorflow"),
            ("looper", "tensorflow and keras"),
        ),
        "seconds to the first step": compared(firsts, ("looper", by_hand), (cached, "looper")),
        "model": model,
        "execution": mode,
        "pairs": arguments.pairs,
    }
    print(save(arguments.out, result, "benchmarks.startup"))


if __name__ == "__main__":
    main()
