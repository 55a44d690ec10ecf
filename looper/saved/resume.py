"""A run's whole state to a checkpoint and back: variables, progress, data position, metric windows, callbacks."""

import dataclasses
import json
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from looper.base.errors import InputError
from looper.data import Feed
from looper.recipe.metrics import Window
from looper.saved import by_identity, checkpoint
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
        saved: the shapes and dtypes of the variables in them, by name.
        own: whether to read from them those that differ between workers (True), all others (False), or all (None).
    """

    folder: Path
    saved: Mapping[str, str]
    own: bool | None = None

    def read(self, state: State, variables: Mapping[str, Any], partly: bool) -> set[str]:
        """Reads those of the variables that are to be read from here. Returns their names; see `load_variables`."""
        if self.own is not None:
            variables = {name: v for name, v in variables.items() if (name in state.own) == self.own}
        return checkpoint.load_variables(self.folder, variables, self.saved, partly)


@dataclasses.dataclass(frozen=True)
class Restored:
    """The content of a checkpoint besides variables, for `fit` to hand out.

    Attributes:
        path: the checkpoint.
        progress: how far training was.
        window: `Window.state`.
        feed: `Feed.state`.
        load_iterator: puts a dataset's iterator where it was, or None if it was not saved.
        callbacks: their states, by the keys of `looper.saved.by_identity`.
        phase: what was trained, and how, as of `looper.saved.trained.read`.
        files: where the variables are.
        loaded: the names of the variables that were read so far.
    """

    path: Path
    progress: Progress
    window: Mapping[str, Any]
    feed: Mapping[str, int]
    load_iterator: Callable[[Any], None] | None
    callbacks: Mapping[str, Mapping[str, Any]]
    phase: Mapping[str, Mapping[str, Any]]
    files: Sequence[Files]
    loaded: set[str]

    def load_rest(self, state: State) -> None:
        """Reads the variables that did not exist yet when the checkpoint was loaded."""
        rest = {name: v for name, v in state.variables.items() if name not in self.loaded}
        if rest:
            found = set().union(*(files.read(state, rest, partly=True) for files in self.files))
            state.mirror(found)
            self.loaded.update(found)

    def write(self, path: Path, state: State, workers: Workers) -> Path:
        """Writes the variables as they are now with the rest as it was. A dataset will be read up to its position."""
        self.load_rest(state)
        return _save(path, state, self.progress, self.window, self.feed, self.callbacks, None, workers)

    def give_states(self, callbacks: Sequence[by_identity.Identified]) -> None:
        """Restores the callbacks that have a state in the checkpoint."""
        by_identity.give(self.callbacks, callbacks)


def write(
    path: Path,
    state: State,
    progress: Progress,
    feed: Feed | None,
    window: Window,
    callbacks: Sequence[by_identity.Identified],
    workers: Workers,
) -> Path:
    """Writes a checkpoint of this moment; every worker its part. `feed` is None before the first `fit`.

    Raises:
        InputError: if the directory cannot be written to.
    """
    states = {key: callback.state() for key, callback in by_identity.keyed(callbacks).items()}
    position = {"number": 0, "batch": 0} if feed is None else feed.state()
    iterator = None if feed is None else feed.saved_iterator
    return _save(path, state, progress, window.state(), position, states, iterator, workers)


def _save(
    path: Path,
    state: State,
    progress: Progress,
    window: Mapping[str, Any],
    feed: Mapping[str, int],
    callbacks: Mapping[str, Any],
    iterator: Any,
    workers: Workers,
) -> Path:
    host = {
        "progress": dataclasses.asdict(progress),
        "window": window,
        "feed": feed,
        "iterator": iterator is not None,
        "callbacks": callbacks,
        "phase": state.phase,
        "workers": workers.size,
        "own": sorted(state.own),
    }
    tag = workers.tag()
    try:
        if workers.is_chief:
            others = [checkpoint.part_of(path, rank, tag) for rank in range(1, workers.size)]
            return checkpoint.save(path, state.variables, host, iterator, others)
        own = {name: v for name, v in state.variables.items() if name in state.own}
        checkpoint.save_part(checkpoint.part_of(path, workers.rank, tag), own, host, iterator)
        return path
    except OSError as error:
        raise InputError(f"the checkpoint {path} cannot be written: {error.strerror or error}.") from error


def load(
    path: Path,
    state_in: Callable[[Mapping[str, Any]], State],
    workers: Workers,
    partly: Callable[[], bool] = lambda: False,
    passed: Callable[[Progress], bool] = lambda progress: False,
) -> Restored:
    """Reads a checkpoint's variables and returns the rest.

    Args:
        path: the checkpoint.
        state_in: the state to read to, once what is trained is what the given phase says; `{}` leaves it as it is.
        workers: this one, which reads its part, and the others.
        partly: tells, once there is the state, whether the checkpoint may hold variables that do not exist yet.
        passed: tells from the checkpoint's progress whether there is nothing left to train: then a later `fit` wrote
            it, in which other variables may have been trained, and what both know is read.

    Raises:
        checkpoint.DamagedCheckpointError: if its files are incomplete or corrupt.
        InputError: if it is of another model.
    """
    host, saved = checkpoint.read_host(path)
    if host.get("workers", 1) != workers.size:
        raise InputError(
            f"the checkpoint {path} was written by {host.get('workers', 1)} worker(s), and there are {workers.size}: "
            "start as many; or resume='weights' to start anew from its weights."
        )
    mine, folder, files = host, path, [Files(path, saved)]
    if not workers.is_chief:
        folder = path / checkpoint.rank_name(workers.rank)
        mine, own = checkpoint.read_host(folder)
        shared = {name: kind for name, kind in saved.items() if name not in host["own"]}
        files = [Files(path, shared, own=False), Files(folder, own, own=True)]
    progress = Progress(**host["progress"])
    phase = host.get("phase", {})
    over = passed(progress)
    state = state_in({} if over else phase)
    variables = state.variables
    if over:
        known = {name for each in files for name in each.saved}
        variables = {name: v for name, v in variables.items() if name in known}
    some = over or partly()
    loaded = set().union(*(each.read(state, variables, some) for each in files))
    state.mirror(loaded)
    return Restored(
        path=path,
        progress=progress,
        window=host["window"],
        feed=mine["feed"],
        load_iterator=(lambda iterator: checkpoint.load_iterator(folder, iterator)) if mine["iterator"] else None,
        callbacks=mine["callbacks"],
        phase=phase,
        files=files,
        loaded=loaded,
    )


def load_latest(
    folder: Path, state_in: Callable[[Mapping[str, Any]], State], passed: Callable[[Progress], bool], workers: Workers
) -> Restored | None:
    """Loads the newest checkpoint that is whole. None if there is none at all. Arguments and errors as of `load`."""
    if workers.size == 1:
        return _newest(folder, lambda path: load(path, state_in, workers, passed=passed))
    path = _told(workers, lambda: latest_whole(folder))
    return None if path is None else load(path, state_in, workers, passed=passed)


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
            warnings.warn(f"a checkpoint is damaged, the one before it is used: {error}", stacklevel=2)
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
    known = {name: v for name, v in variables.items() if name not in others}
    layers.mirror(checkpoint.load_variables(path, known, saved, partly=True))
    for name, first in others.items():
        variables[name].assign(known[first].read_value())
