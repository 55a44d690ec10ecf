"""`looper run recipes/digits.py --workers 2` ends with the evaluation of `--workers 1`, in float32.

Here after two epochs; `python -m benchmarks.digits_on_workers` trains all of the 900 steps.
"""

import pytest

from benchmarks.digits_on_workers import LOSS, trained

pytestmark = pytest.mark.xdist_group("workers")


def test_two_workers_end_as_one_does(tmp_path):
    [one, _], [two, said] = (trained(workers, tmp_path / str(workers), "--epochs", "2") for workers in (1, 2))
    assert one["step"] == two["step"] == 90
    assert one["eval/examples"] == two["eval/examples"] == 360
    assert one["eval/accuracy"] > 0.9
    assert abs(one["eval/accuracy"] - two["eval/accuracy"]) < LOSS
    assert abs(one["eval/loss"] - two["eval/loss"]) < LOSS
    assert [line for line in said.splitlines() if "steps done" in line] == [
        f"[0] looper: 90 steps done. Watch them: looper board {tmp_path / '2'}"
    ]
