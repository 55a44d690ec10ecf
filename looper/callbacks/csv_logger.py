"""Write one line of comma-separated values per epoch."""

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from looper.base.errors import InputError
from looper.run.callback import Callback, Logs, Run
from looper.saved.lines_file import LinesFile


class CSVLogger(Callback):
    """Appends a row for each epoch, evaluation included, to a CSV file.

    The columns are `epoch`, `step`, and everything that is logged, by name. What an epoch lacks is left empty. A
    continued run drops the rows after its step and appends; what is logged from then on has columns at the end.

    Args:
        path: the file; default: `WORKDIR/log.csv`.

    Raises:
        InputError: when `fit` begins, if there is neither a path nor a workdir.

    Example:
        >>> CSVLogger("runs/log.csv").path
        PosixPath('runs/log.csv')
    """

    chief_only = True

    def __init__(self, path: str | Path | None = None) -> None:
        self.path = None if path is None else Path(path)

    def on_fit_begin(self, run: Run) -> None:
        if self.path is None and run.workdir is None:
            raise InputError("the CSVLogger callback needs a file: give the Trainer workdir= or it path=.")
        self._file = LinesFile((self.path or run.workdir / "log.csv").absolute())
        self._row: dict[str, float] | None = None
        self._logged: dict[str, float] = {}  # by callbacks, since the last row
        self._columns, rows, others = self._read() if run.first_step else ([], [], [])
        self._file.set_aside(others)
        kept = [row for row in rows if int(row["step"]) <= run.first_step]
        self._file.replace([self._text(kept, header=True)] if self._columns else [])

    def on_save(self, step: int, path: Path) -> None:
        self._file.sync()  # before the checkpoint that goes on from these rows

    def on_fit_end(self) -> None:
        self._file.close()

    def on_exception(self, error: BaseException) -> None:
        self._file.close()

    def on_epoch_end(self, epoch: int, logs: Logs) -> None:
        self._row = dict(logs)

    def on_eval_end(self, step: int, logs: Logs) -> None:
        if self._row is not None:
            self._row |= logs

    def on_log(self, step: int, logs: Logs) -> None:
        self._logged |= {name: value for name, value in logs.items() if name not in ("step", "epoch")}

    def on_boundary_end(self, step: int) -> None:
        if self._row is None:
            return
        row, self._row, self._logged = self._row | self._logged, None, {}
        names = set(row) if self._columns else set(row) | self.run.log_names
        more = sorted(names - {"epoch", "step", "window", *self._columns})
        first = not self._columns
        if more and not first and not self._file.waits:  # else they have columns when there is room again
            rows = self._read()[1]
            self._columns = [*self._columns, *more]
            self._file.replace([self._text(rows, header=True)])
        self._columns = self._columns or ["epoch", "step", *more]
        self._file.append(self._text([row], header=first))

    def _read(self) -> tuple[list[str], list[dict[str, str]], list[str]]:
        """The columns, the rows, and lines that are neither; the last one may have been cut off."""
        if not self._file.path.exists():
            return [], [], []
        text = self._file.path.read_bytes().decode(errors="backslashreplace")
        head, *lines = text[: text.rfind("\n") + 1].splitlines() or [""]
        columns = next(csv.reader([head]), [])
        if "step" not in columns:
            return [], [], [line for line in (head, *lines) if line.strip()]
        rows, others = [], []
        for line in lines:
            values = next(csv.reader([line]), [])
            row = dict(zip(columns, values, strict=False))
            whole = len(values) == len(columns) and row["step"].isdigit()
            rows += [row] if whole else []
            others += [] if whole or not line.strip() else [line]
        return columns, rows, others

    def _text(self, rows: Sequence[Mapping[str, Any]], header: bool) -> str:
        text = io.StringIO()
        writer = csv.DictWriter(text, self._columns, restval="", extrasaction="ignore", lineterminator="\n")
        if header:
            writer.writeheader()
        writer.writerows(rows)
        return text.getvalue()
