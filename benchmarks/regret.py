"""How much longer does a run take because `execution="auto"` has to find its mode? For models of all kinds and lengths.

    python -m benchmarks.regret
    python -m benchmarks.regret --models mlp lstm --real mlp:10 --out try.json
    python -m benchmarks.regret --again --real

Of each model a process measures all that choosing and training take: an execution's call and a step in each mode, and
what XLA takes to compile it, in a process that knows nothing and in one that follows it. Then the choice itself, the
code that a run has, is run on a clock that these durations move on. A run's regret is its time, choice included, over
that of the mode which ends first, its compilation included; the run's length is its seconds in the graph. Runs of a
few cells are made for real, to compare, and the ratio is given, too, at the pace of the graph in that very run: this
machine is not always equally fast. What comes before the choice (building, tracing) is in neither. How long XLA
compiles on this machine is known in the simulation from the other models, as it is in a run from any run before it.
What is simulated varies as little as its medians: a wrong choice from one unlucky measurement is not in it; how often
that happens `benchmarks/equal_runs.py` shows. `--again` simulates with the durations that the file holds.

Neither here nor in a run are convolutions tried in `"xla_loop"` on a CPU, where they are slow.
"""

import argparse
import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

from benchmarks.peers.process import ROOT
from benchmarks.saving import save

RESULTS = Path(__file__).parent / "results" / "regret.json"
SECONDS = (2, 5, 10, 60, 600)
SEEN = ("mlp", "deep_mlp", "cnn32", "cnn256", "gpt8", "gpt64", "nanogpt", "resnet50")
UNSEEN = ("lstm", "recommender", "autoencoder", "conv1d")
REAL = ("mlp:10", "mlp:60", "gpt8:10", "gpt8:60", "recommender:60", "lstm:60")
BETWEEN = 100
"""Steps from one log to the next."""

CALM = 7
"""How often each duration is measured."""


class _Measured(Exception):
    """Ends a run once all is measured."""


def trainer_and_data(name: str, workdir: str) -> tuple[Any, Any, int]:
    """A model's trainer, with the default `execution="auto"`, its data, and its batch size."""
    import looper.trainer
    from benchmarks import unseen_models
    from benchmarks.peers import keras_models
    from benchmarks.peers.looper import looper_trainer
    from benchmarks.problems import PROBLEMS

    if name in PROBLEMS:
        problem = PROBLEMS[name]
        return looper_trainer(problem, workdir=workdir), keras_models.arrays(problem), problem.batch
    model, x, y, kind = unseen_models.MODELS[name]()
    trainer = looper.Trainer(model=model, optimizer="adam", loss=unseen_models.loss(kind), workdir=workdir)
    return trainer, (x, y), unseen_models.BATCH


def fit(name: str, steps: int) -> None:
    """A run as it comes, but for the terminal."""
    import looper

    with tempfile.TemporaryDirectory() as workdir:
        trainer, data, batch = trainer_and_data(name, workdir)
        trainer.fit(data, batch_size=batch, steps=steps, log_every=looper.Every(steps=BETWEEN), progress=False)


def inside(name: str) -> None:
    """Prints what all modes of a model take."""
    from looper.base.options import XLA_MODES
    from looper.step import autotune

    found: dict[str, Any] = {}

    def measured(modes: Any, *_: Any) -> None:
        operations, unfit = modes.operations(), autotune.unfit_modes(modes)
        looped = autotune.why_not_looped(operations) is None
        found.update(operations=dict(operations), bytes=modes.state_bytes(), unfit=unfit)
        rows: dict[str, dict[str, float]] = {}
        with modes.put_back():
            for mode in ("graph", *reversed(XLA_MODES)):
                if mode in unfit or (mode == "xla_loop" and not looped):
                    continue
                began = time.perf_counter()
                assert modes.why_not(mode) is None
                first = modes.seconds(mode, 1)
                rows[mode] = {"compile": time.perf_counter() - began - first, "first": first}
            for mode in rows:
                rows[mode]["call"] = min(modes.seconds(mode, 1) for _ in range(CALM))
            count = {mode: max(1, min(BETWEEN, int(0.5 / row["call"]))) for mode, row in rows.items()}
            times: dict[str, list[float]] = {mode: [] for mode in rows}
            for _ in range(CALM):
                for mode in rows:
                    times[mode].append(modes.seconds(mode, count[mode]) / count[mode])
            for mode, each in times.items():
                rows[mode]["step"] = statistics.median(each)
        found["modes"] = rows
        raise _Measured

    with mock.patch.object(autotune, "choose", measured), contextlib.suppress(_Measured):
        fit(name, 10**6)
    print(json.dumps(found))


def real(name: str, steps: int) -> None:
    """Prints the mode and the seconds of a run from when it begins to choose."""
    from looper.step import autotune

    choose, at = autotune.choose, {}

    def noted(*given: Any) -> Any:
        at["began"] = time.perf_counter()
        at["choice"] = choose(*given)
        return at["choice"]

    with mock.patch.object(autotune, "choose", noted):
        fit(name, steps)
    seconds, choice = time.perf_counter() - at["began"], at["choice"]
    print(
        json.dumps({"seconds": seconds, "mode": choice.mode, "graph step": choice.table["graph"]["seconds_per_step"]})
    )


def in_a_process(*arguments: str, cache: str) -> dict[str, Any]:
    """What a process of this command prints."""
    environment = {"TF_CPP_MIN_LOG_LEVEL": "3", **os.environ, "LOOPER_CACHE": cache}
    command = [sys.executable, "-m", "benchmarks.regret", *arguments]
    run = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment)
    if run.returncode:
        raise SystemExit(f"{' '.join(arguments)} failed: {run.stderr[-2000:]}")
    return json.loads(run.stdout.splitlines()[-1])


class Clock:
    """Moved on by what would take time."""

    def __init__(self) -> None:
        self.now = 0.0

    def perf_counter(self) -> float:
        return self.now


class Durations:
    """Stands for `looper.step.trial.Modes`: each call takes what was measured, on the clock."""

    between = BETWEEN

    def __init__(self, found: dict[str, Any], clock: Clock) -> None:
        self._found, self._clock = found, clock
        self.began: set[str] = set()

    def unfit(self, mode: str) -> str | None:
        return self._found["unfit"].get(mode)

    def operations(self) -> Counter[str]:
        return Counter(self._found["operations"])

    def state_bytes(self) -> int:
        return self._found["bytes"]

    def facts(self) -> str:
        return "this model"

    def data_seconds(self) -> None:
        """Arrays."""

    def put_back(self) -> Any:
        return contextlib.nullcontext()

    def why_not(self, mode: str) -> None:
        self._clock.now += self._found["modes"][mode]["compile"]

    def seconds(self, mode: str, steps: int) -> float:
        row = self._found["modes"][mode]
        took = (row["call"] if mode in self.began else row["first"]) + (steps - 1) * row["step"]
        self.began.add(mode)
        self._clock.now += took
        return took


def chosen(found: dict[str, Any], seconds: float) -> tuple[str, float]:
    """The mode that a run of so many seconds in the graph chooses, and the seconds that the choice takes."""
    from looper.step import autotune

    clock = Clock()
    modes = Durations(found, clock)
    with mock.patch.object(autotune, "time", clock):
        choice = autotune.choose(modes, steps_of(found, seconds), None)
    if choice.mode not in modes.began:  # loaded when its first step runs
        clock.now += before(found, choice.mode)
    return choice.mode, clock.now


def before(found: dict[str, Any], mode: str) -> float:
    """Seconds until a mode is at its pace: to compile it, and what its first call takes besides."""
    row = found["modes"][mode]
    return row["compile"] + row["first"] - row["call"]


def steps_of(found: dict[str, Any], seconds: float) -> int:
    return max(1, round(seconds / found["modes"]["graph"]["step"]))


@contextlib.contextmanager
def cache(stretch: float, found: dict[str, Any] | None = None) -> Iterator[None]:
    """Inside it there is a cache folder of an earlier process.

    Args:
        stretch: how much longer than looper expects XLA compiles on this machine.
        found: what was measured of a recipe that has run before, for long; None without.
    """
    with tempfile.TemporaryDirectory() as folder, mock.patch.dict(os.environ, LOOPER_CACHE=str(Path(folder) / "own")):
        from looper.step.known import Compiling

        Compiling("CPU").note(stretch)
        if found is not None:
            chosen(found, 10 * max(SECONDS))
        yield


def expected(found: dict[str, Any]) -> float:
    """Seconds that XLA is expected to take to compile a mode, by how many operations there are."""
    from looper.step import autotune

    return autotune.expected_seconds(Counter(found["operations"]))


def stretch_of(measured: dict[str, dict[str, Any]], but: str) -> float:
    """How much longer than looper expects XLA compiles on this machine, by all models but one."""
    ratios = [
        row["compile"] / expected(found["cold"])
        for name, found in measured.items()
        for mode, row in found["cold"]["modes"].items()
        if mode != "graph" and name != but
    ]
    return statistics.median(ratios) if ratios else 1.0


def cell(cold: dict[str, Any], now: dict[str, Any], seconds: float, stretch: float = 1.0) -> dict[str, Any]:
    """The regret of a run.

    Args:
        cold: what was measured in a process that knew nothing.
        now: what things take in the process of this run; the same, or with programs that were kept.
        seconds: its length in the graph.
        stretch: as in `cache`.
    """
    steps = steps_of(cold, seconds)
    with cache(stretch, None if now is cold else cold):
        mode, choosing = chosen(now, seconds)

    def takes(mode: str) -> float:
        return steps * cold["modes"][mode]["step"]

    best = min(cold["modes"], key=lambda mode: before(now, mode) + takes(mode))
    least = before(now, best) + takes(best)
    return {
        "mode": mode,
        "best": best,
        "regret": (choosing + takes(mode)) / least,
        "q": stretch * expected(cold) / seconds,
        "seconds": choosing + takes(mode),
    }


def compared(name: str, found: dict[str, Any], seconds: int) -> dict[str, Any]:
    """A run that is made, beside its simulation."""
    with cache(1.0):  # as in the run
        mode, choosing = chosen(found, seconds)
    steps, graph = steps_of(found, seconds), found["modes"]["graph"]["step"]
    told = choosing + steps * found["modes"][mode]["step"]
    took = in_a_process("--run", f"{name}:{steps}", cache="off")
    ratio = took["seconds"] / told
    return {**took, "simulated": told, "ratio": ratio, "ratio at the run's pace": ratio * graph / took["graph step"]}


def bound(q: float) -> float:
    """What the regret of a run that knows nothing of its recipe may be."""
    return 1.15 if q <= 0.10 or q >= 1 else 1.5


def table(measured: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """All cells, and which of them are above what is asked."""
    cells: dict[str, Any] = {}
    for name, found in measured.items():
        # a step takes in the second process what it took in the first: the same program, measured at another time
        warm = {**found["cold"], "modes": {}}
        for mode, row in found["cold"]["modes"].items():
            warm["modes"][mode] = {**row, **{key: found["warm"]["modes"][mode][key] for key in ("compile", "first")}}
            warm["modes"][mode]["first"] = max(warm["modes"][mode]["first"], row["call"])
        stretch = stretch_of(measured, but=name)
        for seconds in SECONDS:
            one = cell(found["cold"], found["cold"], seconds, stretch)
            one["within"] = one["regret"] <= bound(one["q"])
            cells[f"{name}, {seconds} s, cold"] = one
            one = cell(found["cold"], warm, seconds, stretch)
            one["within"] = one["regret"] <= 1.15
            cells[f"{name}, {seconds} s, warm"] = one
    return cells


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="*", choices=[*SEEN, *UNSEEN], default=[*SEEN, *UNSEEN])
    parser.add_argument("--real", nargs="*", default=list(REAL), help="cells to run, such as mlp:60")
    parser.add_argument("--out", type=Path, default=RESULTS, help="the JSON file to write")
    parser.add_argument("--inside", help=argparse.SUPPRESS)
    parser.add_argument("--run", help=argparse.SUPPRESS)
    parser.add_argument(
        "--again", action="store_true", help="use the durations, and keep the runs, that the file holds"
    )
    given = parser.parse_args()
    if given.inside:
        inside(given.inside)
        return
    if given.run:
        name, _, steps = given.run.partition(":")
        real(name, int(steps))
        return
    runs: dict[str, Any] = {}
    measured: dict[str, Any] = {}
    if given.again and not given.out.exists():
        parser.error(f"--again: there is no {given.out}; run it without --again first")
    if given.again:
        before_now = json.loads(given.out.read_text())
        measured, runs = before_now["measured"], before_now["real"]
        for asked in given.real:
            name, _, seconds = asked.partition(":")
            runs[f"{name}, {seconds} s, cold"] = compared(name, measured[name]["cold"], int(seconds))
    for name in given.models:
        if name in measured:
            continue
        with tempfile.TemporaryDirectory() as own:
            measured[name] = {kind: in_a_process("--inside", name, cache=own) for kind in ("cold", "warm")}
        for asked in given.real:  # as soon as possible after it was measured: this machine changes its pace
            of, _, seconds = asked.partition(":")
            if of == name:
                runs[f"{name}, {seconds} s, cold"] = compared(name, measured[name]["cold"], int(seconds))
        print(name, flush=True)
    cells = table(measured)
    above = [name for name, one in cells.items() if not one["within"]]
    result = {"cells": cells, "above": above, "real": runs, "measured": measured}
    save(given.out, result, "benchmarks.regret")
    for name, one in cells.items():
        print(f"{name}: {one['mode']} (best {one['best']}), {one['regret']:.2f}{'' if one['within'] else ' ABOVE'}")
    print(json.dumps(runs, indent=1))


if __name__ == "__main__":
    main()
