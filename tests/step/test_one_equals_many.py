"""One recipe on any number of replicas and workers: the same weights, logs and evaluation after 20 steps.

The cases are in tests/support/one_equals_many.py. Each set of devices has a process of its own, which runs all cases.
"""

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from looper.workers.cluster import local_cluster
from tests.support import models
from tests.support.one_equals_many import CASES, STEPS

ONE = {"one": ["--strategy", "one_device"]}
MANY = {
    "2_replicas": ["--strategy", "mirrored", "--devices", "2"],
    "3_replicas": ["--strategy", "mirrored", "--devices", "3"],
}
WORKERS = {
    "2_workers": ["--strategy", "auto"],
    "2_workers_of_2_replicas": ["--strategy", "multi_worker", "--cpus-per-worker", "2"],
}
"""Each a pair of processes."""
RUNS = [(name, precision) for name, case in CASES.items() for precision in case.precisions]
TENSOR = {"float32": 1e-5, "mixed_float16": 1e-3}
"""The norm of the difference over a tensor's norm. float16 has 11 bits, and the replicas' sums are rounded apart."""
LOGS = {"float64": 1e-9, "float32": 1e-5, "mixed_float16": 1e-3}
METRICS = 1e-6
"""Keras' metrics hold float32 sums, whatever the precision."""


def start(arguments: list[str], out: Path, tf_config: str | None = None) -> subprocess.Popen:
    command = [sys.executable, "-m", "tests.support.one_equals_many", *arguments, "--out", str(out)]
    root = Path(__file__).parents[2]
    environment = {**os.environ, "PYTHONPATH": str(root)} | ({} if tf_config is None else {"TF_CONFIG": tf_config})
    return subprocess.Popen(command, cwd=root, env=environment, stderr=subprocess.PIPE, text=True)


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """By set of devices what all cases ended with."""
    folder = tmp_path_factory.mktemp("one_equals_many")
    running = {name: start(arguments, folder / f"{name}.npz") for name, arguments in (ONE | MANY).items()}
    for name, arguments in WORKERS.items():
        for rank, config in enumerate(local_cluster(2)):
            out = folder / f"{name}{'' if rank == 0 else '_second'}.npz"
            running[out.stem] = start(arguments, out, config)
    with ThreadPoolExecutor(len(running)) as threads:  # none may wait for another to be read
        said = threads.map(lambda process: process.communicate()[1], running.values())
        errors = dict(zip(running, said, strict=True))
    for name, process in running.items():
        assert process.returncode == 0, f"{name}: {errors[name][-3000:]}"
    return {name: dict(np.load(folder / f"{name}.npz")) for name in running}


def part(found: dict[str, np.ndarray], case: str, precision: str, kind: str) -> dict[str, np.ndarray]:
    start = f"{case}/{precision}/{kind}/"
    return {name.removeprefix(start): value for name, value in found.items() if name.startswith(start)}


@pytest.mark.parametrize("many", [*MANY, *WORKERS])
@pytest.mark.parametrize(("case", "precision"), RUNS)
def test_one_equals_many(results, case, precision, many):
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
            np.testing.assert_allclose(other[name], expected, rtol=tolerance, atol=tolerance, err_msg=f"{kind} {name}")


@pytest.mark.parametrize("workers", WORKERS)
def test_all_workers_have_the_same_bits(results, workers):
    one, other = results[workers], results[f"{workers}_second"]
    assert one.keys() == other.keys()
    for name in one:
        np.testing.assert_array_equal(one[name], other[name], err_msg=name)


@pytest.mark.parametrize("devices", [*ONE, *MANY, *WORKERS])
def test_what_the_cases_promise_to_try(results, devices):
    """Twenty steps each; the infinity skips a step and halves the scale; the small batches are small."""
    found = results[devices]
    assert all(len(v) == STEPS for name, v in found.items() if "/log/" in name)
    log = part(found, "infinity_on_the_last_replica", "mixed_float16", "log")
    skipped = [1 if step % 4 == 1 else 0 for step in range(STEPS)]
    assert log["skipped_steps"].tolist() == skipped
    assert log["loss_scale"].tolist() == [2.0**15 / 2 ** sum(skipped[: i + 1]) for i in range(STEPS)]
    for case, examples in (("last_batch_of_one", 49), ("sgd_momentum", 62)):
        assert part(found, case, "float64", "eval")["examples"] == examples
