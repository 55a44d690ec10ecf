"""What each command prints, against what is committed: see `tests.support.snapshots`."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from looper import cli
from tests.support import snapshots

RECIPE = """
import dataclasses, keras, looper, numpy as np

class Line(looper.Trainer):
    \"\"\"A line through points.\"\"\"

    defaults = {"epochs": 2, "batch_size": 4, "execution": "graph", "workdir": "runs/line"}
    presets = {"long": {"epochs": 9}}

    @dataclasses.dataclass
    class Config:
        rate: float = 0.1
        \"\"\"The learning rate.\"\"\"
        sizes: tuple[int, ...] = (4,)
        \"\"\"Units of the hidden layers.\"\"\"

    def build(self):
        hidden = [keras.layers.Dense(size, "relu") for size in self.config.sizes]
        self.model = keras.Sequential([keras.Input((2,)), *hidden, keras.layers.Dropout(0.1), keras.layers.Dense(1)])
        self.optimizer, self.loss, self.metrics = keras.optimizers.SGD(self.config.rate), "mse", ["mae"]

    def train_data(self):
        return np.ones((8, 2), "float32"), np.ones((8, 1), "float32")

    def eval_data(self):
        return self.train_data()
"""

COMMANDS = {
    "help": ["--help"],
    "run_help": ["run", "line.py", "--help"],
    "run": ["run", "line.py"],
    "run_again": ["run", "line.py"],
    "run_longer": ["run", "line.py", "--epochs", "3"],
    "run_smoke": ["run", "line.py", "--smoke"],
    "audit": ["audit", "line.py"],
    "runs": ["runs", "runs"],
    "runs_two": ["runs", "runs/line", "runs/line"],
    "doctor": ["doctor"],
    "wrong_option": ["run", "line.py", "--epoch", "3"],
    "wrong_value": ["run", "line.py", "--rate", "fast"],
    "wrong_file": ["run", "lines.py"],
    "wrong_command": ["runn", "line.py"],
}


@pytest.mark.filterwarnings("ignore")
def test_what_the_commands_print(tmp_path, monkeypatch, capfd):
    """One after the other in one folder, as somebody types them."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "100")
    Path("line.py").write_text(RECIPE)
    different = []
    for name, words in COMMANDS.items():
        try:
            code = cli.main(words)
        except SystemExit as end:  # of the standard library's parser, after help
            code = end.code
        out, err = capfd.readouterr()
        if name == "doctor":  # another process may slow one of its checks down
            out = re.sub(r"  -> .*", "", re.sub(r"(?m)^warn", "ok  ", out))
        try:
            snapshots.check(name, f"$ looper {' '.join(words)}\n{out}{err}[exit code {code}]\n", tmp_path)
        except AssertionError as error:
            different.append(str(error))
    assert not different


def test_a_first_run_has_no_noise(tmp_path):
    """In a process of its own, as it is typed: TensorFlow says what it likes, and looper's lines are all one sees."""
    (tmp_path / "line.py").write_text(RECIPE)
    environment = {name: value for name, value in os.environ.items() if name != "TF_CPP_MIN_LOG_LEVEL"}
    command = [sys.executable, "-m", "looper.cli", "run", "line.py"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment, check=True)
    snapshots.check("run_alone", done.stdout + done.stderr, tmp_path)
