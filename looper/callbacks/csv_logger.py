"""Write one line of comma-separated values per epoch."""

import csv
from pathlib import Path

from looper.base.errors import InputError
from looper.run.callback import Callback, Logs, Run


class CSVLogger(Callback):
    """Appends a row for each epoch, evaluation included, to a CSV file.

    The columns are `epoch`, `step`, and everything that is logged, by name. What an epoch lacks is left empty. A
    continued run drops the rows after its step and appends.

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
        self._file = self.path or run.workdir / "log.csv"
        self._columns: list[str] = []
        self._row: dict[str, float] | None = None
        self._logged: dict[str, float] = {}  # by callbacks, since the last row
        rows = self._read() if run.first_step else []
        self._file.parent.mkdir(parents=True, exist_ok=True)
        self._file.write_text("")
        if rows:
            self._columns = list(rows[0])
            self._write([row for row in rows if int(row["step"]) <= run.first_step], header=True)

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
        header = not self._columns
        if header:
            names = set(row) | self.run.log_names
            self._columns = ["epoch", "step", *sorted(names - {"epoch", "step", "window"})]
        self._write([row], header)

    def _read(self) -> list[dict[str, str]]:
        if not self._file.exists():
            return []
        with self._file.open(newline="") as file:
            return list(csv.DictReader(file))

    def _write(self, rows: list[dict], header: bool) -> None:
        with self._file.open("a", newline="") as file:
            writer = csv.DictWriter(file, self._columns, restval="", extrasaction="ignore", lineterminator="\n")
            if header:
                writer.writeheader()
            writer.writerows(rows)
