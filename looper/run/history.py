"""The rows that a run logged, in memory and in `metrics.jsonl`."""

import json
import math
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from looper.base.own_logs import is_own

METRICS_FILE = "metrics.jsonl"
"""In the workdir: a row of the history a line."""


OF_EPOCH = "epoch/"
"""Names begin with it in a row that holds the means over an epoch."""


def is_of_epoch(row: Mapping[str, float]) -> bool:
    """Whether a row of `metrics.jsonl` holds the means over an epoch.

    Example:
        >>> is_of_epoch({"step": 45, "epoch": 0, "epoch/loss": 0.5})
        True
    """
    return any(name.startswith(OF_EPOCH) for name in row)


class History:
    """The rows that were logged: training windows (`loss`, ...) and evaluations (`eval/loss`, ...).

    Attributes:
        rows: dicts with `step`, `epoch` and the values logged then.
        epochs: the means over each epoch that has ended, by name: one value an epoch, as those of Keras' `fit`. A
            metric of a class of one's own is among them only if it was logged once an epoch.

    Example:
        >>> history = History()
        >>> history.add({"step": 10, "epoch": 0, "loss": 0.5})
        >>> history.add({"step": 20, "epoch": 0, "loss": 0.25})
        >>> history["loss"], history.steps("loss"), "eval/loss" in history
        ([0.5, 0.25], [10, 20], False)
        >>> history.end_epoch({"step": 20, "epoch": 0, "loss": 0.375})
        >>> history.epochs["loss"]
        [0.375]
        >>> history
        History of 20 steps: loss 0.25
    """

    def __init__(self) -> None:
        self.rows: list[dict[str, float]] = []
        self._epochs: list[Mapping[str, float]] = []

    def __repr__(self) -> str:
        """One line: how far training is, and the last losses and metrics."""
        if not self.rows:
            return "History: nothing was logged yet"
        last: dict[str, float] = {}
        for row in self.rows:
            last |= row
        shown = [
            f"{name} {value:.4g}"
            for name, value in last.items()
            if value is not None and not is_own(name.removeprefix("eval/"))
        ]
        return f"History of {last['step']} steps: {', '.join(shown)}"

    def add(self, row: Mapping[str, float]) -> None:
        self.rows.append(dict(row))

    def end_epoch(self, row: Mapping[str, float]) -> None:
        """Adds the means over an epoch."""
        self._epochs.append(row)

    @property
    def epochs(self) -> dict[str, list[float]]:
        names = {name for row in self._epochs for name in row} - {"step", "epoch"}
        return {name: [row[name] for row in self._epochs if name in row] for name in sorted(names)}

    def __getitem__(self, name: str) -> list[float]:
        """All values of one log, in order. Raises KeyError if it was never logged."""
        values = [row[name] for row in self.rows if name in row]
        if not values:
            raise KeyError(f"{name!r} was not logged; there are {sorted(self.names())}")
        return values

    def __contains__(self, name: str) -> bool:
        """Whether it was ever logged."""
        return any(name in row for row in self.rows)

    def __iter__(self) -> Iterator[str]:
        """The names of the logs."""
        return iter(sorted(self.names()))

    def steps(self, name: str) -> list[int]:
        """The steps at which one log was taken."""
        return [int(row["step"]) for row in self.rows if name in row]

    def names(self) -> set[str]:
        return {name for row in self.rows for name in row} - {"step", "epoch"}

    def load(self, path: Path, until_step: int, epochs: int) -> None:
        """Takes the rows of a `metrics.jsonl` up to a step and of so many epochs; the others are logged again."""
        found = rows_until(read_rows(path), until_step, epochs)
        self.rows = [row for row in found if not is_of_epoch(row)]
        self._epochs = [
            {name.removeprefix(OF_EPOCH): value for name, value in row.items()} for row in found if is_of_epoch(row)
        ]


def rows_until(rows: Iterable[dict[str, float]], step: int, epochs: int) -> list[dict[str, float]]:
    """The rows up to a step. Where an epoch ends after a checkpoint of the same step, its row is not among them."""
    return [row for row in rows if row["step"] <= step and not (is_of_epoch(row) and row["epoch"] >= epochs)]


def read_rows(path: Path) -> list[dict[str, float]]:
    """The rows of a `metrics.jsonl`; none if there is no such file."""
    return rows_and_others(path)[0]


def rows_and_others(path: Path) -> tuple[list[dict[str, float]], list[str]]:
    """The rows of a `metrics.jsonl`, and its lines that are none; a last line that was cut off is neither."""
    if not path.exists():
        return [], []
    *lines, cut_off = path.read_bytes().split(b"\n")
    found = [_row(line) for line in (*lines, cut_off)]
    others = [line for line, row in zip(lines, found, strict=False) if row is None and line.strip()]
    return [row for row in found if row is not None], [line.decode(errors="backslashreplace") for line in others]


def _row(line: bytes) -> dict[str, float] | None:
    """The row that a line holds, or None."""
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(row, dict) or not all(_is_count(row.get(name)) for name in ("step", "epoch")):
        return None
    numbers = all(value is None or isinstance(value, int | float) for value in row.values())
    return row if numbers else None


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def as_line(row: Mapping[str, float]) -> str:
    """A row as a line of JSON; numbers that are not finite become null."""
    return json.dumps({k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in row.items()}) + "\n"
