"""The directory of one run: which configuration it belongs to, and what a new run does with an old one's files."""

import contextlib
import json
import os
import re
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from looper.base.differences import differences
from looper.base.errors import InputError
from looper.saved import checkpoint, lock
from looper.saved.files import naming, sync
from looper.workers.exchange import Workers

KEPT = ("previous", "logs", lock.FILE)
"""What stays where a new run begins: older runs, what the launcher writes, what other processes may have open."""

SHARED_SECONDS = 10.0
"""How long a file of the chief's may take to be seen by the other workers: network file systems keep copies."""


def check_writable(path: Path) -> None:
    """Makes a directory, and raises `InputError` if that or writing to it fails."""
    try:
        path.mkdir(parents=True, exist_ok=True)
        probe = path / f".writable-{os.getpid()}"
        probe.touch()
        probe.unlink(missing_ok=True)  # of workers in containers, each the process of the same number
    except OSError as error:
        raise InputError(f"workdir={str(path)!r}: cannot write there ({error.strerror}).") from None


def check_shared(path: Path, workers: Workers) -> None:
    """Raises `InputError`, on all workers, if one of them does not see what the chief writes to its directory."""
    mark = path / f".job-{workers.job}"
    if workers.is_chief:
        mark.touch()
    workers.wait()
    seen = workers.gather([checkpoint.appears(mark, SHARED_SECONDS)])[:, 0]
    if workers.is_chief:
        mark.unlink()
    if not seen.all():
        blind = workers.describe(int(seen.argmin()))
        raise InputError(
            f"workdir={str(path)!r}: {blind} does not see what worker 0 writes there: give a directory on "
            "storage that all workers share."
        )


class Workdir:
    """A run's directory.

    Attributes:
        path: the directory.
        checkpoints: the directory of its checkpoints.

    Args:
        path: the directory; it is made.
        workers: all of them must see it; only the chief changes what is in it.

    Raises:
        InputError: if it cannot be written to, or is not the same directory on all workers.
    """

    def __init__(self, path: Path, workers: Workers | None = None) -> None:
        self.path, self.checkpoints = path, path / "checkpoints"
        self._is_chief = workers is None or workers.is_chief
        check_writable(path)
        self.checkpoints.mkdir(exist_ok=True)
        if self._is_chief:
            checkpoint.recover(self.checkpoints)
            self._clean()
        if workers is not None and workers.size > 1:
            check_shared(path, workers)

    def _clean(self) -> None:
        """Removes what a process that died was writing, or did not use any more."""
        for entry in self.path.iterdir():
            if re.fullmatch(r"\.(writable|job|(run|config|execution|options|metrics|log)\.\w+)-\w+", entry.name):
                entry.unlink(missing_ok=True)

    def sweep(self) -> None:
        """Removes checkpoints that were deleted."""
        if self._is_chief and self.checkpoints.is_dir():
            checkpoint.sweep(self.checkpoints)

    def check_same(self, config: Mapping[str, Any]) -> None:
        """Raises `InputError`, with what differs, if the directory holds a run of another configuration."""
        if not checkpoint.list_checkpoints(self.checkpoints):
            return
        try:
            saved = json.loads((self.path / "config.json").read_text())
        except (OSError, ValueError):
            return  # without it there is nothing to compare with
        # how the steps are run is in the checkpoint, too, and "auto" is whatever it says there
        same = {"options": saved.get("options", {}) | {"execution": config["options"]["execution"]}}
        different = differences(saved | same, config)
        if different:
            more = f"; and {len(different) - 6} more" if len(different) > 6 else ""
            raise InputError(
                f"the workdir {self.path} holds a run of another configuration: {'; '.join(different[:6])}{more}. Give "
                "another workdir; or resume='weights' to start anew from its weights, resume=False to start anew "
                "(its files are kept in previous/)."
            )

    def set_aside(self) -> Path | None:
        """Moves an old run's files to `previous/N`. Returns where its checkpoints are now, None if it had none.

        For the chief alone. The launcher's `logs/` stay: it is writing them.
        """
        if not checkpoint.list_checkpoints(self.checkpoints):
            return None
        old = [entry for entry in self.path.iterdir() if entry.name not in KEPT]
        folder = self._new_previous()
        for entry in old:
            entry.rename(folder / entry.name)
        self.checkpoints.mkdir()
        return folder / "checkpoints"

    def set_aside_after(self, step: int) -> None:
        """Moves checkpoints of later steps to `previous/N`: the run was put back to `step` by hand."""
        if not self._is_chief:
            return
        later = [path for path in checkpoint.list_checkpoints(self.checkpoints) if checkpoint.step_of(path) > step]
        if later:
            folder = self._new_previous() / "checkpoints"
            folder.mkdir()
            for path in later:
                path.rename(folder / path.name)

    def _new_previous(self) -> Path:
        number = 1
        while (self.path / "previous" / str(number)).exists():
            number += 1
        folder = self.path / "previous" / str(number)
        folder.mkdir(parents=True)
        return folder

    def write_config(self, config: Mapping[str, Any]) -> None:
        """Notes the configuration that the run in this directory began with."""
        if checkpoint.list_checkpoints(self.checkpoints) and (self.path / "config.json").exists():
            return
        self._write("config.json", config)

    def write_execution(self, choice: Mapping[str, Any]) -> None:
        """Notes how the mode of the steps was chosen."""
        self._write("execution.json", choice)

    def write_run(self, status: str, step: int, about: Mapping[str, Any]) -> None:
        """Notes how training stands (running, finished, interrupted or failed), and what this process is."""
        now = time.strftime("%Y-%m-%dT%H:%M:%S%z")
        with contextlib.suppress(OSError):  # it is told why a run failed, and a disk may be full
            self._write("run.json", {"status": status, "step": step, "time": now, "pid": os.getpid(), **about})

    def _write(self, name: str, content: Mapping[str, Any]) -> None:
        if not self._is_chief:
            return
        partial = self.path / f".{name}-{os.getpid()}"
        try:
            with naming(partial):
                partial.write_text(json.dumps(content, indent=1, default=str) + "\n")
            sync(partial)
            partial.replace(self.path / name)
        except OSError:
            partial.unlink(missing_ok=True)
            raise
