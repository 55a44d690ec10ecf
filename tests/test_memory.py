"""What compiling took is given back to the system."""

import platform
import re
import subprocess
import sys
from pathlib import Path

import pytest

from looper import memory

pytestmark = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other C libraries keep less, or cannot")

COMPILES = """
import keras, numpy as np, looper
L = keras.layers
layers = [keras.Input((32,)), *[L.Dense(32, "relu") for _ in range(8)], L.Dense(1)]
trainer = looper.Trainer(model=lambda: keras.Sequential(layers), optimizer="adam", loss="mse", execution={mode!r})
trainer.fit((np.ones((64, 32), "f"), np.ones((64, 1), "f")), batch_size=32, steps=20, progress=False)
print(open("/proc/self/status").read())
"""


def mebibytes(name, status):
    return int(re.search(rf"{name}:\s+(\d+)", status)[1]) / 1024


def resident():
    return mebibytes("VmRSS", Path("/proc/self/status").read_text())


def test_what_is_free_is_given_back():
    pieces = [bytes(1000) for _ in range(200_000)]
    last = pieces[-1]  # glibc itself gives back what is free behind everything else
    del pieces
    held = resident()
    memory.give_back()
    assert held - resident() > 100  # of 190 MiB
    assert len(last) == 1000


@pytest.mark.parametrize("mode", ["xla_step", "xla_loop"])
def test_training_does_not_hold_what_the_compiler_took(mode):
    run = subprocess.run([sys.executable, "-c", COMPILES.format(mode=mode)], capture_output=True, text=True, check=True)
    # without looper's doing, what is resident stays at the peak
    peak, now = mebibytes("VmHWM", run.stdout), mebibytes("VmRSS", run.stdout)
    assert peak - now > 20
