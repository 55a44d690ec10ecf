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
    applications = json.loads((ROOT / "benchmarks" / "results" / "applications.json").read_text())
    assert applications["passed"] == "40 of 40"
    assert "Each of the 40 architectures" in README
    memory = json.loads((ROOT / "benchmarks" / "results" / "memory_flat.json").read_text())
    growth = [part["growth of the second half, share"] for part in memory.values() if "calls" in part]
    assert len(growth) == 4
    assert max(growth) < 0.001
    rows = {
        "frozen": "frozen",
        "naive": "not trained, but its batch statistics move and its dropout is on",
        "fine_tuned": "frozen, then its last 9 layers fine-tuned, statistics frozen",
        "fine_tuned_moving": "the same with moving statistics",
        "scratch": "trained from scratch",
    }
    transfer = json.loads((ROOT / "benchmarks" / "results" / "transfer.json").read_text())["runs"]
    assert rows.keys() == transfer.keys()
    for choice, runs in transfer.items():
        found = [run["accuracy"] for run in runs]
        assert len(found) == 3
        assert f"| {rows[choice]} | {np.mean(found):.3f} ({min(found):.3f} to {max(found):.3f}) |" in README


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

    [freezing] = [block for block in blocks if "looper.freeze" in block]
    body = [keras.layers.Dense(16, "relu", name=name) for name in ("conv4_1", "conv5_1")]
    model = keras.Sequential([keras.Input((64,)), *body, keras.layers.Dense(10, name="head")])
    optimizer = keras.optimizers.Adam(1e-3)
    names |= {"model": model, "optimizer": optimizer}
    exec(freezing, names)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    trainer = looper.Trainer(model=model, optimizer=optimizer, loss=loss)
    trainer.fit((x / 16, y), epochs=5, callbacks=[names["unfreezing"]], progress=False)
    assert len(model.trainable_variables) == 6

    [own] = [block for block in blocks if "class Enough" in block]
    exec(own, names)
    stopped = names["trainer"].fit((x / 16, targets), epochs=500, callbacks=[names["Enough"]()], progress=False)
    assert stopped["loss"][-1] < 0.05


def test_ci_runs_the_test_command_of_the_readme():
    commands = [line for line in README.splitlines() if line.startswith("python3 -m venv")]
    assert len(commands) == 2
    [pattern] = re.findall(r"grep -x '(.*)' README.md", (ROOT / ".ci" / "run").read_text())
    assert [line for line in commands if re.fullmatch(pattern, line)] == [commands[1]]
