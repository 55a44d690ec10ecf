"""`looper runs`, what `run.json` tells, and `looper run` with `--smoke` and `--profile`."""

import json
import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

from looper import cli
from looper.base.provenance import provenance

RECIPE = """
import dataclasses, keras, looper, numpy as np
class Line(looper.Trainer):
    defaults = {"epochs": 3, "batch_size": 4, "workdir": "runs/one"}
    @dataclasses.dataclass
    class Config:
        rate: float = 0.1
    def build(self):
        self.model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
        self.optimizer, self.loss = keras.optimizers.SGD(self.config.rate), "mse"
    def train_data(self):
        return np.ones((8, 2), "float32"), np.ones((8, 1), "float32")
    def eval_data(self):
        return self.train_data()
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two finished runs, one of them after another one that was set aside, and one that was killed."""
    folder = tmp_path_factory.mktemp("runs")
    before = Path.cwd()
    os.chdir(folder)
    try:
        Path("line.py").write_text(RECIPE)
        for words in ((), ("--resume", "false", "--epochs", "2"), ("--workdir", "runs/two", "--rate", "0.2")):
            assert cli.main(["run", "line.py", *words]) == 0
        killed = folder / "runs" / "deep" / "three"
        killed.mkdir(parents=True)
        with subprocess.Popen([sys.executable, "-c", ""]) as gone:
            pass
        run = {"status": "running", "step": 7, "host": platform.node(), "pid": gone.pid, "command": "looper run it.py"}
        (killed / "run.json").write_text(json.dumps(run))
        (killed / "metrics.jsonl").write_text('{"step": 5, "epoch": 0, "loss": 0.5, "steps_per_second": 2.0}\n{"step"')
    finally:
        os.chdir(before)
    return folder


def test_a_table_of_the_runs_below_a_directory(folder, capsys):
    assert cli.main(["runs", str(folder / "runs")]) == 0
    head, *rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert head[:3] == ["run", "status", "step"]
    found = {row[0]: row for row in rows}
    assert found.keys() == {"one", "two", "deep/three"}
    assert found["one"][1:3] == ["finished", "4"] and found["two"][1:3] == ["finished", "6"]
    assert found["deep/three"][1:3] == ["killed", "7"]
    assert found["deep/three"][-3:] == ["looper", "run", "it.py"]  # what continues it
    assert "0.5" in found["deep/three"] and "2.0" in found["deep/three"]


def test_the_same_as_json(folder, capsys):
    assert cli.main(["runs", str(folder / "runs"), "--json"]) == 0
    found = {run["name"]: run for run in json.loads(capsys.readouterr().out)}
    losses = [
        row["eval/loss"]
        for row in map(json.loads, (folder / "runs" / "two" / "metrics.jsonl").read_text().splitlines())
        if "eval/loss" in row
    ]
    assert len(losses) == 3
    assert found["two"]["last"]["eval/loss"] == losses[-1]
    assert found["two"]["best"]["eval/loss"] == min(losses)
    assert not any(name.startswith(("epoch/", "gradient_norm")) for name in found["two"]["last"])


def test_two_runs_are_compared(folder, capsys):
    one, two = (str(folder / "runs" / name) for name in ("one", "two"))
    assert cli.main(["runs", one, two]) == 0
    said = capsys.readouterr().out
    assert f"config.rate in {one} is 0.1, in {two} is 0.2" in said
    assert f"step: 4 in {one}, 6 in {two}" in said
    assert "last eval/loss: " in said
    assert cli.main(["runs", one, str(folder)]) == 2
    assert "there is no run in" in capsys.readouterr().err
    assert cli.main(["runs", str(folder / "nowhere")]) == 2
    assert "there are no runs in" in capsys.readouterr().err


def test_a_run_notes_where_it_comes_from(folder):
    run = json.loads((folder / "runs" / "one" / "run.json").read_text())
    assert run["host"] == platform.node() and run["pid"] == os.getpid()
    assert run["packages"].keys() >= {"tensorflow", "keras", "looper-tf", "numpy"}
    assert any("CPU" in name for name in run["devices"])
    assert Path(run["directory"]).is_dir()


def test_the_commit_and_whether_files_differ_from_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert provenance.__wrapped__()["git"] is None
    own = ["-c", "user.name=a", "-c", "user.email=a@b.c"]
    for words in (["init", "-q"], [*own, "commit", "-q", "--allow-empty", "-m", "first"]):
        subprocess.run(["git", *words], check=True)
    (tmp_path / "file").write_text("1")
    subprocess.run(["git", "add", "file"], check=True)
    assert provenance.__wrapped__()["git"]["changed"] is True
    subprocess.run(["git", *own, "commit", "-q", "-m", "second"], check=True)
    found = provenance.__wrapped__()["git"]
    assert len(found["commit"]) == 40 and found["changed"] is False


def test_some_steps_are_traced(folder, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "line.py").write_text(RECIPE)
    assert cli.main(["run", "line.py", "--profile", "2:5", "--overfit", "1"]) == 0
    assert capsys.readouterr().out.startswith("profile: 3 steps of ")
    assert len(list((tmp_path / "runs" / "one" / "plugins" / "profile").glob("*/*.xplane.pb"))) == 1
    for words, said in (
        (["--profile", "5"], "--profile 5: expected two steps, such as 100:110."),
        (["--profile", "2:4", "--smoke"], "--profile 2:4: --smoke keeps nothing: leave it out."),
        (["--profile", "2:4", "--workdir", "none"], "--profile 2:4: it is written to the workdir: give --workdir."),
        (["--overfit", "0"], "overfit=0: expected a positive whole number."),
    ):
        assert cli.main(["run", "line.py", *words]) == 2
        assert said in capsys.readouterr().err


def test_smoke_tries_all_of_it_and_keeps_nothing(folder, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    note = "looper.callbacks.LambdaCallback(on_step=lambda step, logs: print('at', step))"
    (tmp_path / "noted.py").write_text(f"{RECIPE}    def callbacks(self):\n        return [{note}]\n")
    assert cli.main(["run", "noted.py", "--smoke"]) == 0
    out, said = capsys.readouterr()
    assert out == "at 1\nat 2\n"
    assert "looper: smoke: trained, evaluated, saved and continued, in " in said
    assert [path.name for path in tmp_path.iterdir() if path.name != "__pycache__"] == ["noted.py"]
    (tmp_path / "broken.py").write_text(RECIPE.replace("def eval_data(self):", "def eval_data(self):\n        1 / 0"))
    assert cli.main(["run", "broken.py", "--smoke"]) == 1
    assert "ZeroDivisionError" in capsys.readouterr().err
