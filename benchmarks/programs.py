"""Twelve programs of `tests.programs` in every way to run them: how far each recipe is from the same one by hand.

    python -m benchmarks.programs

The suite runs a part of this. Each recipe trains 12 steps of SGD in each mode on one device and on two replicas, in
float64 and float32, also with micro-batches, which are refused where the step cannot be done in them. In float64 the
largest difference of a weight counts, in float32 the norm of the difference over the tensor's norm; replicas are each
compared. Then each one is stopped and continued in each mode, with Adam and draws of its own: all that a checkpoint
holds has to have the same bits. Last, `check_replicas` looks at the recipe and at one with a planted mistake, compiled.
"""

import argparse
import os
import tempfile
from pathlib import Path
from types import ModuleType
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np
import tensorflow as tf

import looper
from benchmarks.saving import save
from tests.programs import PROGRAMS, shared
from tests.support.models import norm_difference

RESULT = Path(__file__).parent / "results" / "programs.json"
BOUNDS = {"float64": 1e-9, "float32": 1e-5}
REFUSED = "InputError: accumulate=2: train_step "
"""How the line begins with which a step that cannot be done in micro-batches is refused."""
TWO = {"strategy": "mirrored", "devices": 2}
WAYS: dict[str, dict[str, Any]] = {
    "one device, graph": {},
    "one device, xla_step": {"execution": "xla_step"},
    "one device, xla_loop": {"execution": "xla_loop"},
    "one device, eager": {"execution": "eager"},
    "one device, accumulate=2": {"accumulate": 2},
    "two replicas, graph": TWO,
    "two replicas, xla_step": TWO | {"execution": "xla_step"},
    "two replicas, eager": TWO | {"execution": "eager"},
    "two replicas, accumulate=2": TWO | {"accumulate": 2},
}


def refused(work: Any) -> Any:
    """What `work` returns, or the first line of the error by which looper refuses it."""
    try:
        return work()
    except (looper.InputError, RuntimeError) as error:
        return f"{type(error).__name__}: {str(error).splitlines()[0]}"


def difference(precision: str, expected: dict[str, Any], found: dict[str, Any]) -> float:
    """How far a recipe's variables are from those by hand, at most."""
    pairs = [pair for name in expected for pair in zip(found[name], expected[name], strict=True)]
    if precision == "float64":
        return max(float(np.max(np.abs(a - b))) for a, b in pairs)
    return max(norm_difference(copy, b[0]) for a, b in pairs for copy in a)


def differing(program: ModuleType, options: dict[str, Any]) -> int:
    """How many of a checkpoint's variables have other bits in a run that was stopped and continued."""
    with tempfile.TemporaryDirectory() as folder:
        continued, undisturbed = shared.stopped_and_undisturbed(program, Path(folder), **options)
    assert continued.keys() == undisturbed.keys()
    return sum(not np.array_equal(value, continued[name]) for name, value in undisturbed.items())


def verdict(program: ModuleType, kind: type[looper.Trainer]) -> str:
    """What `check_replicas` says of a recipe."""
    [batch] = shared.first_batches(program, "float64", steps=1)
    return kind(precision="float64", execution="graph", **TWO).check_replicas(batch).verdict


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--programs", nargs="+", default=list(PROGRAMS), choices=list(PROGRAMS))
    parser.add_argument("--out", type=Path, default=RESULT)
    options = parser.parse_args()
    cpu = tf.config.list_physical_devices("CPU")[0]
    tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
    apart: dict[str, Any] = {}
    stopped: dict[str, Any] = {}
    checked: dict[str, Any] = {}
    for name in options.programs:
        program = PROGRAMS[name]
        for precision in BOUNDS:
            expected = shared.by_hand(program, precision)
            apart[f"{name}, {precision}"] = {
                way: refused(
                    lambda p=program, e=expected, d=precision, o=o: difference(d, e, shared.train(p, list(e), d, **o))
                )
                for way, o in WAYS.items()
            }
        stopped[name] = {way: refused(lambda p=program, o=o: differing(p, o)) for way, o in WAYS.items()}
        checked[name] = {
            "recipe": verdict(program, program.Recipe),
            "planted mistake": verdict(program, program.PLANTED),
        }
        print(f"{name}: {checked[name]}", flush=True)
        save(options.out, summary(apart, stopped, checked), "benchmarks.programs")  # what there is, if it is stopped
    print(options.out.read_text())


def summary(apart: dict[str, Any], stopped: dict[str, Any], checked: dict[str, Any]) -> dict[str, Any]:
    """What is written."""
    within = all(
        value <= BOUNDS[row.split(", ")[1]] if isinstance(value, float) else value.startswith(REFUSED)
        for row, values in apart.items()
        for value in values.values()
    )
    return {
        "largest difference to the program by hand": apart,
        "bounds": BOUNDS,
        "all within": within,
        "variables with other bits after a stop": stopped,
        "all with the same bits": all(
            value == 0 or str(value).startswith(REFUSED) for values in stopped.values() for value in values.values()
        ),
        "check_replicas": checked,
    }


if __name__ == "__main__":
    main()
