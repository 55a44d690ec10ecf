"""Processes that share a cache folder, each forked off one that has imported TensorFlow and done nothing with it.

    python -m tests.support.kept_programs FOLDER

Prints what each of them found, as JSON.
"""

import json
import os
import signal
import sys
import time
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf

import looper.trainer
from looper.base import xla_cache


def train(eager_operations):
    """The losses of a run whose steps are an XLA program."""
    for _ in range(eager_operations):  # TensorFlow numbers its functions by them, among others
        tf.constant(0.0) + 1.0
    x = np.random.default_rng(0).normal(size=(64, 4)).astype("float32")
    trainer = looper.Trainer(
        model=lambda: keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)]),
        optimizer="sgd",
        loss="mse",
        execution="xla_loop",
    )
    trainer.fit((x, x[:, :3]), steps=40, batch_size=8, log_every=looper.Every(steps=8), progress=False)
    return [row["loss"] for row in trainer.history.rows]


def process(cache, out, eager_operations=0, killed=False):
    """Forks a process that trains. Returns its number."""
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        os.environ["LOOPER_CACHE"] = str(cache)
        xla_cache.announce()
        losses = train(eager_operations)
        if killed:
            os.kill(os.getpid(), signal.SIGKILL)
        xla_cache._leave(os.getpid())  # atexit is not called at the end of a forked process
        out.with_suffix(".new").write_text(str(xla_cache.new_programs()))
        out.write_text(json.dumps(losses))
        code = 0
    finally:
        os._exit(code)


def ended(child):
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def losses(cache, folder, **options):
    out = folder / f"{time.monotonic_ns()}.json"
    code = ended(process(cache, out, **options))
    return json.loads(out.read_text()) if code == 0 else code


def compiled(folder):
    """How many programs the last process compiled."""
    return int(max(folder.glob("*.new"), key=lambda path: path.stat().st_mtime_ns).read_text())


def kept(cache):
    """What is kept, and whether each has the content that its name says."""
    files = sorted(path for store in cache.glob("xla-*") for path in store.iterdir())
    right = all(path.name.endswith(xla_cache._digest(path)) for path in files)
    return [path.name for path in files], right


def flipped(content, bits, begin=0.0):
    """Flips bits at random behind a share of the content."""
    changed, draw = bytearray(content), np.random.default_rng(1)
    for place in draw.choice(np.arange(int(begin * len(content)), len(content)), bits, replace=False):
        changed[place] ^= 1 << int(draw.integers(8))
    return bytes(changed)


DAMAGES = {
    "truncated": lambda content: content[: len(content) // 2],
    "empty": lambda content: b"",
    "one bit": lambda content: flipped(content, 1),
    "200 bits": lambda content: flipped(content, 200),
    "in the code": lambda content: flipped(content, 8, begin=0.5),
}


def main(folder):
    cache = folder / "cache"
    found = {"first": losses(cache, folder), "kept by it": kept(cache)}
    found |= {"new": compiled(folder), "second": losses(cache, folder, eager_operations=37), "kept then": kept(cache)}
    found["new then"] = compiled(folder)
    for name, damage in DAMAGES.items():
        [store] = cache.glob("xla-*")
        for path in store.iterdir():
            content = damage(path.read_bytes())
            path.unlink()
            path.write_bytes(content)
        found[name] = losses(cache, folder), kept(cache)
    found["killed"] = losses(cache, folder, killed=True)
    found["left by it"] = len(list((cache / "running").iterdir()))
    both = [folder / "one.json", folder / "two.json"]
    new = folder / "new"
    for child in [process(new, out) for out in both]:
        ended(child)
    found["at once"] = [json.loads(out.read_text()) if out.exists() else None for out in both], kept(new)
    found["after it"] = losses(cache, folder), len(list((cache / "running").iterdir()))
    print(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
