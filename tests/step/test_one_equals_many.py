"""One recipe on any number of replicas and workers: the same weights, logs and evaluation after 20 steps.

The cases are in tests/support/one_equals_many.py. One device and two replicas run them all; three replicas and workers
run those that they could do otherwise. `python -m benchmarks.one_equals_many` runs each case on each set of devices.
"""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from tests.support import models
from tests.support.one_equals_many import CASES, STEPS, run_all, runs, start

ALL = list(CASES)
RUNS = {
    "one": ALL,
    "2_replicas": ALL,
    "3_replicas": [
        "sgd_momentum",
        "last_batch_of_one",
        "infinity_on_the_last_replica",
    ],
    "2_workers": [
        "sgd_momentum",
        "accumulate",
        "embedding",
        "last_batch_of_one",
        "two_optimizers",
        "infinity_on_the_last_replica",
    ],
    "2_workers_of_2_replicas": [
        "sgd_momentum",
        "last_batch_of_one_synchronized",
        "infinity_on_the_last_replica",
    ],
}
"""Sets of devices and their cases."""
HERE = {"one": ("one_device", None), "2_replicas": ("mirrored", 2)}
"""Strategies on this process's two devices. TensorFlow has one set in a process: the others have some of their own."""
WORKERS = ["2_workers", "2_workers_of_2_replicas"]
TENSOR = {"float32": 1e-5, "mixed_float16": 1e-3}
"""The norm of the difference over a tensor's norm. float16 has 11 bits, and the replicas' sums are rounded apart."""
LOGS = {"float64": 1e-9, "float32": 1e-5, "mixed_float16": 1e-3}
NEAR_TIE = 1 / 14
"""float16 rounds at 5e-4: of the 14 or 16 examples of a batch, one may have two outputs that close."""
METRICS = 1e-6
"""Keras' metrics hold float32 sums, whatever the precision."""

pytestmark = pytest.mark.xdist_group("workers")


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """By set of devices what its cases ended with."""
    folder = tmp_path_factory.mktemp("one_equals_many")
    running = {}
    for devices, names in RUNS.items():
        running |= {} if devices in HERE else start(devices, names, folder)
    with ThreadPoolExecutor(len(running)) as threads:  # none may wait for another to be read
        said = threads.map(lambda process: process.communicate()[1], running.values())
        found = {devices: run_all(RUNS[devices], *strategy) for devices, strategy in HERE.items()}
        errors = dict(zip(running, said, strict=True))
    for name, process in running.items():
        assert process.returncode == 0, f"{name}: {errors[name][-3000:]}"
    return found | {name: dict(np.load(folder / f"{name}.npz")) for name in running}


def part(found: dict[str, np.ndarray], case: str, precision: str, kind: str) -> dict[str, np.ndarray]:
    start = f"{case}/{precision}/{kind}/"
    return {name.removeprefix(start): value for name, value in found.items() if name.startswith(start)}


@pytest.mark.parametrize(
    ("many", "case", "precision"),
    [(many, *run) for many, names in RUNS.items() if many != "one" for run in runs(names)],
)
def test_one_equals_many(results, many, case, precision):
    one, other = (part(results[devices], case, precision, "weights") for devices in ("one", many))
    assert one.keys() == other.keys()
    assert one
    for name, expected in one.items():
        if precision == "float64":
            np.testing.assert_allclose(other[name], expected, rtol=0, atol=1e-9, err_msg=name)
        else:
            assert models.norm_difference(other[name], expected) < TENSOR[precision], name
    for kind in ("log", "eval"):
        one, other = (part(results[devices], case, precision, kind) for devices in ("one", many))
        assert one.keys() == other.keys()
        for name, expected in one.items():
            tolerance = max(LOGS[precision], METRICS if name == "accuracy" else 0)
            if precision == "mixed_float16" and name == "accuracy":
                tolerance = NEAR_TIE
            np.testing.assert_allclose(other[name], expected, rtol=tolerance, atol=tolerance, err_msg=f"{kind} {name}")


@pytest.mark.parametrize("workers", WORKERS)
def test_all_workers_have_the_same_bits(results, workers):
    one, other = results[workers], results[f"{workers}_second"]
    assert one.keys() == other.keys()
    for name in one:
        np.testing.assert_array_equal(one[name], other[name], err_msg=name)


@pytest.mark.parametrize("devices", RUNS)
def test_what_the_cases_promise_to_try(results, devices):
    """Twenty steps each; the infinity skips a step and halves the scale; the small batches are small."""
    found = results[devices]
    assert all(len(v) == STEPS for name, v in found.items() if "/log/" in name)
    log = part(found, "infinity_on_the_last_replica", "mixed_float16", "log")
    skipped = [1 if step % 4 == 1 else 0 for step in range(STEPS)]
    assert log["skipped_steps"].tolist() == skipped
    assert log["loss_scale"].tolist() == [2.0**15 / 2 ** sum(skipped[: i + 1]) for i in range(STEPS)]
    sizes = {case: part(found, case, "float64", "eval").get("examples") for case in CASES}
    assert sizes["sgd_momentum"] == 62
    assert 49 in [sizes["last_batch_of_one"], sizes["last_batch_of_one_synchronized"]]
