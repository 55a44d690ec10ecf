"""The peers of the benchmarks: the lines that they speak, their losses, and what is said of those that are missing."""

import json
from pathlib import Path

import numpy as np
import pytest

from benchmarks import environments, hot_step
from benchmarks.peers import PEERS
from benchmarks.peers.process import PeerError, Process, Size, first_losses, why_not

SIZE = Size("mlp", steps_per_burst=4, steps_per_call=2, dropout=0.0)


def test_a_peer_trains_a_burst_on_command():
    with Process("hand_loop", SIZE) as process:
        assert set(process.first) == {"seconds", "loss", "versions", "device"}
        assert set(process.first["versions"]) == {"tensorflow", "keras"}
        answer = process.burst()
        assert set(answer) == {"seconds", "loss"}
        assert 0 < answer["seconds"] < process.first["seconds"]  # which compiled
        assert answer["loss"] != process.first["loss"]
        assert process.close() > 100
        with pytest.raises(PeerError, match="failed: ended with code 0"):
            process.burst()


def test_looper_and_the_loop_by_hand_train_the_same():
    differences, without = hot_step.check(["hand_loop"], "mlp", "auto")
    assert without == {}
    assert differences["hand_loop"] < 1e-5


def test_other_arithmetic_is_not_timed(monkeypatch):
    losses = {"looper": [2.3, 2.2], "hand_loop": [2.3, 2.21]}
    monkeypatch.setattr(hot_step, "first_losses", lambda name, size: losses[name])
    with pytest.raises(SystemExit, match="hand_loop trains something else"):
        hot_step.check(["hand_loop"], "mlp", "auto")


def test_a_missing_peer_is_reported_as_missing(monkeypatch, tmp_path):
    monkeypatch.setattr(environments, "FOLDER", tmp_path)
    missing = "missing: python -m benchmarks.environments torch"
    assert why_not("torch", "mlp") == missing
    assert why_not("torch", "resnet50") == "not written for resnet50"
    assert why_not("hand_loop", "resnet50") is None
    assert hot_step.measure(["torch"], SIZE, bursts=2) == ({}, {"torch": missing})
    fake = {"looper": [1.0], "hand_loop": [1.0]}
    monkeypatch.setattr(hot_step, "first_losses", lambda name, size: fake.get(name) or first_losses(name, size))
    assert hot_step.check(["hand_loop", "torch"], "mlp", "auto") == ({"hand_loop": 0.0}, {"torch": missing})


def test_an_environment_counts_only_when_all_of_it_is_installed(monkeypatch, tmp_path):
    monkeypatch.setattr(environments, "FOLDER", tmp_path)
    assert environments.python_of("torch") is None
    (tmp_path / "torch").mkdir()
    (tmp_path / "torch" / "installed.txt").write_text("torch==1.0.0\n")
    assert environments.python_of("torch") is None
    assert {peer.environment for peer in PEERS.values()} - {None} == set(environments.ENVIRONMENTS)


def test_the_result_says_who_could_not_be_measured(monkeypatch, tmp_path):
    monkeypatch.setattr(hot_step, "check", lambda names, model, execution: ({"hand_loop": 0.0}, {"torch": "missing"}))
    answer = {"seconds": 1.0, "versions": {}, "device": "CPU"}
    found = {
        "looper": {"seconds": np.array([1.0, 3.0]), "first": answer, "peak_mib": 2.0},
        "hand_loop": {"seconds": np.array([2.0, 3.0]), "first": answer, "peak_mib": 1.0},
    }
    monkeypatch.setattr(hot_step, "measure", lambda names, size, bursts: (found, {}))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["hot_step", "--peers", "hand_loop,torch", "--out", "result.json"])
    hot_step.main()
    result = json.loads(Path("result.json").read_text())
    assert result["not measured"] == {"PyTorch by hand": "missing"}
    assert result["microseconds per step"]["looper"]["median"] == 2000
    assert result["ratio looper / hand-written, pair by pair"]["median"] == 0.75
    assert result["command"] == "python -m benchmarks.hot_step --peers hand_loop,torch --out result.json"
