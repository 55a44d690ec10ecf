"""Kills workers of a run at random times: does every run end as the undisturbed one, and what does a kill cost?

    python -m benchmarks.worker_kills [--kills 10] [--steps 1000] [--seed 0]

`looper run recipes/digits.py --workers 2 --max-restarts 1`, dropout and unsynchronized batch normalization on, in a
workdir of its own for each run. One run is left alone. In each of the others one worker, the chief included, is killed
with SIGKILL at a random step. Every variable of the last checkpoint, of both workers, and the last evaluation are then
compared bit for bit with those of the undisturbed run.
"""

import argparse
import json
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from benchmarks.saving import save

ROOT = Path(__file__).parents[1]
SAVED_EVERY = 50
"""Steps between two checkpoints."""


def run(workdir: Path, steps: int, *kills: tuple[int, int]) -> dict[str, Any]:
    """Trains with two workers.

    Args:
        workdir: of the run.
        steps: to train.
        *kills: of workers, in the order of time: a rank, and the step after which that worker is killed.

    Returns:
        `code`, `seconds`, `restarts`, and the steps at which workers were `killed_after`.
    """
    began = time.monotonic()
    launcher = subprocess.Popen(
        [
            *(sys.executable, "-m", "looper.cli", "run", "recipes/digits.py", "--workers", "2"),
            *("--max-restarts", str(max(len(kills), 1)), "--workdir", str(workdir), "--steps", str(steps)),
            *("--save-every", f"{SAVED_EVERY} steps", "--log-every", "10 steps"),
        ],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    killed_after: list[int] = []
    restarts = 0
    for line in launcher.stdout:  # the chief's bar, in lines where there is no terminal, and what the launcher says
        restarts += "restarting all 2 workers" in line
        found = re.search(r"step (\d+)/", line)
        if found and len(killed_after) == restarts < len(kills) and int(found[1]) >= kills[restarts][1]:
            os.kill(_pid_of(launcher.pid, kills[restarts][0]), signal.SIGKILL)
            killed_after.append(int(found[1]))
    return {
        "code": launcher.wait(),
        "seconds": time.monotonic() - began,
        "restarts": restarts,
        "killed_after": killed_after,
    }


def _pid_of(launcher: int, rank: int) -> int:
    """The process of a worker: the launcher's child whose environment has the rank."""
    for child in Path(f"/proc/{launcher}/task/{launcher}/children").read_text().split():
        environment = Path(f"/proc/{child}/environ").read_bytes().split(b"\0")
        if f"LOOPER_LOCAL_RANK={rank}".encode() in environment:
            return int(child)
    raise ProcessLookupError(f"the launcher has no worker {rank}")


def end_of(workdir: Path) -> tuple[dict[str, np.ndarray], dict[str, float]]:
    """Every variable of both workers in the last checkpoint, and the last evaluation."""
    last = sorted((workdir / "checkpoints").glob("step_*"))[-1]
    variables = {}
    for part in (last, last / "rank_1"):
        reader = tf.train.load_checkpoint(str(part / "state"))
        for name in reader.get_variable_to_shape_map():
            if name.startswith("variables/"):
                variables[f"{part.name}/{name}"] = reader.get_tensor(name)
    rows = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return variables, [row for row in rows if "eval/loss" in row][-1]


def compare(workdir: Path, undisturbed: Path) -> dict[str, Any]:
    """Whether two runs ended alike: `same_bits`, `same_evaluation`, and how many variables were compared."""
    (ours, evaluation), (theirs, expected) = end_of(workdir), end_of(undisturbed)
    return {
        "variables": len(theirs),
        "same_bits": ours.keys() == theirs.keys() and all(np.array_equal(ours[n], theirs[n]) for n in theirs),
        "same_evaluation": evaluation == expected,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results" / "worker_kills.json")
    options = parser.parse_args()
    chance = random.Random(options.seed)
    with tempfile.TemporaryDirectory() as folder:
        undisturbed = Path(folder) / "undisturbed"
        baseline = run(undisturbed, options.steps)
        rows = []
        for number in range(options.kills):
            workdir, rank = Path(folder) / str(number), number % 2
            kill = (rank, chance.randrange(SAVED_EVERY, options.steps - SAVED_EVERY))
            row = {"rank": rank, **run(workdir, options.steps, kill), **compare(workdir, undisturbed)}
            rows.append(row)
            print(json.dumps(row), flush=True)
    print(
        save(
            options.out,
            {"undisturbed": baseline, "kills": rows},
            f"benchmarks.worker_kills --kills {options.kills} --steps {options.steps}",
        )
    )


if __name__ == "__main__":
    main()
