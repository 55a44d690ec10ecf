"""What Keras does on several workers, which is why looper has a loop of its own; and a strategy that comes too late.

That looper trains there is `tests/workers/test_workers.py`. If the first test fails, Keras has been repaired: say so
where the README and the comments speak of it.
"""

import re
import subprocess
import sys

import pytest

from looper.workers.cluster import local_cluster
from tests.support import processes

pytestmark = pytest.mark.xdist_group("workers")


def test_fit_of_keras_fails_on_two_workers(tmp_path):
    """Keras 3.15 on TensorFlow 2.21. It is TensorFlow's tutorial on several workers, with fewer and random images."""
    codes = processes.together(2, ["-m", "tests.support.keras_fit_on_a_worker"], tmp_path)
    for rank in (0, 1):
        said = processes.output(tmp_path, rank)
        assert codes[rank] == 0, said
        assert re.search(r"^fit raised ValueError: ", said, re.M), said


LATE = """
import sys
import keras, looper, numpy as np, tensorflow as tf
if "first" in sys.argv:
    tf.constant(1)
try:
    looper.Trainer(model=lambda: keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)]), loss="mse")
except looper.InputError as error:
    print("refused:", error)
"""


def made(tmp_path, monkeypatch, *words):
    """What a script says that makes a Trainer as worker 1 of two, where nobody else is."""
    [_, config] = local_cluster(2)
    monkeypatch.setenv("TF_CONFIG", config)
    monkeypatch.setenv("LOOPER_START_SECONDS", "0.5")
    script = tmp_path / "script.py"
    script.write_text(LATE)
    done = subprocess.run([sys.executable, script, *words], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    [line] = done.stdout.splitlines()
    return line


def test_a_trainer_that_comes_too_late_says_so_before_it_waits_for_the_others(tmp_path, monkeypatch):
    line = made(tmp_path, monkeypatch, "first")
    assert line.startswith("refused: strategy='multi_worker': TensorFlow has already started. Make the Trainer before")
    assert "does not answer" in made(tmp_path, monkeypatch), "in time, it waits for them"
