"""What is lost where a process is killed, or a call fails, at each place where a run changes a file?

    python -m benchmarks.failpoints
    python -m benchmarks.failpoints --only arrays

A library in C (`failpoints.c`, compiled for this; it takes a C compiler) is loaded before all others and sees each call
that changes a file of the workdir, by Python or TensorFlow. For each configuration

1. one run has its workdir copied before each call, and where half of a write is done. Each copy that differs from the
   others is what a process leaves that is killed there. It is continued by the same command.
2. each place of a call fails in a run of its own, with "no space left", "input/output error" and "permission denied",
   now and from then on. That run may end as it should, or with one line; then the same command is given again.

Of two workers, 1. is done with one copy for each place of a call.

All must end with what the undisturbed run has: variables, history, `metrics.jsonl`, `log.csv` and TensorBoard's points,
`keep=` checkpoints and no stray file.
"""

import argparse
import collections
import ctypes
import errno
import hashlib
import json
import os
import pickle
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import traceback
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"
ERRORS = (errno.ENOSPC, errno.EIO, errno.EACCES)
SPEEDS = ("steps_per_second", "examples_per_second", "input_wait")
STEPS, KEEP = 60, 2

CONFIGURATIONS: dict[str, dict[str, Any]] = {
    "arrays": {"execution": "graph"},
    "dataset": {"execution": "graph"},
    "callbacks": {"execution": "graph"},
    "xla_loop": {"execution": "xla_loop"},
    "two replicas": {"execution": "graph", "strategy": "mirrored", "devices": 2},
}
WORKERS = "two workers"
ON_WORKERS = {WORKERS: {"execution": "graph", "strategy": "multi_worker"}}
"""Both processes are killed at the same time, once at each place of a call of the first one."""


def train(name: str, workdir: Path) -> Any:
    """Trains a configuration in a workdir, or trains it on."""
    import keras
    import numpy as np
    import tensorflow as tf

    import looper

    random = np.random.RandomState(0)
    x, y = random.randn(160, 8).astype("float32"), random.randint(0, 3, 160)

    def model() -> keras.Model:
        layers = [keras.layers.Dense(8, "relu"), keras.layers.Dropout(0.2), keras.layers.Dense(3)]
        return keras.Sequential([keras.Input((8,)), *layers])

    trainer = looper.Trainer(
        model=model,
        optimizer=lambda: keras.optimizers.Adam(0.01),
        loss=lambda: keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        workdir=workdir,
        **(CONFIGURATIONS | ON_WORKERS)[name],
    )
    given = [looper.callbacks.Checkpoint(keep=KEEP, best="eval/loss"), looper.callbacks.CSVLogger()]
    if name == "callbacks":
        given += [
            looper.callbacks.Histograms(every=looper.Every(steps=20)),
            looper.callbacks.Text(lambda run: "text", every=looper.Every(steps=20)),
            looper.callbacks.EarlyStopping("eval/loss", patience=50),
        ]
    data: Any = (x, y)
    if name == "dataset":
        data = tf.data.Dataset.from_tensor_slices(data).shuffle(160, seed=1).batch(8)
    trainer.fit(
        data,
        batch_size=None if name == "dataset" else 8,
        steps=STEPS,
        eval_data=(x[:40], y[:40]),
        save_every=looper.Every(steps=15),
        log_every=looper.Every(steps=5),
        eval_every=looper.Every(steps=20),
        callbacks=given,
        progress=False,
    )
    return trainer


def found(trainer: Any) -> dict[str, Any]:
    """All that must be the same, in its workdir and in memory."""
    import tensorflow as tf
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    folder = trainer.workdir
    newest = sorted((folder / "checkpoints").glob("step_*"))[-1]
    reader = tf.train.load_checkpoint(str(newest / "state"))
    shapes = reader.get_variable_to_shape_map()
    variables = {key: reader.get_tensor(key).tobytes() for key in shapes if "OBJECT_GRAPH" not in key}

    def rows(lines: Any) -> list[dict[str, Any]]:
        return [{key: value for key, value in row.items() if key not in SPEEDS} for row in lines]

    csv = (folder / "log.csv").read_text().splitlines()
    columns = [i for i, column in enumerate(csv[0].split(",")) if column not in SPEEDS]
    events = EventAccumulator(str(folder), size_guidance={"scalars": 0}).Reload()
    tags = [tag for tag in events.Tags()["scalars"] if not tag.startswith(("time/", "memory/", *SPEEDS))]
    return {
        "variables": variables,
        "history": rows(trainer.history.rows),
        "metrics.jsonl": rows(map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())),
        "log.csv": [[line.split(",")[i] for i in columns] for line in csv],
        "TensorBoard": {tag: [event.step for event in events.Scalars(tag)] for tag in tags if tag.startswith("eval/")},
        "checkpoints": [path.name for path in sorted((folder / "checkpoints").iterdir())],
        "files": sorted(
            path.name for path in folder.iterdir() if not path.name.startswith("events.out") and path.is_file()
        ),
    }


def differences(trainer: Any, expected: dict[str, Any]) -> list[str]:
    """What is not as it should be."""
    return not_alike(found(trainer), expected)


def not_alike(seen: dict[str, Any], expected: dict[str, Any]) -> list[str]:
    return [name for name in expected if seen[name] != expected[name]]


def changes(folder: Path) -> str:
    """Tells a folder's content from another's; clocks and numbers of processes make no difference."""
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        name = re.sub(r"\d{5,}", "#", str(path.relative_to(folder)))
        content = b"" if path.is_dir() else path.read_bytes()
        if path.name.startswith("events.out"):
            content = b"%d" % len(content)
        elif path.suffix in (".json", ".jsonl", ".csv", "") and path.is_file():
            content = re.sub(rb"\d+\.\d+|\d{4}-[\dT:+ -]+|\"pid\": \d+", b"#", content)
        digest.update(f"{name}:{len(content)}:".encode() + content)
    return digest.hexdigest()


def distinct(folder: Path) -> list[Path]:
    """The copies that differ from those before, in the order of time."""
    copies = sorted((folder / "copies").iterdir(), key=lambda path: (int(path.name.split(".")[0]), path.name))
    seen: dict[str, Path] = {}
    for copy in copies:
        seen.setdefault(changes(copy), copy)
    return list(seen.values())


def killed(name: str, folder: Path, expected: dict[str, Any], copies: Sequence[Path]) -> dict[str, Any]:
    """Continues copies."""
    wrong: dict[str, list[str]] = {}
    for copy in copies:
        workdir = folder / "continued"
        shutil.rmtree(workdir, ignore_errors=True)
        shutil.copytree(copy, workdir)
        try:
            different = differences(train(name, workdir), expected)
        except Exception as error:
            different = [f"{type(error).__name__}: {error}"]
        if different:
            wrong[copy.name] = different
    made = len(list((folder / "copies").iterdir()))
    return {"copies": made, "distinct": len(copies), "right": len(copies) - len(wrong), "wrong": wrong}


def failed(name: str, folder: Path, expected: dict[str, Any], sites: list[tuple[str, str]]) -> dict[str, Any]:
    """Makes each call site fail, and gives the command again."""
    import looper

    library = ctypes.CDLL(os.environ["LD_PRELOAD"])
    wrong: dict[str, list[str]] = {}
    ended = collections.Counter()
    workdir = Path(os.environ["FAILPOINTS_UNDER"])
    for kind, part in sites:
        for number in ERRORS:
            shutil.rmtree(workdir, ignore_errors=True)
            library.failpoints_fail(kind.encode(), part.encode(), 1, number)
            where = f"{kind} {part}: {errno.errorcode[number]}"
            try:
                with warnings.catch_warnings(record=True) as told:
                    warnings.simplefilter("always")
                    train(name, workdir)
                ended["as it should"] += 1
            except (looper.InputError, looper.errors.StepError) as error:
                ended["in one line"] += 1
                if "\n" in str(error).strip():
                    wrong[where] = [f"more than a line: {error}"]
            except Exception as error:
                wrong[where] = [f"{type(error).__name__}: {error}"]
            library.failpoints_fail(b"", b"", 0, 0)
            try:
                different = differences(train(name, workdir), expected)
            except Exception as error:
                different = [f"again: {type(error).__name__}: {error}"]
            if any("events of TensorBoard are lost" in str(one.message) for one in told):
                different = [one for one in different if one != "TensorBoard"]  # none could be written, and it was told
            if different:
                wrong[where] = [*wrong.get(where, []), *different]
    count = len(sites) * len(ERRORS)
    return {"sites": len(sites), "tried": count, "ended": dict(ended), "right": count - len(wrong), "wrong": wrong}


def site(kind: str, path: str) -> tuple[str, str]:
    """A call's kind, and the part of the file's name that tells its place."""
    name = path.rpartition("/")[2]
    part = re.match(r"[.]?[a-zA-Z_]+(\.out|\.json|\.index|\.npz|\.csv|\.data)?", name)
    return kind, part[0] if part else name


def sites_of(log: Path) -> Iterator[tuple[str, str]]:
    """Kinds of calls, and the part of a name that tells their place; each once."""
    seen = set()
    for line in log.read_text().splitlines():
        _, kind, path = line.split(" ", 2)
        where = site(kind, path)
        if where not in seen:
            seen.add(where)
            yield where


def on_workers(workdir: Path, out: Path) -> dict[str, Any]:
    """Trains on two workers, which are forked off this process. Returns what the first one found.

    Raises:
        RuntimeError: if one of them failed.
    """
    with socket.socket() as one, socket.socket() as other:
        for each in (one, other):
            each.bind(("localhost", 0))
        cluster = {"worker": [f"localhost:{each.getsockname()[1]}" for each in (one, other)]}
    workers = []
    for index in (0, 1):
        worker = os.fork()
        if not worker:
            code = 1
            try:
                os.environ["TF_CONFIG"] = json.dumps({"cluster": cluster, "task": {"type": "worker", "index": index}})
                if index:  # the library sees the first one's calls alone
                    os.environ.pop("FAILPOINTS_UNDER", None)
                trainer = train(WORKERS, workdir)
                if not index:
                    out.write_bytes(pickle.dumps(found(trainer)))
                code = 0
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(code)
        workers.append(worker)
    codes = [os.waitstatus_to_exitcode(os.waitpid(worker, 0)[1]) for worker in workers]
    if any(codes):
        raise RuntimeError(f"two workers ended with {codes}")
    return pickle.loads(out.read_bytes())


def killed_workers(folder: Path) -> dict[str, Any]:
    """Continues a copy for each place of a call."""
    expected = on_workers(folder / "undisturbed", folder / "expected")
    copies = {path.name: path for path in distinct(folder) if path.name.isdigit()}
    chosen: dict[tuple[str, str], Path] = {}
    for line in (folder / "log").read_text().splitlines():
        number, kind, name = line.split(" ", 2)
        before = [int(copy) for copy in copies if int(copy) <= int(number)]
        if before:
            chosen[site(kind, name)] = copies[str(max(before))]  # the last call of each
    wrong: dict[str, Any] = {}
    for (kind, part), copy in chosen.items():
        workdir = folder / "continued"
        shutil.rmtree(workdir, ignore_errors=True)
        shutil.copytree(copy, workdir)
        try:
            different = not_alike(on_workers(workdir, folder / "seen"), expected)
        except RuntimeError as error:
            different = [str(error)]
        if different:
            wrong[f"{kind} {part}"] = different
    return {"sites": len(chosen), "right": len(chosen) - len(wrong), "wrong": wrong}


def inside_workers(step: str, folder: Path) -> dict[str, Any]:
    """The same as `inside`, for two workers."""
    import looper.trainer  # noqa: F401  (TensorFlow is imported, and does nothing yet: this process will be forked)
    from looper import callbacks  # noqa: F401

    if step == "killed":
        return killed_workers(folder)
    on_workers(Path(os.environ["FAILPOINTS_UNDER"]), folder / "first")
    return {}


def inside(step: str, name: str, folder: Path) -> None:
    """One of the processes: it prints what it found as JSON."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    warnings.simplefilter("ignore")
    if name == WORKERS:
        (folder / f"{step}.json").write_text(json.dumps(inside_workers(step, folder)))
        return
    if CONFIGURATIONS[name].get("devices"):
        import tensorflow as tf

        cpu = tf.config.list_physical_devices("CPU")[0]
        tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
    if step == "copied":
        train(name, Path(os.environ["FAILPOINTS_UNDER"]))
        result: dict[str, Any] = {}
    else:
        expected = found(train(name, folder / "undisturbed"))
        if step == "killed":
            result = killed(name, folder, expected, distinct(folder))
        else:
            result = failed(name, folder, expected, list(sites_of(folder / "log")))
    (folder / f"{step}.json").write_text(json.dumps(result))


def process(step: str, name: str, folder: Path, library: Path | None = None, **more: str) -> dict[str, Any]:
    """Runs a step in a process of its own, with the library loaded before all others if it is given."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith("FAILPOINTS")}
    if library is not None:
        environment |= {"LD_PRELOAD": str(library), "FAILPOINTS_UNDER": str(folder / "run"), **more}
    command = [sys.executable, "-m", "benchmarks.failpoints", "--inside", step, name, str(folder)]
    subprocess.run(command, env=environment, check=True, cwd=Path(__file__).parents[1])
    return json.loads((folder / f"{step}.json").read_text())


def copied(name: str, folder: Path, library: Path) -> dict[str, int]:
    """Copies a run before each call. Returns how many there were of each kind.

    Raises:
        SystemExit: if the library has not seen the writes that it is for.
    """
    log, copies = folder / "log", folder / "copies"
    copies.mkdir()
    process("copied", name, folder, library, FAILPOINTS_LOG=str(log), FAILPOINTS_COPIES=str(copies))
    text = log.read_text()
    for what in ("write .*/state.data", "write .*events.out", "rename .*partial-step"):
        if not re.search(what, text):
            raise SystemExit(f"{name}: no call like {what!r} was seen: the library sees too little")
    return dict(collections.Counter(line.split(" ", 2)[1] for line in text.splitlines()))


def measure(name: str, library: Path, errors: bool) -> dict[str, Any]:
    """All of one configuration."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        result = {"operations": copied(name, folder, library), "killed": process("killed", name, folder)}
        if errors:
            shutil.rmtree(folder / "copies")
            result["failed"] = process("failed", name, folder, library)
        return result


def compiled(folder: Path) -> Path:
    """The library.

    Raises:
        SystemExit: without a C compiler.
    """
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        raise SystemExit("failpoints need a C compiler: apt-get install gcc libc6-dev")
    library = folder / "failpoints.so"
    source = Path(__file__).with_suffix(".c")
    command = [compiler, "-shared", "-fPIC", "-O1", "-o", str(library), str(source), "-ldl", "-lpthread"]
    subprocess.run(command, check=True)
    return library


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    every = [*CONFIGURATIONS, *ON_WORKERS]
    parser.add_argument("--only", choices=every, nargs="*", default=every)
    parser.add_argument("--inside", nargs=3, help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, default=RESULTS / "failpoints.json", help="the JSON file to write")
    arguments = parser.parse_args()
    if arguments.inside:
        step, name, folder = arguments.inside
        inside(step, name, Path(folder))
        return
    from benchmarks.saving import save

    with tempfile.TemporaryDirectory() as folder:
        library, result = compiled(Path(folder)), {}
        for name in arguments.only:
            result[name] = measure(name, library, errors=name in ("arrays", "callbacks"))
            said = save(arguments.out, {"configurations": result}, "benchmarks.failpoints")  # it takes an hour
    print(said)


if __name__ == "__main__":
    main()
