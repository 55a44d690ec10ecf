"""A killed worker, chief or not, costs a restart and nothing else: the run ends with the same bits."""

import pytest

from benchmarks.worker_kills import compare, run

pytestmark = pytest.mark.xdist_group("workers")


def test_a_killed_worker_changes_nothing(tmp_path):
    """The chief is killed, and the other one when both have been started again."""
    assert run(tmp_path / "undisturbed", 300)["code"] == 0
    found = run(tmp_path / "killed", 300, (0, 60), (1, 130))
    assert found["code"] == 0 and found["restarts"] == 2
    assert found["killed_after"][0] >= 60 and found["killed_after"][1] >= 130
    compared = compare(tmp_path / "killed", tmp_path / "undisturbed")
    assert compared["variables"] > 50 and compared["same_bits"] and compared["same_evaluation"]
