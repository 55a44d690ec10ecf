"""What compiling took is given back to the system, what each step takes is not."""

import platform
import re
import subprocess
import sys
from pathlib import Path

import pytest

from looper.base import memory

pytestmark = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other C libraries keep less, or cannot")

COMPILES = """
import keras, numpy as np, looper
L = keras.layers
for mode in ("xla_step", "xla_loop"):
    open("/proc/self/clear_refs", "w").write("5")  # the peak is counted anew
    layers = [keras.Input((32,)), *[L.Dense(32, "relu") for _ in range(8)], L.Dense(1)]
    trainer = looper.Trainer(model=lambda: keras.Sequential(layers), optimizer="adam", loss="mse", execution=mode)
    trainer.fit((np.ones((64, 32), "f"), np.ones((64, 1), "f")), batch_size=32, steps=20, progress=False)
    print("of", mode, open("/proc/self/status").read())
"""

STEPS = """
import ctypes, keras, numpy as np, resource, statistics, tensorflow as tf, threading, looper
tf.config.threading.set_inter_op_parallelism_threads(1)  # with many, each has a heap that takes long to grow
tf.config.threading.set_intra_op_parallelism_threads(1)
L = keras.layers
model = lambda: keras.Sequential(
    [keras.Input((28, 28, 1)), L.Conv2D(32, 3, activation="relu"), L.Conv2D(32, 3), L.Flatten(), L.Dense(10)])
class Faults(looper.callbacks.Callback):
    def on_step(self, step, logs):
        faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt)
arrays = (np.ones((320, 28, 28, 1), "f"), np.ones((320, 10), "f"))
def generator():
    while True:
        yield arrays[0][:32], arrays[1][:32]
def train(data):
    faults.clear()
    looper.Trainer(model=model, optimizer="sgd", loss="mse", execution="xla_step", steps_per_execution=10).fit(
        data, steps=100, log_every=looper.Every(steps=10), callbacks=[Faults()], progress=False)
    print(statistics.median(after - before for before, after in zip(faults, faults[1:])) / 10)
faults = []
train(arrays)
c = ctypes.CDLL(None)
c.malloc.restype, c.malloc.argtypes, c.free.argtypes = ctypes.c_void_p, [ctypes.c_size_t], [ctypes.c_void_p]
def gotten(size):
    ctypes.memset(piece := c.malloc(size), 1, size)
    return piece
def steps():
    pages = []
    for _ in range(140):
        before = resource.getrusage(resource.RUSAGE_THREAD).ru_minflt
        for _ in range(10):
            for piece in [gotten(2_800_000), gotten(2_400_000)]:
                c.free(piece)
        pages.append((resource.getrusage(resource.RUSAGE_THREAD).ru_minflt - before) / 10)
        gotten(500_000)  # and kept: the place of the others moves through two heaps
    print(max(pages))
thread = threading.Thread(target=steps)
thread.start()
thread.join()
train(tf.data.Dataset.from_tensor_slices(arrays).repeat().batch(32))
train(generator())
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


def test_training_does_not_hold_what_the_compiler_took():
    """Neither after compiling a step nor after compiling a loop."""
    run = subprocess.run([sys.executable, "-c", COMPILES], capture_output=True, text=True, check=True)
    _, *modes = run.stdout.split("of xla_")
    assert len(modes) == 2
    for status in modes:
        # without looper's doing, what is resident stays at the peak
        assert mebibytes("VmHWM", status) - mebibytes("VmRSS", status) > 20


def test_a_step_gets_its_memory_from_the_process_not_anew_from_the_system():
    """In pages of 4 KiB that the system had to provide, per step. See `keep_freed`, `looper.data.feed.replayed`.

    For arrays, a dataset and a generator, which comes last: TensorFlow gives memory back from the first one on. Of each
    the median of nine windows counts, as a system may take pages of a process away. The second figure is that of a
    thread which gets pieces as large as a step's, at the border of two heaps: what it writes to first is a tenth.
    """
    run = subprocess.run([sys.executable, "-c", STEPS], capture_output=True, text=True, check=True)
    pages = [float(line) for line in run.stdout.split()]
    assert len(pages) == 4
    assert max(pages) < 200, pages  # 300 and more if it did, 600 and more at the border; else 25 where data is stacked


@pytest.mark.parametrize(
    ("variable", "value", "told"),
    [
        ("HOME", "/", [(-3, 32 << 20), (-1, 64 << 20), (-2, 64 << 20)]),
        ("MALLOC_MMAP_THRESHOLD_", "1048576", []),
        ("GLIBC_TUNABLES", "glibc.malloc.trim_threshold=9", []),
    ],
)
def test_what_the_user_set_stays(monkeypatch, variable, value, told):
    for name in ("MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_", "GLIBC_TUNABLES"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv(variable, value)
    heard = []
    monkeypatch.setattr(memory, "_c_function", lambda name: lambda *given: heard.append(given))
    memory.keep_freed()
    assert heard == told
