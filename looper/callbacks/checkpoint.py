"""Write checkpoints: the last few, and the best by a log."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from looper.base.errors import check_positive
from looper.callbacks.monitor import Monitor
from looper.run.callback import Best, Run
from looper.saved import checkpoint


class Checkpoint(Monitor):
    """Keeps the last `keep` checkpoints, and with `best=` also the one with the best value of a log.

    One is on by default with a workdir. When checkpoints are written, besides the best one, is `fit`'s `save_every`.

    Args:
        keep: how many of the last to keep.
        best: a log's name, such as "eval/accuracy"; a checkpoint is written each time it is the best so far.
        mode: "min", "max" or "auto" (see `Best`).

    Raises:
        InputError: if `keep` is not positive; when `fit` begins, if nothing called `best` is logged, or there is
            no workdir.

    Example:
        >>> Checkpoint(keep=3, best="eval/accuracy").keep
        3
    """

    def __init__(self, keep: int = 3, best: str | None = None, mode: str = "auto") -> None:
        check_positive("keep", keep)
        self.keep = keep
        self.best = None if best is None else Best(best, mode)
        self._asked: list[int] = []  # steps that were the best when they were reached
        self._written: int | None = None  # the last one of these whose checkpoint there is

    @property
    def best_path(self) -> Path | None:
        """The directory of the best checkpoint, or None."""
        if self.best is None or self.best.step is None or self.run.workdir is None:
            return None
        return self.run.workdir / "checkpoints" / checkpoint.name_of(self.best.step)

    def on_fit_begin(self, run: Run) -> None:
        run.check_workdir("Checkpoint")
        super().on_fit_begin(run)

    def _look(self, better: bool) -> None:
        if better:
            self._asked.append(self.best.step)
            self.run.save()

    def on_saved(self, step: int, path: Path) -> None:
        self._note(step)
        if self.run.is_chief:
            self._prune()

    def _note(self, step: int) -> None:
        """Takes note of a checkpoint that was written."""
        if step in self._asked:
            self._written = step
        self._asked = [asked for asked in self._asked if asked > step]

    def state(self) -> dict[str, Any]:
        return super().state() | {"written": self._written, "asked": self._asked}

    def restore(self, state: Mapping[str, Any]) -> None:
        super().restore(state)
        self._asked, self._written = list(state.get("asked", [])), state.get("written")
        for step in sorted(self._asked):  # the state is of before its own checkpoint was written
            if (self.run.workdir / "checkpoints" / checkpoint.name_of(step)).is_dir():
                self._note(step)
        if self.run.is_chief:
            self._prune()  # what a process that died had no time for

    def _prune(self) -> None:
        folder = self.run.workdir / "checkpoints"
        # a better one may be on its way, and may never come
        best = None if self.best is None else self.best.step
        steps = [step for step in (self._written, best) if step is not None]
        checkpoint.prune(folder, self.keep, [folder / checkpoint.name_of(step) for step in steps])
