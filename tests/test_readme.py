"""The README's figures come from committed results, and its recipe runs."""

import json
import re
from pathlib import Path

import keras
import numpy as np
from sklearn.datasets import load_digits

import looper

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
    in_xla = json.loads((ROOT / "benchmarks" / "results" / "hot_step_xla_loop.json").read_text())
    ratio = in_xla["ratio looper / hand-written, pair by pair"]["median"]
    assert f"its median time per step is {ratio:.2f} of the hand-written loop's" in " ".join(README.split())
    applications = json.loads((ROOT / "benchmarks" / "results" / "applications.json").read_text())
    assert applications["passed"] == "40 of 40"
    assert "Each of the 40 architectures" in README
    memory = json.loads((ROOT / "benchmarks" / "results" / "memory_flat.json").read_text())
    growth = [part["growth of the second half, share"] for part in memory.values() if "calls" in part]
    assert len(growth) == 4
    assert max(growth) < 0.001


def test_the_comparison_of_transfers_is_the_committed_one():
    runs = json.loads((ROOT / "benchmarks" / "results" / "transfer.json").read_text())["runs"]
    assert len(runs) == 5
    for choice, results in runs.items():
        [line] = [line for line in README.splitlines() if line.startswith(f"| `{choice}`: ")]
        for name, shown in zip(("accuracy", "loss"), line.split(" | ")[1:], strict=True):
            values = [result[name] for result in results]
            assert len(values) == 3
            wanted = f"{np.mean(values):.3f} ({min(values):.3f} to {max(values):.3f})"
            assert shown.removesuffix(" |") == wanted


def test_the_audits_figures_are_the_committed_ones():
    cost = json.loads((ROOT / "benchmarks" / "results" / "audit_cost.json").read_text())["models"]
    five, blocks, resnet = (
        f"{row['cost of the check, share of the time to the first step']['median']:.1%}" for row in cost.values()
    )
    assert list(cost) == ["five layers", "transformer of four blocks", "ResNet50"]
    shown = f"it costs {five} (five layers), {blocks} (a transformer of four blocks) and {resnet} (ResNet50;"
    assert shown in " ".join(README.split())
    applications = json.loads((ROOT / "benchmarks" / "results" / "audit_applications.json").read_text())
    assert applications["passed"] == "40 of 40"


class Classifier(keras.Model):
    """The model that the README's audit is of."""

    def __init__(self):
        super().__init__()
        self.d, self.n = keras.layers.Dense(4), keras.layers.BatchNormalization()
        self.drop, self.e = keras.layers.Dropout(0.5), keras.layers.Dense(2)

    def call(self, x, training=None):
        return self.e(self.drop(self.n(self.d(x), training=False)))


def test_the_audit_is_printed_as_shown():
    [shown] = re.findall(r"```text\n(.*?)```", README, re.S)
    trainer = looper.Trainer(model=Classifier, optimizer="sgd", loss="mse")
    report = trainer.audit((np.random.default_rng(0).normal(size=(8, 3)), np.ones((8, 2))))
    assert shown.strip() == str(report)


def test_every_kind_of_finding_is_in_the_table():
    source = "".join(path.read_text() for path in (ROOT / "looper" / "audit").glob("*_checks.py"))
    kinds = set(re.findall(r'"([a-z]+-[a-z0-9-]+)"', source)) - {"error", "warning", "note"}
    assert {kind for kind in kinds if f"`{kind}`" not in README} <= {"from-logits"}


def test_the_recipe_runs(tmp_path, monkeypatch):
    """As printed."""
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", README, re.S)
    [code] = [block for block in blocks if "class Digits" in block]
    names = {}
    exec(code, names)
    assert names["history"]["eval/accuracy"][-1] > 0.85
    outputs = names["trainer"].predict(names["x_test"])
    assert outputs.shape == (297, 10)
    accuracy = names["trainer"].evaluate((names["x_test"], names["y_test"]))["accuracy"]
    np.testing.assert_allclose((outputs.argmax(-1) == names["y_test"]).mean(), accuracy, atol=0.01)  # bfloat16


def test_the_other_examples_run():
    blocks = re.findall(r"```python\n(.*?)```", README, re.S)
    x, y = load_digits(return_X_y=True)
    names = {"x": x / 16, "y": y, "keras": keras, "looper": looper}
    [augmenting] = [block for block in blocks if "augmented(" in block]
    exec(augmenting, names)
    layers = [keras.Input((8, 8, 1)), keras.layers.Flatten(), keras.layers.Dense(10, "softmax")]
    trainer = looper.Trainer(
        model=lambda: keras.Sequential(layers), optimizer="adam", loss="categorical_crossentropy", metrics=["accuracy"]
    )
    history = trainer.fit(names["train_data"], epochs=2, progress=False)
    assert history["loss"][1] < history["loss"][0]

    [several] = [block for block in blocks if "loss_weights" in block]
    exec(several, names)
    targets = {"digit": y, "even": (y % 2 == 0).astype("float32")[:, None]}
    history = names["trainer"].fit((x / 16, targets), epochs=2, progress=False)
    assert history["digit_accuracy"][1] > history["digit_accuracy"][0]

    [unfreezing] = [block for block in blocks if "callbacks.Unfreeze(" in block]
    others = {**names, "x": x / 16, "y": y}
    exec(unfreezing.replace("[unfreeze])", "[unfreeze], progress=False)"), others)
    assert len(others["trainer"].model.trainable_variables) == 6

    [own] = [block for block in blocks if "class Enough" in block]
    exec(own, names)
    stopped = names["trainer"].fit((x / 16, targets), epochs=500, callbacks=[names["Enough"]()], progress=False)
    assert stopped["loss"][-1] < 0.05


def test_ci_runs_the_test_command_of_the_readme():
    commands = [line for line in README.splitlines() if line.startswith("python3 -m venv")]
    assert len(commands) == 2
    [pattern] = re.findall(r"grep -x '(.*)' README.md", (ROOT / ".ci" / "run").read_text())
    assert [line for line in commands if re.fullmatch(pattern, line)] == [commands[1]]
