"""Kills runs at random instants: do they end as the undisturbed one, and in which phase were they killed?

    python -m benchmarks.chaos
    python -m benchmarks.chaos --kills 20 --only arrays

Each run is a process that is forked off one that has imported TensorFlow, so that a start takes no seconds. It is
killed with SIGKILL up to three times at random instants, and then left alone. What it ends with is compared with the
undisturbed run as in `benchmarks.failpoints`, of which the configurations are.
"""

import argparse
import collections
import contextlib
import functools
import json
import os
import pickle
import random
import shutil
import signal
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.failpoints import CONFIGURATIONS, differences, found, train

RESULTS = Path(__file__).parent / "results"
MOST_KILLS = 3


def forked(act: Callable[[], None], out: Path) -> int:
    """A process that does something; what it says goes to a file. Returns its number."""
    process = os.fork()
    if process:
        return process
    code = 1
    try:
        descriptor = os.open(out, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(descriptor, 1)
        os.dup2(descriptor, 2)
        act()
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


def ended(process: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])


def phase(workdir: Path) -> str:
    """What a run was doing when it was killed, by what it left."""
    names = {entry.name.split("step_")[0] for entry in (workdir / "checkpoints").glob(".*")}
    for kind, said in ((".partial-", "writing a checkpoint"), (".old-", "replacing one"), (".gone-", "pruning")):
        if kind in names:
            return said
    try:
        status = json.loads((workdir / "run.json").read_text())["status"]
    except (OSError, ValueError):
        return "starting"
    if status != "running":
        return "ending"
    return "training" if any((workdir / "checkpoints").glob("step_*")) else "training, before a checkpoint"


def two_devices(name: str) -> None:
    """In the process that trains: TensorFlow starts there."""
    if CONFIGURATIONS[name].get("devices"):
        import tensorflow as tf

        cpu = tf.config.list_physical_devices("CPU")[0]
        tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)


def run(name: str, workdir: Path, expected: Path | None, result: Path) -> None:
    """Trains, and writes what there is then, or how it differs from what is expected."""
    two_devices(name)
    trainer = train(name, workdir)
    if expected is None:
        result.write_bytes(pickle.dumps(found(trainer)))
    else:
        result.write_text(json.dumps(differences(trainer, pickle.loads(expected.read_bytes()))))


def measure(name: str, kills: int, draw: random.Random, folder: Path) -> dict[str, Any]:
    """Runs of one configuration until so many kills were made."""
    expected, out = folder / "expected", folder / "said"
    began = time.monotonic()
    if ended(forked(functools.partial(run, name, folder / "undisturbed", None, expected), out)):
        raise SystemExit(out.read_text())
    takes = time.monotonic() - began
    phases: collections.Counter[str] = collections.Counter()
    wrong: list[Any] = []
    runs, workdir, result = 0, folder / "run", folder / "result.json"
    while phases.total() < kills:
        again = functools.partial(run, name, workdir, expected, result)
        shutil.rmtree(workdir, ignore_errors=True)
        result.unlink(missing_ok=True)
        runs += 1
        for _ in range(draw.randint(1, min(MOST_KILLS, kills - phases.total()))):
            process = forked(again, out)
            time.sleep(draw.uniform(0.05, 1.0) * takes)  # the instant is what is random
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)
            if ended(process) == -signal.SIGKILL:
                phases[phase(workdir)] += 1
        code = ended(forked(again, out))
        different = json.loads(result.read_text()) if code == 0 else [out.read_text()[-2000:]]
        if different:
            wrong.append(different)
    return {"kills": phases.total(), "by phase": dict(phases), "runs": runs, "right": runs - len(wrong), "wrong": wrong}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", choices=CONFIGURATIONS, nargs="*", default=list(CONFIGURATIONS))
    parser.add_argument("--kills", type=int, default=40, help="in each configuration")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=RESULTS / "chaos.json", help="the JSON file to write")
    arguments = parser.parse_args()
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    import looper.trainer  # noqa: F401  (TensorFlow is imported, and does nothing yet)
    from looper import callbacks  # noqa: F401

    draw = random.Random(arguments.seed)
    results = {}
    for name in arguments.only:
        with tempfile.TemporaryDirectory() as folder:
            results[name] = measure(name, arguments.kills, draw, Path(folder))
    from benchmarks.saving import save

    print(save(arguments.out, {"configurations": results, "seed": arguments.seed}, "benchmarks.chaos"))


if __name__ == "__main__":
    main()
