"""`looper run recipes/digits.py --workers 2` ends with the evaluation of `--workers 1`, in float32, after 900 steps."""

import json
import subprocess
import sys

from tests.support.processes import ROOT

SECONDS = 600
"""Until a run has ended, on a busy machine."""

LOSS = 1e-4
"""Sums over two halves of a batch are rounded otherwise than those over all of it; 4e-9 was seen."""


def trained(workers, workdir):
    """The last row that was logged, and standard error."""
    options = ["--dropout", "0", "--synchronized-bn", "--progress", "False"]
    command = ["-m", "looper.cli", "run", "recipes/digits.py", "--workers", workers, "--workdir", workdir, *options]
    done = subprocess.run(
        [sys.executable, *map(str, command)], capture_output=True, text=True, cwd=ROOT, timeout=SECONDS, check=False
    )
    assert done.returncode == 0, done.stderr
    return json.loads((workdir / "metrics.jsonl").read_text().splitlines()[-1]), done.stderr


def test_two_workers_end_as_one_does(tmp_path):
    [one, _], [two, said] = (trained(workers, tmp_path / str(workers)) for workers in (1, 2))
    assert one["step"] == two["step"] == 900
    assert one["eval/examples"] == two["eval/examples"] == 360
    assert one["eval/accuracy"] > 0.98
    assert abs(one["eval/accuracy"] - two["eval/accuracy"]) < LOSS
    assert abs(one["eval/loss"] - two["eval/loss"]) < LOSS
    assert [line for line in said.splitlines() if "steps done" in line] == [
        f"[0] looper: 900 steps done. Watch them: looper board {tmp_path / '2'}"
    ]
