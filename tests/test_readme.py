"""The README's figures come from committed results, and its recipe runs."""

import json
import re
from pathlib import Path

import numpy as np

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def test_figures_are_those_of_the_committed_results():
    results = json.loads((ROOT / "benchmarks" / "results" / "hot_step.json").read_text())

    def row(name, values, digits):
        low, high = values["interval"]
        return f"| {name} | {values['median']:.{digits}f} | {low:.{digits}f} to {high:.{digits}f} |"

    times = results["microseconds per step"]
    ratio = results["ratio looper / hand-written, pair by pair"]
    assert row("looper", times["looper"], 0) in README
    assert row("hand-written in-graph loop", times["hand-written in-graph loop"], 0) in README
    assert row("ratio, pair by pair", ratio, 2) in README
    assert ratio["median"] <= 1.05


def test_the_recipe_runs(tmp_path, monkeypatch):
    """As printed."""
    monkeypatch.chdir(tmp_path)
    [code] = [block for block in re.findall(r"```python\n(.*?)```", README, re.S) if "class Digits" in block]
    names = {}
    exec(code, names)
    assert names["history"]["eval/accuracy"][-1] > 0.85
    outputs = names["trainer"].predict(names["x_test"])
    assert outputs.shape == (297, 10)
    accuracy = names["trainer"].evaluate((names["x_test"], names["y_test"]))["accuracy"]
    np.testing.assert_allclose((outputs.argmax(-1) == names["y_test"]).mean(), accuracy, atol=0.01)  # bfloat16


def test_ci_runs_the_test_command_of_the_readme():
    commands = [line for line in README.splitlines() if line.startswith("python3 -m venv")]
    assert len(commands) == 2
    [pattern] = re.findall(r"grep -x '(.*)' README.md", (ROOT / ".ci" / "run").read_text())
    assert [line for line in commands if re.fullmatch(pattern, line)] == [commands[1]]
