"""How long a step takes under looper, and under others: hand-written loops, Keras, Orbit, PyTorch, Lightning and JAX.

    python -m benchmarks.hot_step                                    against the hand-written in-graph loop
    python -m benchmarks.hot_step --execution xla_loop               the same in another mode of looper
    python -m benchmarks.environments                                once, for the peers of other frameworks
    python -m benchmarks.hot_step --model gpt8 --peers all
    python -m benchmarks.hot_step --model mlp --peers hand_step,torch,jax_scan
    python -m benchmarks.hot_step --model cnn256 --precision mixed_bfloat16 --batch 4096      to fill a GPU

The default model is launch-bound: Dense-BN-Dropout-Dense, batch 32, SGD with momentum. All report loss and accuracy.
looper runs as a user has it: progress bar, TensorBoard, metrics.jsonl and checkpoints on (by default one in five
minutes), a log every 100 steps. What is hand-written only trains: it shows, logs and saves nothing. Each is a file of
`benchmarks/peers`, and a process of its own.

First it is checked that all do the same arithmetic: from equal weights, on equal batches and without dropout, their
losses over the first 20 steps must agree. Then they train in turns, a burst of steps each, on the same machine: what a
burst takes ends with the loss on the host, so that a GPU is waited for. Ratios are of bursts of the same turn. A peer
that is missing or fails is named in the result, with the reason.
"""

import argparse
import contextlib
import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.peers import PEERS
from benchmarks.peers.line import PRECISIONS
from benchmarks.peers.process import PeerError, Process, Size, first_losses
from benchmarks.problems import PROBLEMS
from benchmarks.saving import save
from looper.commands.bench.statistics import median

RESULTS = Path(__file__).parent / "results"
TOLERANCE = {"float32": 1e-3, "mixed_bfloat16": 0.05}
"""Of the losses, relative. They begin a rounding apart, and Adam makes that grow: it divides by gradients near 0. Of
bfloat16 a rounding is 0.004, and each framework keeps other parts of a step in float32."""
CHECKED = {"steps_per_burst": 2, "steps_per_call": 2, "dropout": 0.0}


def check(names: Sequence[str], given: Size) -> tuple[dict[str, float], dict[str, str]]:
    """Compares the losses of the first 20 steps, as means of two, with looper's.

    Args:
        names: of `PEERS`.
        given: of the task; its steps and its dropout are not used.

    Returns:
        The largest relative difference of each peer, and why others could not be run.

    Raises:
        SystemExit: if losses differ by more than `TOLERANCE`, or looper fails.
    """
    size = dataclasses.replace(given, **CHECKED)
    try:
        ours = np.array(first_losses("looper", size))
    except PeerError as error:
        raise SystemExit(f"looper: {error}") from None
    differences: dict[str, float] = {}
    without: dict[str, str] = {}
    for name in names:
        try:
            theirs = np.array(first_losses(name, size))
        except PeerError as error:
            without[name] = str(error)
            continue
        differences[name] = float(np.max(np.abs(theirs - ours) / ours))
        if not differences[name] <= TOLERANCE[size.precision]:
            raise SystemExit(f"{name} trains something else: its losses are\n{theirs}\nand looper's\n{ours}")
    return differences, without


def measure(names: Sequence[str], size: Size, bursts: int, warm_up: int = 2) -> tuple[dict[str, Any], dict[str, str]]:
    """Trains in turns.

    Args:
        names: of `PEERS`.
        size: of the task.
        bursts: of each that are timed.
        warm_up: of each that are not, besides the first.

    Returns:
        For each peer "seconds" of its bursts, "first" (its first answer) and "peak_mib"; and why others failed.
    """
    without: dict[str, str] = {}
    with contextlib.ExitStack() as running:
        processes: dict[str, Process] = {}
        for name in names:
            with failing(name, without):
                processes[name] = running.enter_context(Process(name, size))
        seconds: dict[str, list[float]] = {name: [] for name in processes}
        for _ in range(warm_up + bursts):
            for name in processes:
                if name not in without:
                    with failing(name, without):
                        seconds[name].append(processes[name].burst()["seconds"])
        found = {}
        for name in processes:
            if name not in without:
                with failing(name, without):
                    peak = processes[name].close()
                    found[name] = {
                        "seconds": np.array(seconds[name][warm_up:]),
                        "first": processes[name].first,
                        "peak_mib": peak,
                    }
    return found, without


@contextlib.contextmanager
def failing(name: str, without: dict[str, str]) -> Iterator[None]:
    """Notes why a peer failed, and goes on without it."""
    try:
        yield
    except PeerError as error:
        without[name] = str(error)


def compare(names: Sequence[str], bursts: int, size: Size) -> dict[str, Any]:
    """The whole comparison, as it is written."""
    differences, without = check(names, size)
    found, failed = measure(["looper", *differences], size, bursts)
    without |= failed
    if "looper" not in found:
        raise SystemExit(f"looper: {without['looper']}")
    times = {name: one["seconds"] * 1e6 / size.steps_per_burst for name, one in found.items()}
    ratios = {name: median(times["looper"] / times[name]) for name in found if name != "looper"}
    result = {
        "model": size.model,
        "batch": size.batch or PROBLEMS[size.model].batch,
        "precision": size.precision,
        "microseconds per step": {PEERS[name].title: median(values) for name, values in times.items()},
        "ratios looper / peer, turn by turn": {PEERS[name].title: ratio for name, ratio in ratios.items()},
    }
    if "hand_loop" in ratios:
        result["ratio looper / hand-written, pair by pair"] = ratios["hand_loop"]
    return result | {
        "not measured": {PEERS[name].title: reason for name, reason in without.items()},
        "largest relative difference of losses from looper's": {
            PEERS[name].title: difference for name, difference in differences.items()
        },
        "tolerance of it": TOLERANCE[size.precision],
        "seconds to the end of the first burst": {
            PEERS[name].title: one["first"]["seconds"] for name, one in found.items()
        },
        "peak MiB": {PEERS[name].title: one["peak_mib"] for name, one in found.items()},
        "device": {PEERS[name].title: one["first"]["device"] for name, one in found.items()},
        "peers' versions": {PEERS[name].title: one["first"]["versions"] for name, one in found.items()},
        "bursts": bursts,
        "steps per burst": size.steps_per_burst,
        "steps per call of in-graph loops": size.steps_per_call,
    }


def main() -> None:
    others = [name for name in PEERS if name != "looper"]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=PROBLEMS, help="default: mlp, written to hot_step.json")
    parser.add_argument("--peers", default="hand_loop", help=f"all, or some of {','.join(others)}")
    parser.add_argument("--execution", default="auto", help="looper's mode")
    parser.add_argument("--precision", choices=PRECISIONS, default="float32", help="of all peers")
    parser.add_argument("--batch", type=int, default=0, help="examples in a batch; default: the model's")
    parser.add_argument("--bursts", type=int, default=60, help="timed bursts of each")
    parser.add_argument("--steps-per-burst", type=int, help="default: the model's")
    parser.add_argument("--out", type=Path, help="the JSON file to write")
    arguments = parser.parse_args()
    names = others if arguments.peers == "all" else arguments.peers.split(",")
    unknown = [name for name in names if name not in others]
    if unknown:
        parser.error(f"there is no peer {', '.join(unknown)}; expected all, or some of {', '.join(others)}")
    model, mode = arguments.model or "mlp", arguments.execution
    burst = arguments.steps_per_burst or PROBLEMS[model].steps_per_burst
    call = min(burst, PROBLEMS[model].steps_per_call)
    if burst % call:
        parser.error(f"--steps-per-burst {burst}: expected a multiple of {call}, the steps of a call")
    size = Size(model, burst, call, execution=mode, precision=arguments.precision, batch=arguments.batch)
    result = compare(names, arguments.bursts, size)

    own = [mode if mode != "auto" else None, arguments.precision if arguments.precision != "float32" else None]
    stem = "_".join(filter(None, ["hot_step", arguments.model, *own, str(arguments.batch or "")]))
    out = arguments.out or RESULTS / f"{stem}.json"
    print(save(out, {"execution": mode, **result}, "benchmarks.hot_step"))


if __name__ == "__main__":
    main()
