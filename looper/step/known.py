"""What earlier processes measured of the modes: kept in the user's cache folder, so that the next ones need not."""

import contextlib
import hashlib
import json
import math
import os
import statistics
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from looper.base import user_cache
from looper.base.options import XLA_MODES

Table = dict[str, dict[str, Any]]
Kept = TypeVar("Kept")

MOST_FILES = 1000
"""Measurements; the oldest ones go."""

COMPILING = "compiling-"
"""How files begin that hold how long compiling took, as shares of what was expected, the newest last."""
MOST_RATIOS = 32
"""In such a file."""
LEAST, MOST = 0.1, 20.0
"""What such a share may be; another one is an accident."""


class Known:
    """The measurements of one program.

    Args:
        facts: all that its speed depends on, as far as one can see: operations, shapes, devices.

    Example:
        >>> from unittest import mock
        >>> with mock.patch.dict(os.environ, LOOPER_CACHE="off"):
        ...     Known("a small model").read()
    """

    def __init__(self, facts: Any) -> None:
        self._path = _kept_as(f"{hashlib.sha256(repr(facts).encode()).hexdigest()[:32]}.json")

    def read(self) -> Table | None:
        """What was measured, as `Choice.table` has it; None if nothing was, or it cannot be understood."""
        return _read(self._path, _checked)

    def write(self, table: Mapping[str, Mapping[str, Any]]) -> None:
        """Keeps a table, if a mode of XLA was measured for it."""
        measured = {mode: row for mode, row in table.items() if "seconds_per_step" in row}
        if measured.keys() & set(XLA_MODES):
            _write(self._path, measured)


class Compiling:
    """How much longer than expected XLA compiles on this machine, by what earlier processes saw.

    Args:
        device: the kind of device that it compiles for.

    Example:
        >>> from unittest import mock
        >>> with mock.patch.dict(os.environ, LOOPER_CACHE="off"):
        ...     Compiling("CPU").ratio()
        1.0
    """

    def __init__(self, device: str) -> None:
        self._path = _kept_as(f"{COMPILING}{device}")

    def ratio(self) -> float:
        """The median of what was seen; 1 if nothing was."""
        return statistics.median(_read(self._path, _ratios) or [1.0])

    def note(self, ratio: float) -> None:
        """Takes note of how long compiling took, as a share of what was expected without any note."""
        found = _read(self._path, _ratios) or []
        _write(self._path, [*found, min(max(ratio, LEAST), MOST)][-MOST_RATIOS:])


def _kept_as(name: str) -> Path | None:
    """Where a file of this machine is kept; None if nothing is to be kept."""
    root = user_cache.folder()
    return None if root is None else root / f"modes-{user_cache.machine()}" / name


def _read(path: Path | None, checked: Callable[[Any], Kept]) -> Kept | None:
    """What a file holds, if it is there and can be understood; else None."""
    if path is None or not path.is_file() or user_cache.make_private(path.parent):
        return None
    try:
        return checked(json.loads(path.read_text()))
    except (OSError, ValueError, TypeError, KeyError, OverflowError, RecursionError):
        return None


def _write(path: Path | None, content: Any) -> None:
    """Writes a file at once, if that can be done; the oldest ones of its folder go."""
    if path is None or user_cache.make_private(path.parents[1]) or user_cache.make_private(path.parent):
        return
    own = path.with_name(f"{path.name}.{os.getpid()}")
    with contextlib.suppress(OSError):
        own.write_text(json.dumps(content))
        os.replace(own, path)
        _prune(path.parent)


def _ratios(found: Any) -> list[float]:
    """Shares of what was expected. Raises `ValueError` or `TypeError` if they are none."""
    ratios = [float(ratio) for ratio in found]
    if not all(LEAST <= ratio <= MOST for ratio in ratios):
        raise ValueError("no share")
    return ratios


def _checked(found: Any) -> Table:
    """The table. Raises `ValueError`, `TypeError` or `KeyError` if it is none."""
    table = {
        mode: {key: float(found[mode][key]) for key in found[mode]} for mode in ("graph", *XLA_MODES) if mode in found
    }
    for row in table.values():
        if not all(math.isfinite(value) and value >= 0 for value in row.values()) or row["seconds_per_step"] <= 0:
            raise ValueError("no duration")
    if "graph" not in table or len(table) < 2:
        raise ValueError("nothing to compare")
    return table


def _prune(folder: Path) -> None:
    kept = sorted(folder.iterdir(), key=lambda path: path.stat().st_mtime)
    for path in kept[:-MOST_FILES]:
        path.unlink(missing_ok=True)
