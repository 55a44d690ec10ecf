"""`looper bench`: what a user types, once as a process. Bursts are few and short: no number means anything here."""

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest

from looper import cli
from looper.base.errors import InputError
from looper.commands.bench.chart import can_draw
from looper.commands.bench.messages import LeftOutError
from looper.commands.bench.options import BenchOptions
from looper.commands.bench.results import verdict
from looper.commands.bench.rounds import LEAST_BURSTS, alternate
from looper.commands.bench.run import write
from tests.support import snapshots

ROOT = Path(__file__).parents[2]
PNG = b"\x89PNG\r\n\x1a\n"

DENSE = """
import keras, looper, numpy as np, tensorflow as tf

class Dense(looper.Trainer):
    def build(self):
        self.model = keras.Sequential([keras.Input((4,)), keras.layers.Dropout(0.5), keras.layers.Dense(3)])
        self.optimizer = keras.optimizers.SGD(0.01, momentum=0.9)
        self.loss, self.metrics = keras.losses.MeanSquaredError(), ["mae"]

    def train_data(self):
        random = np.random.default_rng(0)
        return random.normal(size=(70, 4)).astype("float32"), random.normal(size=(70, 3)).astype("float32")
"""

OWN_STEP = (
    DENSE
    + """
class Own(Dense):
    def train_step(self, batch):
        with tf.GradientTape() as tape:
            loss = self.compute_loss(batch, training=True)
        self.minimize(loss, tape)
        length = tf.strings.length(tf.strings.as_string(batch[0][0, 0]))
        return {"loss": loss, "length": tf.cast(length, tf.float32)}
"""
)


def bench(*words):
    command = [sys.executable, "-m", "looper.cli", "bench", *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)


def recipe(path, text):
    path.write_text(text)
    return str(path)


def check(out, sides):
    """The JSON file has these sides, with numbers that can be."""
    found = json.loads((out / "bench.json").read_text())
    assert list(found["sides"]) == sides
    for name, side in found["sides"].items():
        given = [side["microseconds_per_step"]] + ([] if name == "raw" else [side["ratio_to_raw"]])
        for values in given:
            low, high = values["interval"]
            assert 0 < low <= values["median"] <= high < math.inf
        assert side["bursts"] >= LEAST_BURSTS
        assert side["steps_per_burst"] >= 1
        assert 0 < side["first_step_seconds"] < 300
        assert side["peak_memory_bytes"] > 100 << 20
        assert len(side["losses_of_first_steps"]) == 5
    return found


def test_loops_are_compared_with_the_raw_one(tmp_path):
    """Also in XLA, and many steps a call by Keras. No loop can be a hundredth of the raw one: the bound is broken."""
    dense, out = recipe(tmp_path / "dense.py", DENSE), tmp_path / "out"
    sides = ["raw", "graph", "keras_many"]
    words = ["--sides", *sides, "--execution", "xla_loop", "--seconds", 0.3, "--out", out, "--max-overhead", 0.01]
    done = bench(dense, *words)
    assert done.returncode == 1, done.stderr
    snapshots.check("bench", done.stdout, out, tmp_path)
    lines = done.stdout.splitlines()
    names = ["raw loop by hand", "looper graph", "looper xla_loop", "Keras fit"]
    assert [line[: len(name)] for line, name in zip(lines[1:5], names, strict=True)] == names
    assert lines[5].startswith("An epoch has 3 batches.")
    assert lines[6].startswith("--max-overhead 0.01 is broken: xla_loop takes ")
    found = check(out, [*sides[:2], "xla_loop", *sides[2:]])
    losses = {name: side.get("losses") for name, side in found["sides"].items()}
    # XLA draws other dropout masks on a CPU
    expected = {"raw": None, "xla_loop": "differ because of Dropout"}
    assert losses == expected | dict.fromkeys(sides[1:], "same to 1e-05")
    assert found["sides"]["keras_many"]["steps_per_execution"] in (10, 32, 100)
    if can_draw():
        assert (out / "bench.png").read_bytes().startswith(PNG)


def test_what_cannot_run_the_recipe_is_left_out_with_the_reason(tmp_path, capsys):
    """An own train_step is not what a raw loop does, and XLA lacks an operation of it."""
    own = recipe(tmp_path / "own.py", OWN_STEP) + ":Own"
    assert cli.main(["bench", own, "--sides", "raw", "xla_step", "--execution", "eager", "--seconds", "1"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].startswith("looper eager ")
    assert lines[2:4] == [
        "raw loop by hand  left out: the recipe has its own train_step, which the raw loop cannot call",
        "looper xla_step   left out: XLA cannot compile the operation AsString (own.py:19)",
    ]


def test_wrong_input_is_one_line(tmp_path, capsys):
    without = DENSE[: DENSE.index("    def train_data")]
    assert cli.main(["bench", recipe(tmp_path / "without.py", without)]) == 2
    assert capsys.readouterr().err.splitlines()[-1] == (
        "looper: error: Dense has no train_data(): bench needs the recipe's own data."
    )
    assert cli.main(["bench", "missing.py"]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.splitlines() == ["looper: error: no recipe 'missing.py': there is no such file."]


def test_without_matplotlib_one_line_says_what_gives_charts(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    write({"sides": {}}, tmp_path)
    assert capsys.readouterr().err.splitlines() == [
        f"looper: bench: wrote {tmp_path / 'bench.json'}; pip install 'looper-tf[bench]' gives charts"
    ]
    assert [path.name for path in tmp_path.iterdir()] == ["bench.json"]


def test_wrong_options_are_errors(tmp_path):
    with pytest.raises(InputError, match="sides='grap': did you mean 'graph'"):
        BenchOptions(sides=("grap",)).check()
    with pytest.raises(InputError, match="seconds=0: expected a positive number"):
        BenchOptions(seconds=0).check()
    with pytest.raises(InputError, match="put 'raw' into --sides"):
        BenchOptions(sides=("graph",), max_overhead=1.1).check()
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="is a file: expected a directory"):
        BenchOptions(out=tmp_path / "file").check()


@pytest.mark.parametrize(
    ("interval", "kept", "word"),
    [([1.03, 1.06], False, "broken"), ([1.01, 1.06], True, "not shown"), ([1, 1.01], True, "kept")],
)
def test_a_bound_is_broken_only_if_the_whole_interval_is_above_it(interval, kept, word):
    found = {"sides": {"graph": {"ratio_to_raw": {"median": 1.04, "interval": interval}}}}
    ok, line = verdict(found, "graph", BenchOptions(max_overhead=1.02))
    assert ok == kept
    assert line.startswith(f"--max-overhead 1.02 is {word}")


def test_bursts_alternate_and_a_side_that_fails_is_left_out():
    order = []

    def side(name, fails_at=None):
        def run():
            order.append(name)
            if order.count(name) == fails_at:
                raise LeftOutError("the loss became nan")
            return 10, 0.001

        return run

    bursts, failed = alternate({"a": side("a"), "b": side("b"), "c": side("c", fails_at=2)}, seconds=1e-9, length=0.1)
    assert order == ["a", "b", "c"] * 2 + ["a", "b"] * (LEAST_BURSTS - 2)
    assert {name: [burst.round for burst in found] for name, found in bursts.items()} == {
        name: list(range(LEAST_BURSTS)) for name in "ab"
    }
    assert failed == {"c": "the loss became nan"}


def test_a_side_with_long_bursts_has_fewer_of_them():
    now = 0.0

    def side(seconds):
        def run():
            nonlocal now
            now += seconds
            return 1, seconds

        return run

    bursts, _ = alternate({"a": side(0.25), "b": side(2.0)}, seconds=32.0, length=0.25, clock=lambda: now)
    assert {name: len(found) for name, found in bursts.items()} == {"a": 64, "b": 8}  # its share; all the rest
