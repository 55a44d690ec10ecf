"""A killed worker, chief or not, costs a restart and nothing else: the run ends with the same bits."""

import pytest

from benchmarks.worker_kills import compare, run

pytestmark = pytest.mark.xdist_group("workers")


def test_a_killed_worker_changes_nothing(tmp_path):
    assert run(tmp_path / "undisturbed", 200)["code"] == 0
    for rank in (0, 1):
        found = run(tmp_path / str(rank), 200, (rank, 80))
        assert found["code"] == 0 and found["restarts"] == 1 and found["killed_after"] >= 80
        compared = compare(tmp_path / str(rank), tmp_path / "undisturbed")
        assert compared["variables"] > 50 and compared["same_bits"] and compared["same_evaluation"]
