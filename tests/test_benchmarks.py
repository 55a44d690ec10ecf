"""The peers of the benchmarks: the lines that they speak, their losses, and what is said of those that are missing."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

from benchmarks import environments, hot_step, regret, scaling, scaling_model
from benchmarks.peers import PEERS
from benchmarks.peers.group import Group, clusters
from benchmarks.peers.process import PeerError, Process, Size, first_losses, why_not

SIZE = Size("mlp", steps_per_burst=2, steps_per_call=2, dropout=0.0)
ON_TWO = Size("mlp", steps_per_burst=4, steps_per_call=2, dropout=0.0, execution="graph", replicas=2)


def test_a_peer_trains_a_burst_on_command_with_what_it_is_told(monkeypatch):
    """Its losses are looper's; other batches have others."""
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
    of_48 = {}

    def noted(name, size):
        of_48[name] = first_losses(name, size)
        return of_48[name]

    monkeypatch.setattr(hot_step, "first_losses", noted)
    differences, without = hot_step.check(["hand_loop"], dataclasses.replace(SIZE, batch=48))
    assert without == {}
    assert differences["hand_loop"] < 1e-5
    assert abs(of_48["hand_loop"][0] - process.first["loss"]) > 0.01, "other batches"


def test_other_arithmetic_is_not_timed(monkeypatch):
    losses = {"looper": [2.3, 2.2], "hand_loop": [2.3, 2.21]}
    monkeypatch.setattr(hot_step, "first_losses", lambda name, size: losses[name])
    with pytest.raises(SystemExit, match="hand_loop trains something else"):
        hot_step.check(["hand_loop"], SIZE)


def test_a_missing_peer_is_reported_as_missing(monkeypatch, tmp_path):
    monkeypatch.setattr(environments, "FOLDER", tmp_path)
    missing = "missing: python -m benchmarks.environments torch"
    assert (why_not("torch"), why_not("hand_loop")) == (missing, None)
    assert hot_step.measure(["torch"], SIZE, bursts=2) == ({}, {"torch": missing})
    fake = {"looper": [1.0], "hand_loop": [1.0]}
    monkeypatch.setattr(hot_step, "first_losses", lambda name, size: fake.get(name) or first_losses(name, size))
    assert hot_step.check(["hand_loop", "torch"], SIZE) == ({"hand_loop": 0.0}, {"torch": missing})


def test_an_environment_counts_only_when_all_of_it_is_installed(monkeypatch, tmp_path):
    monkeypatch.setattr(environments, "FOLDER", tmp_path)
    assert environments.python_of("torch") is None
    (tmp_path / "torch").mkdir()
    (tmp_path / "torch" / "installed.txt").write_text("torch==1.0.0\n")
    assert environments.python_of("torch") is None
    assert {peer.environment for peer in PEERS.values()} - {None} == set(environments.ENVIRONMENTS)


def test_the_result_says_who_could_not_be_measured(monkeypatch, tmp_path):
    monkeypatch.setattr(hot_step, "check", lambda names, size: ({"hand_loop": 0.0}, {"torch": "missing"}))
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


def test_a_group_ends_when_one_worker_fails(monkeypatch):
    both = clusters(2)
    both[1]["TF_CONFIG"] = "nothing"
    monkeypatch.setattr("benchmarks.peers.group.clusters", lambda workers: both)
    with pytest.raises(PeerError, match="TF_CONFIG: it is not JSON"), Group("looper", ON_TWO, 2, limit=120):
        pass


def test_what_trains_something_else_on_replicas_is_not_compared():
    with pytest.raises(SystemExit, match="hand_split trains something else"):
        scaling.check({"looper": 2.3, "hand_split": 2.31})


def test_the_result_of_scaling(monkeypatch, tmp_path):
    def measured(names, size, workers, seconds):
        times = {"looper": 1.0, "looper_auto": 0.5, "hand_split": 0.8, "hand_unreduced": 0.6, "hand_distributed": 2.0}
        assert set(names) <= {*times, "keras_fit"}
        found = {name: np.array([times[name]] * 3) * size.replicas for name in names if name in times}
        return found, dict.fromkeys(found, 2.3), {"keras_fit": "failed: ValueError"} if workers > 1 else {}

    monkeypatch.setattr(scaling, "measure", measured)
    out = tmp_path / "scaling.json"
    command = ["scaling", "--replicas", "1,2", "--workers", "1,2", "--models", "mlp", "--out", str(out)]
    monkeypatch.setattr("sys.argv", command)
    scaling.main()
    result = json.loads(out.read_text())
    assert list(result["measured"]) == ["mlp, 1 replica", "mlp, 2 replicas", "mlp, 2 workers"]
    alone, two, workers = result["measured"].values()
    assert "share of collectives" not in alone and alone["bytes reduced per step"] == {"gradients": 0, "looper": 0}
    assert two["microseconds per step"]["looper"]["median"] == 2 * 1e6 / 200
    assert two["share of collectives"]["median"] == pytest.approx(0.25)
    parameters = 32 * 32 + 32 + 2 * 32 + 32 * 10 + 10
    assert two["bytes reduced per step"] == {"gradients": 4 * parameters, "looper": 4 * parameters + 8}
    split, distributed = "hand-written, replicas slice the batch", "hand-written, experimental_distribute_dataset"
    ours = two["ratios looper / other, turn by turn"]
    assert {name: (one["median"], one["within bound"]) for name, one in ours.items()} == {
        split: (1.25, False),
        distributed: (0.5, True),
    }
    chosen = two["ratios looper in the mode that it chooses / other, turn by turn"]
    assert {name: one["median"] for name, one in chosen.items()} == {split: 0.625, distributed: 0.25}
    assert workers["does not work"] == {"Keras fit: bar, TensorBoard": "failed: ValueError"}
    assert max(map(abs, result["model"]["relative errors of the fit"].values())) < 1e-9  # exact for such times


def test_the_model_of_scaling_finds_what_it_was_made_with():
    given = {
        "a: seconds per replica": 0.25,
        "a: seconds per example": 0.125,
        "mirrored: seconds per reduction": 2.0,
        "mirrored: seconds per byte": 0.5,
    }
    points = [
        scaling_model.Measured("a", "mirrored", replicas, batch, size, 0.0)
        for replicas, batch, size in ((1, 8, 0), (2, 8, 16), (2, 24, 0), (4, 8, 16), (4, 8, 64))
    ]
    points = [dataclasses.replace(p, seconds=scaling_model.predicted(p, given)) for p in points]
    assert points[1].seconds == 0.25 * 2 + 0.125 * 8 + 2.0 + 0.5 * 16
    assert scaling_model.fit(points) == pytest.approx(given)
    faster = [dataclasses.replace(p, seconds=p.seconds - 3 * (p.size > 0)) for p in points]
    assert scaling_model.fit(faster)["mirrored: seconds per reduction"] == 0.0


def test_what_gpus_should_give_by_the_assumptions():
    found = scaling_model.predictions()["ResNet-50, 256 images per GPU"]
    eight = found["8 GPUs, 0% of the transfer overlapped"]
    assert eight["seconds per step"] == pytest.approx(0.080 + 20e-6 + 14 * 2e-6 + 102e6 * 2 * 7 / 8 / 450e9)
    most = found["512 GPUs, 0% of the transfer overlapped"]
    assert most["efficiency"] == pytest.approx(0.080 / (0.080 + 20e-6 + 1022 * 5e-6 + 102e6 * 2 * 511 / 512 / 50e9))
    assert (eight["bound by"], most["bound by"]) == ("transfer", "hops")
    hidden = found["8 GPUs, 90% of the transfer overlapped"]["seconds per step"]
    assert eight["seconds per step"] - hidden == pytest.approx(0.9 * 102e6 * 2 * 7 / 8 / 450e9)


def test_a_simulated_choice_takes_what_was_measured():
    """100 operations are expected to compile in half a second, and to be 1.3 times as fast then."""
    graph = {"compile": 0.0, "first": 0.11, "call": 0.002, "step": 1e-3}
    compiled = {"compile": 1.0, "first": 0.02, "call": 0.01, "step": 5e-4}
    found = {
        "operations": {"MatMul": 100},
        "bytes": 100,
        "unfit": {"xla_loop": "it is left out"},
        "modes": {"graph": graph, "xla_step": compiled},
    }
    long, short = (regret.cell(found, found, seconds) for seconds in (60, 1))
    assert (long["mode"], long["best"], short["mode"], short["best"]) == ("xla_step", "xla_step", "graph", "graph")
    measuring = long["seconds"] - (1.01 + 30.0)
    assert 0.1 < measuring < 0.1 + 0.05 * 60 / 1.3 + 0.2, "the graph's first call, and 5% of what is expected"
    assert long["regret"] == pytest.approx(long["seconds"] / (1.01 + 30.0))
    assert 1.0 < short["regret"] < 1.1
    warm = regret.cell(found, {**found}, 60)
    assert (warm["mode"], warm["seconds"], warm["regret"]) == ("xla_step", pytest.approx(31.01), pytest.approx(1.0))
    assert [regret.bound(q) for q in (0.05, 0.5, 1.0)] == [1.15, 1.5, 1.15]
