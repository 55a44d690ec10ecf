"""Do equal runs choose the same mode, whatever else the machine does?

    python -m benchmarks.equal_runs
    python -m benchmarks.equal_runs --models mlp --runs 4

Runs that would take 10 and 60 s in the graph, of three models of `benchmarks/hot_step.py`, each in a process that knows
nothing of the others. During every other run another process keeps one core busy. Each ends as soon as it has chosen:
how its mode compares with others is what `benchmarks.same_mode` and `benchmarks.autotune_cost` are for.
"""

import argparse
import collections
import os
import signal
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.saving import save

RESULTS = Path(__file__).parent / "results"
MODELS = ("mlp", "cnn32", "gpt8")
SECONDS = (10, 60)


def chosen(model: str, steps: int, out: Path) -> None:
    """Writes the mode that a run of so many steps chooses, and what choosing took."""
    from benchmarks.peers import keras_models
    from benchmarks.peers.looper import looper_trainer
    from benchmarks.problems import PROBLEMS
    from looper import callbacks

    class End(callbacks.Callback):
        def on_execution(self, step: int) -> None:
            self.run.stop("the mode is chosen")

    problem = PROBLEMS[model]
    began = time.perf_counter()
    trainer = looper_trainer(problem)
    end = End()
    trainer.fit(keras_models.arrays(problem), batch_size=problem.batch, steps=steps, progress=False, callbacks=[end])
    mode = "graph" if end.run.choice is None else end.run.choice.mode
    out.write_text(f"{mode} {time.perf_counter() - began}")


def in_a_process(model: str, steps: int, out: Path) -> tuple[str, float]:
    """The same in a process that is forked off this one."""
    child = os.fork()
    if not child:
        code = 1
        try:
            chosen(model, steps, out)
            code = 0
        finally:
            os._exit(code)
    if os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]):
        raise SystemExit(f"a run of {model} failed")
    mode, seconds = out.read_text().split()
    return mode, float(seconds)


def busy() -> int:
    """A process that keeps a core busy until it is killed."""
    child = os.fork()
    while not child:
        pass
    return child


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="*", default=list(MODELS))
    parser.add_argument("--runs", type=int, default=20, help="of each")
    parser.add_argument("--out", type=Path, default=RESULTS / "equal_runs.json", help="the JSON file to write")
    given = parser.parse_args()
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    import looper.trainer
    from benchmarks.peers import keras_models, looper  # noqa: F401
    from looper import callbacks  # noqa: F401

    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "chosen"
        for model in given.models:
            per_step = {"mlp": 1e-4, "cnn32": 1.2e-3, "gpt8": 6e-3}[model]
            for length in SECONDS:
                modes: collections.Counter[str] = collections.Counter()
                took = []
                for run in range(given.runs):
                    other = busy() if run % 2 else None
                    try:
                        mode, seconds = in_a_process(model, int(length / per_step), out)
                    finally:
                        if other is not None:
                            os.kill(other, signal.SIGKILL)
                            os.waitpid(other, 0)
                    modes[mode] += 1
                    took.append(seconds)
                found[f"{model}, {length} s"] = {"modes": dict(modes), "same": max(modes.values()), "of": given.runs}
    print(save(given.out, {"runs": found}, "benchmarks.equal_runs"))


if __name__ == "__main__":
    main()
