"""A run's whole state to a checkpoint and back, in two acts.

`read` gives facts: what was trained, in which mode, how far, where in the data. It touches no variable. `Saved.apply`
gives each variable its value, once: in a `fit` after the steps were traced, after `Trainer.restore` at once to what
there is, and to the rest when it is made. All else that must survive has `state()` and `restore(state)`, and is
taken at one place, `take`.
"""

import collections
import contextlib
import dataclasses
import json
import re
import shutil
import threading
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from looper.base.errors import InputError, SaveError
from looper.base.lines import warn
from looper.base.shown_path import shown_path
from looper.saved import checkpoint, full_disk
from looper.saved.progress import Progress
from looper.saved.variables import State
from looper.saved.workdir import Workdir
from looper.workers.exchange import Workers

Read = TypeVar("Read")


@dataclasses.dataclass(frozen=True)
class Files:
    """Files of a checkpoint that this worker reads variables from.

    Attributes:
        folder: where they are.
        saved: the shapes and dtypes of the variables in them, by the names that these have here.
        stored: the names that they have there.
        own: whether to read from them those that differ between workers (True), all others (False), or all (None).
    """

    folder: Path
    saved: Mapping[str, str]
    stored: Mapping[str, str]
    own: bool | None = None

    def check(self, state: State, variables: Mapping[str, Any], partly: bool) -> dict[str, Any]:
        """Those of the variables that are to be read from here. Raises like `checkpoint.check_variables`."""
        if self.own is not None:
            variables = {name: v for name, v in variables.items() if (name in state.own) == self.own}
        return checkpoint.check_variables(self.folder, variables, self.saved, partly)

    def read(self, variables: Mapping[str, Any]) -> None:
        """Reads them. Raises like `checkpoint.read_variables`."""
        checkpoint.read_variables(self.folder, {self.stored[name]: v for name, v in variables.items()})


@dataclasses.dataclass(frozen=True)
class Saved:
    """What is in a checkpoint.

    Attributes:
        path: the checkpoint.
        items: the states of everything but the variables, by name.
        files: where the variables are.
        load_iterator: puts a dataset's iterator where it was, or None if it was not saved.
        is_past: whether it is of a run that had nothing left to train: then a later `fit` wrote it, in which other
            variables may have been trained, and what both know is given.
        given: the names of the variables that were given their values so far.
    """

    path: Path
    items: Mapping[str, Any]
    files: Sequence[Files]
    load_iterator: Callable[[Any], None] | None
    is_past: bool = False
    given: set[str] = dataclasses.field(default_factory=set)

    @property
    def phase(self) -> Mapping[str, Mapping[str, Any]]:
        """What was trained, and how, as `looper.saved.trained.read` tells it."""
        return self.items.get("phase", {})

    def check(self, state: State, partly: bool = False) -> list[tuple[Files, dict[str, Any]]]:
        """Looks whether the variables that were not given yet can be: see `apply`. Returns which are in which files."""
        variables = {name: v for name, v in state.variables.items() if name not in self.given}
        if self.is_past:
            known = {name for each in self.files for name in each.saved}
            variables = {name: v for name, v in variables.items() if name in known}
        some = partly or self.is_past or bool(self.given)
        return [(each, each.check(state, variables, some)) for each in self.files]

    def apply(self, state: State, partly: bool = False) -> None:
        """Gives variables their values, each once: what a later call finds given may have been changed since.

        Args:
            state: the variables that there are.
            partly: whether the checkpoint may hold variables that do not exist yet.

        Raises:
            checkpoint.DamagedCheckpointError: if a file cannot be read.
            InputError: if it is of another model.
        """
        for files, variables in self.check(state, partly):
            if variables:
                files.read(variables)
                state.mirror(variables)
                self.given.update(variables)

    def write(self, path: Path, state: State | None, progress: Progress, workers: Workers) -> Path:
        """Writes variables and progress as they are now with the rest as it was. A dataset will be read up to there.

        Variables that do not exist yet have their values of this checkpoint; without a `state`, all of them.
        """
        values, own = ({}, set()) if state is None else (state.snapshot(), set(state.own))
        for files in self.files:
            stored = {name: there for name, there in files.stored.items() if name in files.saved}
            missing = {name: there for name, there in stored.items() if name not in values}
            found = checkpoint.stored_variables(files.folder, missing, files.saved)
            values |= {name: variable.read_value() for name, variable in found.items()}
            own |= missing.keys() & set(self.items.get("own", ()))
        items = {**self.items, "progress": progress.state(), "phase": self.phase if state is None else state.phase}
        return _take(path, values, own, items, None, workers).write()


class Pending:
    """A checkpoint whose state was taken, and that was begun. It can be written in any thread.

    Attributes:
        path: its directory.

    Args:
        path: see above.
        content: what it is to hold; of a worker its part.
        workers: this one, and the others.

    Raises:
        SaveError: if what must be written at once cannot be.
    """

    def __init__(self, path: Path, content: checkpoint.Content, workers: Workers) -> None:
        self.path, self._content, self._is_chief = path, content, workers.is_chief
        tag = workers.tag()
        self._others = [checkpoint.part_of(path, rank, tag) for rank in range(1, workers.size)]
        self._part = checkpoint.part_of(path, workers.rank, tag)
        chiefs, own = checkpoint.partial_of(path, tag), checkpoint.partial_of_part(self._part)
        self._partial = chiefs if workers.is_chief else own
        with _telling(path, content):
            checkpoint.begin(self._partial, content)

    def write(self, given_up: threading.Event | None = None) -> Path:
        """Writes it. Returns its directory.

        Args:
            given_up: ends the waiting for other workers.

        Raises:
            SaveError: if it cannot be written; nothing of it is left then.
            PeerLostError: if another worker does not write its part.
        """
        with _telling(self.path, self._content):
            if self._is_chief:
                return checkpoint.save(self.path, self._partial, self._content, self._others, given_up)
            checkpoint.save_part(self._part, self._content)
            return self.path

    def discard(self) -> None:
        """Leaves nothing of it: it is not written."""
        shutil.rmtree(self._partial, ignore_errors=True)


def take(path: Path, state: State, items: Mapping[str, Any], iterator: Any, workers: Workers) -> Pending:
    """Takes the state of this moment for a checkpoint; every worker its part.

    Args:
        path: the directory to make.
        state: the variables.
        items: the states of all else that must survive, by name: nested dicts and lists of JSON values and arrays.
        iterator: a dataset's, in the middle of a pass, or None.
        workers: this one, and the others.

    Raises:
        SaveError: if what must be written at once cannot be.
    """
    return _take(path, state.snapshot(), state.own, {**items, "phase": state.phase}, iterator, workers)


def _take(
    path: Path,
    values: Mapping[str, Any],
    own: Collection[str],
    items: Mapping[str, Any],
    iterator: Any,
    workers: Workers,
) -> Pending:
    host = {**items, "iterator": iterator is not None, "workers": workers.size, "own": sorted(own)}
    mine = values if workers.is_chief else {name: value for name, value in values.items() if name in own}
    return Pending(path, checkpoint.take(mine, host, iterator), workers)


@contextlib.contextmanager
def _telling(path: Path, content: checkpoint.Content) -> Iterator[None]:
    """Inside it, what the system or TensorFlow says of files is a `SaveError` of one line."""
    try:
        yield
    except (OSError, *full_disk.OF_FILES) as error:
        why = full_disk.reason(error, path.parent, content.bytes)
        raise SaveError(f"the checkpoint {shown_path(path)} cannot be written ({why}).") from error


def read(path: Path, workers: Workers, is_past: Callable[[Progress], bool] = lambda progress: False) -> Saved:
    """Reads all of a checkpoint but the variables' values; every file is looked at whether it is what was written.

    Args:
        path: the checkpoint.
        workers: this one, which has its part in it, and the others.
        is_past: tells from its progress whether there is nothing left to train.

    Raises:
        checkpoint.DamagedCheckpointError: if its files are incomplete or corrupt.
        InputError: if it was written by other workers.
    """
    host, saved = checkpoint.read_host(path)
    if host.get("workers", 1) != workers.size:
        raise InputError(
            f"the checkpoint {path} was written by {host.get('workers', 1)} worker(s), and there are {workers.size}: "
            "start as many; or resume='weights' to start anew from its weights."
        )
    stored = stored_names(saved)
    mine, folder, files = host, path, [Files(path, _by(stored, saved), stored)]
    if not workers.is_chief:
        folder = path / checkpoint.rank_name(workers.rank)
        mine, own = checkpoint.read_host(folder)
        shared = {name: kind for name, kind in files[0].saved.items() if name not in host["own"]}
        files = [Files(path, shared, stored, own=False), Files(folder, own, stored_names(own), own=True)]
    progress = Progress(**host["progress"])
    return Saved(
        path=path,
        items={**mine, "progress": host["progress"], "phase": host.get("phase", {})},
        files=files,
        load_iterator=(lambda iterator: checkpoint.load_iterator(folder, iterator)) if mine["iterator"] else None,
        is_past=is_past(progress),
    )


def stored_names(saved: Mapping[str, Any]) -> dict[str, str]:
    """The names of a checkpoint's variables there, by the names that they have here.

    A variable that only steps know was numbered among all others before looper 0.2, and is now among those like it.

    Example:
        >>> stored_names({"model/0/kernel": "", "captured/24/seed": ""})
        {'model/0/kernel': 'model/0/kernel', 'captured/0/seed': 'captured/24/seed'}
    """
    captured = {name: found for name in saved if (found := re.fullmatch(r"captured/(\d+)/(.*)", name))}
    stored = {name: name for name in saved if name not in captured}
    count: collections.Counter[str] = collections.Counter()
    for name, found in sorted(captured.items(), key=lambda item: int(item[1][1])):
        stored[f"captured/{count[found[2]]}/{found[2]}"] = name
        count[found[2]] += 1
    return stored


def _by(stored: Mapping[str, str], saved: Mapping[str, str]) -> dict[str, str]:
    return {name: saved[there] for name, there in stored.items()}


def read_latest(folder: Path, is_past: Callable[[Progress], bool], workers: Workers) -> Saved | None:
    """Reads the newest checkpoint that is whole. None if there is none at all. Arguments and errors as of `read`."""
    if workers.size == 1:
        return _newest(folder, lambda path: read(path, workers, is_past))
    path = _told(workers, lambda: latest_whole(folder))
    return None if path is None else read(path, workers, is_past)


def latest_whole(folder: Path) -> Path | None:
    """The newest checkpoint whose files are what was written. None if there is none at all. Raises like `_newest`."""

    def read(path: Path) -> Path:
        host, _ = checkpoint.read_host(path)
        for rank in range(1, host.get("workers", 1)):
            checkpoint.read_host(path / checkpoint.rank_name(rank))
        return path

    return _newest(folder, read)


def _told(workers: Workers, find: Callable[[], Path | None]) -> Path | None:
    """Tells all workers what the chief finds, and what it finds wrong."""
    found, wrong = None, ""
    if workers.is_chief:
        try:
            found = find()
        except InputError as error:
            wrong = str(error)
    name, wrong = json.loads(workers.texts(json.dumps([str(found or ""), wrong]))[0])
    if wrong:
        raise InputError(wrong)
    return Path(name) if name else None


def take_over(workdir: Workdir, config: Mapping[str, Any], resume: str | bool, workers: Workers) -> Path | None:
    """Makes a directory ready for a run that begins: an old one is continued, or its files are set aside.

    Returns:
        The old checkpoint to take the weights from, for `resume="weights"`.

    Raises:
        InputError: if a run of another configuration would be continued, or there are no weights.
    """
    if resume in ("auto", True):
        workdir.check_same(config)
        return None
    return _told(workers, lambda: _set_aside(workdir, resume))


def _set_aside(workdir: Workdir, resume: str | bool) -> Path | None:
    whole = latest_whole(workdir.checkpoints) if resume == "weights" else None
    if resume == "weights" and whole is None:
        raise InputError(f"resume='weights': there is no checkpoint in {workdir.checkpoints}.")
    previous = workdir.set_aside()
    return whole and previous / whole.name


def _newest(folder: Path, read: Callable[[Path], Read]) -> Read | None:
    """Reads the newest checkpoint; a damaged one is named in a warning, and the one before it is read.

    Raises:
        InputError: if all are damaged.
    """
    paths = checkpoint.list_checkpoints(folder)
    for path in reversed(paths):
        try:
            return read(path)
        except checkpoint.DamagedCheckpointError as error:
            warn(f"a checkpoint is damaged, the one before it is used: {error}")
    if paths:
        raise InputError(
            f"all checkpoints in {folder} are damaged: resume=False starts anew and keeps them in previous/."
        )
    return None


def load_weights(path: Path, layers: State) -> None:
    """Reads a checkpoint's values of the layers' variables alone.

    Seeds stay as they are. A replica that the checkpoint does not know gets the values of the first one.
    """
    _, saved = checkpoint.read_host(path)
    variables = {name: v for name, v in layers.variables.items() if "seed_generator_state" not in name}
    others = {name: name.partition("@")[0] for name in variables if "@" in name and name not in saved}
    known = checkpoint.check_variables(
        path, {name: v for name, v in variables.items() if name not in others}, saved, partly=True
    )
    checkpoint.read_variables(path, known)
    layers.mirror(known)
    for name, first in others.items():
        variables[name].assign(known[first].read_value())
