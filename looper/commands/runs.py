"""`looper runs DIR`: the runs in a directory, as a table; of two runs, what differs between them."""

import json
import os
import platform
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from looper.base.differences import differences
from looper.base.errors import InputError
from looper.base.own_logs import is_own
from looper.commands.options import Parser
from looper.run.history import METRICS_FILE, is_of_epoch, read_rows

UNITS = (("d", 86_400), ("h", 3_600), ("m", 60), ("s", 1))


def runs(argv: list[str]) -> int:
    """Prints them. Returns the exit code."""
    parser = Parser("runs", "The runs below a directory; or what differs between two runs.")
    parser.add_argument("directory", type=Path, help="a run's directory, or one with several runs in it")
    parser.add_argument("other", type=Path, nargs="?", help="a second run's directory: compare the two")
    parser.add_argument("--json", action="store_true", help="print everything as JSON")
    known = parser.parse_args(argv)
    if known.other is not None:
        compared = compare(known.directory, known.other)
        print(json.dumps(compared, indent=1) if known.json else "\n".join(_worded(compared)))
        return 0
    found = [summary(path.parent, known.directory) for path in run_files(known.directory)]
    if not found:
        raise InputError(f"there are no runs in {known.directory}: train with workdir={str(known.directory)!r}.")
    found.sort(key=lambda run: run["age"])
    print(json.dumps(found, indent=1) if known.json else _table(found))
    return 0


def run_files(directory: Path) -> list[Path]:
    """The `run.json` of each run below a directory; those that were set aside by a later one are left out."""
    files = directory.glob("**/run.json")
    return sorted(file for file in files if "previous" not in file.relative_to(directory).parts)


def summary(workdir: Path, below: Path) -> dict[str, Any]:
    """A run in a few values: `age` is in seconds, `last` has losses and metrics by name, `best` the losses."""
    run = _read(workdir / "run.json")
    rows = [row for row in read_rows(workdir / METRICS_FILE) if not is_of_epoch(row)]
    last: dict[str, float] = {}
    best: dict[str, float] = {}
    for row in rows:
        for name, value in row.items():
            if value is None or is_own(name.removeprefix("eval/")) or name.endswith("/examples"):
                continue
            last[name] = value
            if name.endswith("loss"):
                best[name] = min(value, best.get(name, value))
    speeds = [row["steps_per_second"] for row in rows if row.get("steps_per_second")]
    return {
        "name": str(workdir.relative_to(below)) if workdir != below else workdir.resolve().name,
        "status": _status(run),
        "step": run.get("step", 0),
        "last": last,
        "best": best,
        "age": max(0.0, time.time() - (workdir / "run.json").stat().st_mtime),
        "steps_per_second": speeds[-1] if speeds else None,
        "command": run.get("command"),
    }


def compare(one: Path, other: Path) -> dict[str, Any]:
    """What differs between two runs: in configuration, and in the last and best values."""
    summaries = []
    for workdir in (one, other):
        if not (workdir / "run.json").is_file():
            raise InputError(f"there is no run in {workdir}: it has no run.json.")
        summaries.append(summary(workdir, workdir))
    configs = [_read(workdir / "config.json") for workdir in (one, other)]
    results = {
        f"{kind} {name}": [found[kind].get(name) for found in summaries]
        for kind in ("last", "best")
        for name in sorted({name for found in summaries for name in found[kind]})
    }
    words = (f"in {one} is", f"in {other} is")
    return {
        "runs": [str(one), str(other)],
        "configuration": differences(configs[0], configs[1], words=words),
        "results": {"step": [found["step"] for found in summaries]} | results,
    }


def _read(file: Path) -> dict[str, Any]:
    try:
        return json.loads(file.read_text())
    except (OSError, ValueError):
        return {}


def _status(run: Mapping[str, Any]) -> str:
    """As it was noted last; "killed" if a process that was training on this machine is gone."""
    status = run.get("status", "unknown")
    if status != "running" or run.get("host") != platform.node():
        return status
    try:
        os.kill(int(run["pid"]), 0)
    except ProcessLookupError:
        return "killed"
    except (OSError, KeyError, ValueError):
        pass  # another user's
    return status


def _table(found: list[dict[str, Any]]) -> str:
    rows = [("run", "status", "step", "last", "best", "age", "steps/s", "to continue")]
    for run in found:
        values = [
            " ".join(f"{name} {value:.4g}" for name, value in _shown(run[kind]).items()) for kind in ("last", "best")
        ]
        speed = "" if run["steps_per_second"] is None else f"{run['steps_per_second']:,.1f}"
        goes_on = "" if run["status"] == "finished" else run["command"] or ""
        rows.append((run["name"], run["status"], str(run["step"]), *values, _age(run["age"]), speed, goes_on))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(f"{cell:{width}}" for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )


def _shown(values: Mapping[str, float]) -> dict[str, float]:
    """Those of evaluations if there are any, else of training; at most three."""
    evaluated = {name: value for name, value in values.items() if name.startswith("eval/")}
    return dict(list((evaluated or values).items())[:3])


def _age(seconds: float) -> str:
    """As "5m".

    Example:
        >>> _age(7300), _age(0.2)
        ('2h', '0s')
    """
    unit, length = next(((unit, length) for unit, length in UNITS if seconds >= length), UNITS[-1])
    return f"{int(seconds // length)}{unit}"


def _worded(compared: Mapping[str, Any]) -> list[str]:
    one, other = compared["runs"]
    lines = compared["configuration"] or ["the same configuration"]
    results = [
        f"{name}: {_number(values[0])} in {one}, {_number(values[1])} in {other}"
        for name, values in compared["results"].items()
    ]
    return [*lines, *results]


def _number(value: float | None) -> str:
    return "nothing" if value is None else f"{value:.6g}"
