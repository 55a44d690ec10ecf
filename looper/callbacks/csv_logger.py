"""Write one line of comma-separated values per epoch."""

import csv
from pathlib import Path

from looper.base.errors import InputError
from looper.run.callback import Callback, Logs, Run


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
        self._file = (self.path or run.workdir / "log.csv").absolute()
        self._row: dict[str, float] | None = None
        self._logged: dict[str, float] = {}  # by callbacks, since the last row
        self._columns, rows = self._read() if run.first_step else ([], [])
        self._file.parent.mkdir(parents=True, exist_ok=True)
        self._file.write_text("")
        if self._columns:
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
        names = set(row) if self._columns else set(row) | self.run.log_names
        more = sorted(names - {"epoch", "step", "window", *self._columns})
        if more:
            _, rows = self._read() if self._columns else ([], [])
            self._columns = [*(self._columns or ["epoch", "step"]), *more]
            self._file.write_text("")
            self._write(rows, header=True)
        self._write([row], header=False)

    def _read(self) -> tuple[list[str], list[dict[str, str]]]:
        """The columns and the rows that are whole: the last one may have been cut off."""
        if not self._file.exists():
            return [], []
        text = self._file.read_text(errors="replace")
        reader = csv.DictReader(text[: text.rfind("\n") + 1].splitlines())
        rows = [row for row in reader if _is_whole(row)]
        return list(reader.fieldnames or ()), rows

    def _write(self, rows: list[dict], header: bool) -> None:
        with self._file.open("a", newline="") as file:
            writer = csv.DictWriter(file, self._columns, restval="", extrasaction="ignore", lineterminator="\n")
            if header:
                writer.writeheader()
            writer.writerows(rows)


def _is_whole(row: dict[str | None, str | None]) -> bool:
    """Whether a row has as many values as there are columns, and a step."""
    return None not in row and None not in row.values() and str(row.get("step", "")).isdigit()
