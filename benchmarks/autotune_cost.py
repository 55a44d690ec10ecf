"""What choosing the mode costs a run with `execution="auto"`, against a run that is told the mode that was chosen.

    python -m benchmarks.autotune_cost
    python -m benchmarks.autotune_cost --runs mlp:1000,gpt8:2000 --pairs 3 --out try.json

Each `fit` is timed in a process of its own, in turns: one that chooses, one that is told. It may take 5% longer, what
it took to compile with XLA what was not chosen, and two steps of each XLA mode that was tried. Both have the bar,
TensorBoard, metrics.jsonl and checkpoints on.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.peers.process import ROOT
from benchmarks.problems import PROBLEMS
from benchmarks.saving import save
from looper.commands.bench.statistics import median
from looper.step.autotune import SHARE

RESULTS = Path(__file__).parent / "results" / "autotune_cost.json"
RUNS = "mlp:1000,mlp:10000,mlp:100000,deep_mlp:1000,gpt8:1000"


def fit(model: str, steps: int, mode: str) -> None:
    """Trains, and prints JSON: the "seconds" of the fit, its "mode", and the "table" of modes that were compared."""
    import looper
    from benchmarks.peers import keras_models
    from benchmarks.peers.line import Terminal
    from benchmarks.peers.looper import looper_trainer

    problem = PROBLEMS[model]
    with tempfile.TemporaryDirectory() as workdir:
        trainer = looper_trainer(problem, 0.1, execution=mode, workdir=workdir)
        data = keras_models.arrays(problem)
        began = time.perf_counter()
        trainer.fit(
            data,
            batch_size=problem.batch,
            steps=steps,
            log_every=looper.Every(steps=100),
            callbacks=[looper.callbacks.ProgressBar(stream=Terminal())],
        )
        seconds = time.perf_counter() - began
        file = Path(workdir) / "execution.json"
        choice = json.loads(file.read_text()) if file.exists() else {"mode": mode, "table": {}}
    print(json.dumps({"seconds": seconds, "mode": choice["mode"], "table": choice["table"]}))


def timed(model: str, steps: int, mode: str) -> dict[str, Any]:
    """`fit` in a new process."""
    code = f"from benchmarks.autotune_cost import fit; fit({model!r}, {steps}, {mode!r})"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    return json.loads(run.stdout.splitlines()[-1])


def allowed(table: dict[str, Any], mode: str) -> float:
    """Seconds that trying XLA may take: to compile what was not chosen, and for two steps of each mode.

    Example:
        >>> tried = {"compile_seconds": 2.0, "first_steps_seconds": 0.25}
        >>> allowed({"graph": {"seconds_per_step": 0.1}, "xla_step": tried, "xla_loop": tried}, "xla_loop")
        2.5
    """
    compiling = sum(row.get("compile_seconds", 0.0) for name, row in table.items() if name != mode)
    return compiling + sum(row.get("first_steps_seconds", 0.0) for row in table.values())


def compare(model: str, steps: int, pairs: int) -> dict[str, Any]:
    """Runs that choose, and after each one that is told what it chose."""
    modes: list[str] = []
    rows: dict[str, list[float]] = {"auto": [], "told": [], "allowed": [], "ratio": []}
    for _ in range(pairs):
        chosen = timed(model, steps, "auto")
        told = timed(model, steps, chosen["mode"])
        more = allowed(chosen["table"], chosen["mode"])
        found = chosen["seconds"], told["seconds"], more, (chosen["seconds"] - more) / told["seconds"]
        for name, value in zip(rows, found, strict=True):
            rows[name].append(value)
        modes.append(chosen["mode"])
    result = {name: median(values) for name, values in rows.items()}
    return {"model": model, "steps": steps, "chosen": modes, **result, "bound": 1 + SHARE}


def parsed(runs: str) -> Sequence[tuple[str, int]]:
    """The models, and the steps of each.

    Raises:
        argparse.ArgumentTypeError: if it is not that.

    Example:
        >>> parsed("mlp:1000,gpt8:200")
        [('mlp', 1000), ('gpt8', 200)]
    """
    pairs = [run.partition(":") for run in runs.split(",")]
    if not all(model in PROBLEMS and steps.isdecimal() and int(steps) for model, _, steps in pairs):
        expected = f"some of {', '.join(PROBLEMS)}, each with steps"
        raise argparse.ArgumentTypeError(f"{runs!r}: expected {expected}, such as mlp:1000,gpt8:200")
    return [(model, int(steps)) for model, _, steps in pairs]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=parsed, default=RUNS, help="models with the steps of a run")
    parser.add_argument("--pairs", type=int, default=5, help="processes of each side")
    parser.add_argument("--out", type=Path, default=RESULTS, help="the JSON file to write")
    arguments = parser.parse_args()
    result = []
    timed("mlp", 1, "graph")  # from here on the files are in memory
    for model, steps in arguments.runs:
        result.append(compare(model, steps, arguments.pairs))
        print(json.dumps(result[-1]), file=sys.stderr)
    whole = {"seconds of a fit": result, "pairs": arguments.pairs}
    print(save(arguments.out, whole, "benchmarks.autotune_cost"))


if __name__ == "__main__":
    main()
