r"""State to files and back. A checkpoint is a directory that appears whole or not at all.

step_00000450/
    state.index, state.data-00000-of-00001    a tf.train.Checkpoint: variables by name
    iterator.index, ...                       another one, of the data iterator, in the middle of a pass
    host.json, host.npz                       step, epoch, data position, metric windows, callbacks' state
    files.json                                the checksums of all files
    rank_1/                                   the same of worker 1: the variables and positions that are its own

Variables are called as `looper.saved.variables` says: `model/3/kernel` is the fourth of Keras' `model.variables`. The
files hold `/` as `.S`, so this loads a model's weights without looper:

    reader = tf.train.load_checkpoint("runs/digits/checkpoints/step_00000450/state")
    for name in reader.get_variable_to_shape_map():
        if found := re.match(r"variables/model\.S(\d+)\.S\w+/", name):
            model.variables[int(found[1])].assign(reader.get_tensor(name))

Of several replicas it takes the first one's batch statistics; `Trainer.save_model` writes their mean.
"""

import contextlib
import dataclasses
import json
import math
import os
import re
import shutil
import tempfile
import threading
import time
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from looper.base.errors import InputError, PeerLostError, first_line
from looper.saved import files
from looper.saved.host_state import check_host

PREFIX, ITERATOR = "state", "iterator"
"""Of the files of variables, and of those of a dataset's iterator."""

GRAPH = "_CHECKPOINTABLE_OBJECT_GRAPH"
"""The key of `tf.train.Checkpoint` for which variable is whose."""

MOST_BYTES = 256 << 20
"""Of `host.json`: far more than any has."""


class DamagedCheckpointError(Exception):
    """A checkpoint's files are incomplete or unreadable; the message names it."""


PART_SECONDS = 300.0
"""How long the chief waits for the other workers' parts of a checkpoint; all write at the same step."""

PAUSE_SECONDS = 0.01
"""Between two looks whether a file of another worker is there."""


def appears(path: Path, seconds: float, given_up: threading.Event | None = None) -> bool:
    """Waits until another worker has written something, for so long at most. Returns whether it is there.

    `given_up` ends the waiting.
    """
    deadline = time.monotonic() + seconds
    while not path.exists():
        if time.monotonic() > deadline or (given_up is not None and given_up.is_set()):
            return False
        time.sleep(PAUSE_SECONDS)
    return True


@dataclasses.dataclass(frozen=True)
class Content:
    """What a checkpoint is to hold, taken at one moment: training may go on.

    Attributes:
        values: of the variables, by name.
        host: the text of the host's values, which `host.json` holds beside the variables' shapes.
        arrays: of `host.npz`.
        write_iterator: writes a `tf.data` iterator to a folder; where there is one it must be called at once, by who
            reads the data. None without.
    """

    values: Mapping[str, tf.Tensor]
    host: str
    arrays: Mapping[str, np.ndarray]
    write_iterator: Callable[[Path], Any] | None = None

    @property
    def bytes(self) -> int:
        """What it takes, about."""
        found = [*self.values.values(), *self.arrays.values()]
        return sum(math.prod(one.shape) * _bytes_of(one.dtype) for one in found) + len(self.host)

    @property
    def text(self) -> str:
        """Of `host.json`: made by who writes it, as 600 shapes take milliseconds."""
        return f'{{"host": {self.host}, "variables": {json.dumps(_shapes(self.values))}}}'


def _bytes_of(dtype: Any) -> int:
    return dtype.size if isinstance(dtype, tf.DType) else dtype.itemsize


def take(values: Mapping[str, tf.Tensor], host: Mapping[str, Any], iterator: Any | None = None) -> Content:
    """Takes what a checkpoint is to hold.

    Args:
        values: what `State.snapshot` gives: nothing is copied until a variable is written to.
        host: nested dicts and lists of JSON values and numeric arrays; copied.
        iterator: a `tf.data` iterator, or None.
    """
    arrays: dict[str, np.ndarray] = {}

    def as_json(value: Any) -> Any:
        if isinstance(value, np.ndarray):
            arrays[f"array_{len(arrays)}"] = value.copy()
            return {"__array__": f"array_{len(arrays) - 1}"}
        if isinstance(value, np.generic):
            return value.item()
        if isinstance(value, Mapping):  # of another kind than JSON knows
            return {**value}
        raise TypeError(f"a checkpoint holds JSON values and numeric arrays, and no {type(value).__name__}")

    text = json.dumps(host, default=as_json)
    write = None
    if iterator is not None:

        def write(folder: Path) -> Any:
            return tf.train.Checkpoint(iterator=iterator).write(str(folder / ITERATOR))

    return Content(values, text, arrays, write)


def begin(folder: Path, content: Content) -> None:
    """Makes the folder that a checkpoint, or a part of one, is to be written to, with what cannot be written later.

    The folder above must be there: where somebody has removed a workdir, its other files are gone, too.
    """
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    if content.write_iterator is not None:
        with _gone_if_it_fails(folder):
            content.write_iterator(folder)


@contextlib.contextmanager
def _gone_if_it_fails(folder: Path) -> Iterator[None]:
    """Removes a folder if what is done inside fails: a full disk has no room for half of a checkpoint."""
    try:
        yield
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise


def partial_of(path: Path, tag: str) -> Path:
    """Where a checkpoint is written before it gets its name, so that this is never half of one; see `part_of`."""
    return path.parent / f".partial-{path.name}-{tag}-0"


def save(
    path: Path, partial: Path, content: Content, others: Sequence[Path] = (), given_up: threading.Event | None = None
) -> Path:
    """Writes a checkpoint directory to where it was begun, and gives it its name.

    With several workers only the chief does, the others `save_part`.

    Args:
        path: the directory to make; one that is there is replaced.
        partial: where it was begun.
        content: what it is to hold.
        others: where the parts of workers 1, 2 and so on will appear; they are waited for.
        given_up: ends that waiting.

    Returns:
        `path`.

    Raises:
        PeerLostError: if a worker's part does not appear.
    """
    with _gone_if_it_fails(partial):
        _write(partial, content)
    for rank, part in enumerate(others, 1):
        if not appears(part, PART_SECONDS, given_up):
            raise PeerLostError(
                f"the checkpoint {path}: worker {rank} has not written its part after {PART_SECONDS:g} s; nothing was "
                "published."
            )
        part.rename(partial / rank_name(rank))
    if others:
        files.sync(partial)
    _publish(partial, path)
    sweep(path.parent)
    return path


def _publish(partial: Path, path: Path) -> None:
    """Gives a whole directory its name, instead of one that is there."""
    old = path.parent / f".old-{path.name}-{os.getpid()}"
    if path.exists():
        path.rename(old)  # at no moment is there neither the old nor the new one
    partial.rename(path)
    files.sync(path.parent)
    shutil.rmtree(old, ignore_errors=True)


def part_of(path: Path, rank: int, tag: str) -> Path:
    """Where a worker writes its part of a checkpoint; `tag` tells this time of writing it from all others."""
    return path.parent / f".part-{path.name}-{tag}-{rank}"


def partial_of_part(part: Path) -> Path:
    """Where a worker's part is written before it appears."""
    return part.with_name(f".partial-{part.name.removeprefix('.part-')}")


def save_part(part: Path, content: Content) -> None:
    """Writes a worker's part of a checkpoint, begun at `partial_of_part(part)`, which appears whole."""
    partial = partial_of_part(part)
    with _gone_if_it_fails(partial):
        _write(partial, content)
    partial.rename(part)


def rank_name(rank: int) -> str:
    """The directory of a worker's part in a checkpoint."""
    return f"rank_{rank}"


def _write(folder: Path, content: Content) -> None:
    names = sorted(content.values)
    keys, graph = _keys_and_graph(tuple(names), folder.parent)
    with tf.device("CPU:0"):
        tf.raw_ops.SaveV2(
            prefix=str(folder / PREFIX),
            tensor_names=[*(keys[name] for name in names), GRAPH],
            shape_and_slices=[""] * (len(names) + 1),
            tensors=[*(content.values[name] for name in names), tf.constant(graph)],
        )
    np.savez(folder / "host.npz", **content.arrays)
    (folder / "host.json").write_text(content.text)
    files.write_manifest(folder, checked=f"{PREFIX}.data")


_KNOWN: dict[tuple[str, ...], tuple[dict[str, str], bytes]] = {}


def _keys_and_graph(names: tuple[str, ...], folder: Path) -> tuple[dict[str, str], bytes]:
    """How `tf.train.Checkpoint(variables=...)` calls variables of these names in its files, and its graph of objects.

    It is asked, by a checkpoint of numbers in a folder, once for each set of names. With both, what is written is what
    it writes.
    """
    if names not in _KNOWN:
        numbers = {name: tf.Variable(tf.constant(i, tf.int64), trainable=False) for i, name in enumerate(names)}
        with (
            tempfile.TemporaryDirectory(dir=folder, prefix=".partial-step_") as own,
            _without_patterns(Path(own)) as to,
        ):
            reader = tf.train.load_checkpoint(tf.train.Checkpoint(variables=numbers).write(str(to / PREFIX)))
            graph = reader.get_tensor(GRAPH)
            found = {int(reader.get_tensor(key)): key for key in reader.get_variable_to_shape_map() if key != GRAPH}
        while len(_KNOWN) > 7:
            _KNOWN.pop(next(iter(_KNOWN)))
        _KNOWN[names] = ({name: found[i] for i, name in enumerate(names)}, graph)
    return _KNOWN[names]


def read_host(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """The host's values in a checkpoint, and the shapes and dtypes of its variables by name.

    Raises:
        DamagedCheckpointError: if a file is missing or not what was written.
    """
    try:
        listed = files.check_manifest(path)
        if (path / "host.json").stat().st_size > MOST_BYTES:
            raise files.ChangedError("host.json is not what was written")
        text = (path / "host.json").read_text()
        if listed:
            _check_tensors(path)
        else:  # before looper 0.2 the checksums of the other files stood in it
            files.check_files(path, json.loads(text)["files"])
        _check_arrays(path / "host.npz")
        with np.load(path / "host.npz", allow_pickle=False) as arrays:
            content = json.loads(text, object_hook=lambda x: arrays[x["__array__"]] if "__array__" in x else x)
        check_host(content)
        return content["host"], content["variables"]
    except files.ChangedError as error:
        raise DamagedCheckpointError(f"{path}: {error}") from None
    except FileNotFoundError as error:
        raise DamagedCheckpointError(f"{path}: {Path(error.filename or '').name} is not there") from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError, zipfile.BadZipFile) as error:
        raise DamagedCheckpointError(f"{path}: {type(error).__name__}: {first_line(error)[:200]}") from None


def _check_tensors(path: Path) -> None:
    """Raises `ChangedError` if a tensor is not what was written, as TensorFlow finds where it reads it."""
    try:
        with _without_patterns(path) as plain:
            reader = tf.train.load_checkpoint(str(plain / PREFIX))
            for name in reader.get_variable_to_shape_map():
                reader.get_tensor(name)
    except (tf.errors.OpError, RuntimeError, ValueError) as error:  # by the reader, of several kinds
        raise files.ChangedError(f"{PREFIX} is not what was written ({first_line(error)[:200]})") from None


def _check_arrays(path: Path) -> None:
    """Raises `ValueError` if arrays would be larger than their file, which holds them as they are."""
    with zipfile.ZipFile(path) as archive:
        for each in archive.infolist():
            if each.compress_type != zipfile.ZIP_STORED or each.file_size > path.stat().st_size:
                raise ValueError(f"{path.name} is not what was written")


CAPTURED = "captured/"
"""Prefix of variables that only a traced step knows of; they may be missing on either side."""


def check_variables(
    path: Path, variables: Mapping[str, tf.Variable], saved: Mapping[str, str], partly: bool = False
) -> dict[str, tf.Variable]:
    """Looks whether a checkpoint has what is to be read to these variables.

    Args:
        path: the checkpoint's directory.
        variables: where to read to, by name.
        saved: their shapes and dtypes in the checkpoint, by the same names.
        partly: whether the checkpoint may hold more than is read.

    Returns:
        Those that are in it: variables that only steps know may be missing.

    Raises:
        InputError: if another variable is missing in the checkpoint, or one has another shape or dtype there.
    """
    here = _shapes(variables)
    wanted = {name: v for name, v in variables.items() if name in saved or not name.startswith(CAPTURED)}
    different = [name for name in wanted if saved.get(name) != here[name]]
    if different:
        name = different[0]
        was = f"is {saved[name]} there" if name in saved else "is not in it"
        more = f" (and {len(different) - 1} more)" if len(different) > 1 else ""
        raise InputError(f"the checkpoint {path} is of another model: {name} {was}, here it is {here[name]}{more}.")
    unread = [name for name in saved if name not in here and not name.startswith(CAPTURED)]
    if unread and not partly:
        raise InputError(
            f"the checkpoint {path} is of another model: this trainer lacks its {unread[0]} ({saved[unread[0]]})."
        )
    return {name: v for name, v in wanted.items() if name in saved}


def read_variables(path: Path, variables: Mapping[str, tf.Variable]) -> None:
    """Reads a checkpoint's values into variables, by their names in it.

    Raises:
        DamagedCheckpointError: if the files are incomplete or corrupt.
    """
    _read(tf.train.Checkpoint(variables=dict(variables)), path, PREFIX)


def stored_variables(path: Path, names: Mapping[str, str], saved: Mapping[str, str]) -> dict[str, tf.Variable]:
    """New variables with a checkpoint's values.

    Args:
        path: the checkpoint's directory.
        names: what they are called there, by what they are to be called.
        saved: their dtypes and shapes, such as "float32[2, 3]", by the latter.

    Raises:
        DamagedCheckpointError: if the files are incomplete or corrupt.
    """
    found = {}
    for name in names:
        dtype, _, shape = saved[name].partition("[")
        sizes = [int(size) for size in shape.rstrip("]").split(",") if size]
        found[name] = tf.Variable(tf.zeros(sizes, dtype) if dtype != "string" else tf.fill(sizes, ""), trainable=False)
    if found:
        read_variables(path, {names[name]: variable for name, variable in found.items()})
    return found


def load_iterator(path: Path, iterator: Any) -> None:
    """Puts a `tf.data` iterator where the checkpoint's was. Raises DamagedCheckpointError like `read_variables`."""
    of_its_own = (path / f"{ITERATOR}.index").exists()  # before looper 0.2 it stood among the variables
    _read(tf.train.Checkpoint(iterator=iterator), path, ITERATOR if of_its_own else PREFIX)


def recover(folder: Path) -> None:
    """Tidies up after a process that was killed while it replaced a checkpoint."""
    for old in _beginning(folder, (".old-step_",)):
        name = old.name.removeprefix(".old-").rpartition("-")[0]
        if (folder / name).exists():
            shutil.rmtree(old)
        else:
            old.rename(folder / name)
    for stray in _beginning(folder, (".partial-step_", ".part-step_")):
        shutil.rmtree(stray, ignore_errors=True)
    sweep(folder)


def list_checkpoints(folder: Path) -> list[Path]:
    """The checkpoints in a directory, oldest step first; what else is there is passed over."""
    if not folder.is_dir():
        return []
    found = [entry for entry in folder.iterdir() if re.fullmatch(r"step_[0-9]{1,18}", entry.name) and entry.is_dir()]
    return sorted(found, key=step_of)


def _beginning(folder: Path, prefixes: tuple[str, ...]) -> list[Path]:
    return [entry for entry in folder.iterdir() if entry.name.startswith(prefixes)]


def step_of(path: Path) -> int:
    """The step in a checkpoint's name.

    Example:
        >>> step_of(Path("run/checkpoints/step_00000450"))
        450
    """
    return int(path.name.removeprefix("step_"))


def name_of(step: int) -> str:
    return f"step_{step:08d}"


def prune(folder: Path, keep: int, but: Iterable[Path] = ()) -> None:
    """Deletes all checkpoints but the last `keep` and those in `but`, as far as one can see them: see `sweep`."""
    spared = set(but)
    for path in list_checkpoints(folder)[:-keep]:
        if path not in spared:
            path.rename(folder / f".gone-{path.name}-{os.getpid()}")  # at once; see `sweep`


def sweep(folder: Path) -> None:
    """Removes what was deleted, which may take a while: the thread that writes the next checkpoint does it."""
    for gone in _beginning(folder, (".gone-step_",)):
        shutil.rmtree(gone, ignore_errors=True)


def _read(checkpoint: tf.train.Checkpoint, path: Path, prefix: str) -> None:
    try:
        with _without_patterns(path) as plain:
            status = checkpoint.read(str(plain / prefix)).assert_existing_objects_matched()
        status.expect_partial()  # or TensorFlow warns about the rest when the process ends
    except (tf.errors.OpError, AssertionError, OSError) as error:
        raise DamagedCheckpointError(f"{path}: {first_line(error)}") from None


@contextlib.contextmanager
def _without_patterns(folder: Path) -> Iterator[Path]:
    """The folder under a name that TensorFlow does not take for a pattern, as it does where it reads (2.21)."""
    if not any(letter in str(folder) for letter in "[]*?\\"):
        yield folder
        return
    with tempfile.TemporaryDirectory() as elsewhere:
        link = Path(elsewhere) / "checkpoint"
        link.symlink_to(folder.absolute(), target_is_directory=True)
        yield link


def _shapes(variables: Mapping[str, tf.Variable | tf.Tensor]) -> dict[str, str]:
    return {name: f"{v.dtype.name}{list(v.shape)}" for name, v in variables.items()}
