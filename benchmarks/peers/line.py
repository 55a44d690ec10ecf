"""A peer's end of the line: it trains a burst, says so, and waits to be told to go on.

Each burst is answered by one line of JSON:

    {"seconds": 0.31, "loss": 2.29}

The first burst needs no command. Its seconds count from the moment when all is imported: they hold the building of the
model and all compilation, and the answer names "versions" and "device" too. After each answer the peer reads a line:
`burst` trains on, anything else (or the end of the input) ends it, after a last line:

    {"peak_mib": 812.5}

The loss is the mean since the burst began or since the last log, one in 100 steps. Reading it waits for the device.
"""

import argparse
import dataclasses
import io
import json
import os
import sys
import time
from collections.abc import Mapping
from pathlib import Path

from benchmarks.problems import PROBLEMS, Problem, on_replicas

PRECISIONS = ("float32", "mixed_bfloat16")
"""Keras' names of them; the latter computes in bfloat16 and keeps the weights in float32."""
DATA = ("arrays", "dataset")
"""What looper may be given: NumPy arrays, or the `tf.data.Dataset` that the loops by hand read."""


class Terminal(io.StringIO):
    """A terminal that shows and keeps nothing, so that real progress bars run."""

    def write(self, text: str) -> int:
        return len(text)

    def isatty(self) -> bool:
        return True


@dataclasses.dataclass(frozen=True)
class Settings:
    """What a peer is started with.

    Attributes:
        problem: what to train.
        steps_per_burst, steps_per_call: the second divides the first.
        dropout: the rate for networks that have some.
        execution: looper's mode.
        replicas: of all workers.
        precision: "float32" or "mixed_bfloat16", in Keras' words.
        workdir: that looper writes to on all workers, or "" for one of its own.
        data: what looper is given, of `DATA`.
        bursts: how many looper is told that there will be.
    """

    problem: Problem
    steps_per_burst: int
    steps_per_call: int
    dropout: float
    execution: str
    replicas: int
    precision: str
    workdir: str
    data: str
    bursts: int

    @property
    def mixed(self) -> bool:
        """Whether to compute in bfloat16, with weights in float32."""
        return self.precision != "float32"

    @property
    def strategy(self) -> str:
        """As looper calls it. `TF_CONFIG` tells the workers of each other."""
        if "TF_CONFIG" in os.environ:
            return "multi_worker"
        return "mirrored" if self.replicas > 1 else "one_device"

    @property
    def calls(self) -> int:
        """In a burst, of those who loop inside a call."""
        return self.steps_per_burst // self.steps_per_call

    @property
    def steps_per_log(self) -> int:
        """Of those who log: 100, or a burst if that has no whole number of them."""
        return 100 if self.steps_per_burst % 100 == 0 else self.steps_per_burst


def settings() -> Settings:
    """Those of the command line."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", choices=PROBLEMS, required=True)
    parser.add_argument("--steps-per-burst", type=int, required=True)
    parser.add_argument("--steps-per-call", type=int, required=True)
    parser.add_argument("--dropout", type=float, required=True)
    parser.add_argument("--execution", required=True)
    parser.add_argument("--replicas", type=int, required=True)
    parser.add_argument("--precision", choices=PRECISIONS, required=True)
    parser.add_argument("--batch", type=int, required=True)
    parser.add_argument("--workdir", required=True)
    parser.add_argument("--data", choices=DATA, required=True)
    parser.add_argument("--bursts", type=int, required=True)
    given = vars(parser.parse_args())
    problem, batch = PROBLEMS[given.pop("model")], given.pop("batch")
    problem = dataclasses.replace(problem, batch=batch or problem.batch)
    return Settings(problem=on_replicas(problem, given["replicas"]), **given)


class Line:
    """Talks with the process that started this one. What else is printed goes to a terminal that shows nothing.

    Args:
        versions: of what trains.
        device: what it trains on, such as "CPU".
    """

    def __init__(self, versions: Mapping[str, str], device: str) -> None:
        self._answers = os.fdopen(os.dup(1), "w")
        os.dup2(2, 1)  # what is printed past Python
        sys.stdout = Terminal()
        self._more: dict = {"versions": dict(versions), "device": device}
        self._began = time.perf_counter()

    def burst_done(self, loss: float) -> bool:
        """To be called after each burst, the first included. Returns whether to train another one."""
        seconds = time.perf_counter() - self._began
        self._say({"seconds": seconds, "loss": loss, **self._more})
        self._more = {}
        go_on = sys.stdin.readline().strip() == "burst"
        self._began = time.perf_counter()
        return go_on

    def close(self) -> None:
        """To be called last: tells how much memory was resident at most."""
        # not getrusage: what that calls the peak begins with the peak of the process that started this one
        status = Path("/proc/self/status").read_text()
        [kib] = [line.split()[1] for line in status.splitlines() if line.startswith("VmHWM")]
        self._say({"peak_mib": int(kib) / 1024})

    def _say(self, answer: Mapping) -> None:
        self._answers.write(json.dumps(answer) + "\n")
        self._answers.flush()
