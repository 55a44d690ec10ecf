"""Every case of `tests.support.one_equals_many` on every set of devices: how far each is from one device.

    python -m benchmarks.one_equals_many

The suite runs the cases that could differ; this runs all of them, in float64 and float32, one set of devices after
the other. Weights and logs are compared: in float64 the largest difference, otherwise the norm of the difference over
the tensor's norm. Keras' metrics hold float32 sums, and are left out.
"""

import argparse
import os
import subprocess
import tempfile
from pathlib import Path

import numpy as np

from benchmarks.saving import save
from tests.support import one_equals_many
from tests.support.models import norm_difference

RESULT = Path(__file__).parent / "results" / "one_equals_many.json"
BOUNDS = {"float64": 1e-9, "float32": 1e-5, "mixed_float16": 1e-3}


def results(devices: str, folder: Path) -> dict[str, np.ndarray]:
    """What all cases end with on a set of devices. Raises `CalledProcessError` if a process fails."""
    os.environ["LOOPER_TESTS_OPTIMIZE_GRAPHS"] = "1"  # as a user's
    running = one_equals_many.start(devices, list(one_equals_many.CASES), folder, "--float32")
    for process in running.values():
        _, said = process.communicate()
        if process.returncode:
            raise subprocess.CalledProcessError(process.returncode, process.args, stderr=said)
    return dict(np.load(folder / f"{devices}.npz"))


def difference(key: str, one: np.ndarray, other: np.ndarray) -> float:
    """How far a tensor or a log is from that of one device."""
    if "/float64/" in key:
        return float(np.max(np.abs(one - other), initial=0.0))
    return norm_difference(other, one)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=RESULT)
    options = parser.parse_args()
    found: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        one = results("one", Path(folder))
        for devices in [name for name in one_equals_many.DEVICES if name != "one"]:
            many = results(devices, Path(folder))
            assert many.keys() == one.keys()
            largest: dict[str, float] = {}
            for key, value in one.items():
                case, precision, kind, name = key.split("/", 3)
                if kind in ("weights", "log") and "accuracy" not in name:
                    row = f"{case}, {precision}"
                    largest[row] = max(largest.get(row, 0.0), difference(key, value, many[key]))
            found[devices] = largest
    within = all(value <= BOUNDS[row.split(", ")[1]] for rows in found.values() for row, value in rows.items())
    result = {"largest difference to one device": found, "bounds": BOUNDS, "all within": within}
    print(save(options.out, result, "benchmarks.one_equals_many"))


if __name__ == "__main__":
    main()
