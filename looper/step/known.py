"""What earlier processes measured of the modes: kept in the user's cache folder, so that the next ones need not."""

import contextlib
import hashlib
import json
import math
import os
import statistics
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from looper.base import user_cache
from looper.base.options import XLA_MODES

Table = dict[str, dict[str, Any]]

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
        root = user_cache.folder()
        key = hashlib.sha256(repr(facts).encode()).hexdigest()[:32]
        self._path = None if root is None else root / f"modes-{user_cache.machine()}" / f"{key}.json"

    def read(self) -> Table | None:
        """What was measured, as `Choice.table` has it; None if nothing was, or it cannot be understood."""
        if self._path is None or not self._path.is_file() or user_cache.make_private(self._path.parent):
            return None
        try:
            return _checked(json.loads(self._path.read_text()))
        except (OSError, ValueError, TypeError, KeyError, OverflowError, RecursionError):
            return None

    def write(self, table: Mapping[str, Mapping[str, Any]]) -> None:
        """Keeps a table, if a mode of XLA was measured for it."""
        measured = {mode: row for mode, row in table.items() if "seconds_per_step" in row}
        if self._path is None or not measured.keys() & set(XLA_MODES):
            return
        root, own = self._path.parents[1], self._path.with_suffix(f".{os.getpid()}")
        if user_cache.make_private(root) or user_cache.make_private(self._path.parent):
            return
        with contextlib.suppress(OSError):
            own.write_text(json.dumps(measured))
            os.replace(own, self._path)
            _prune(self._path.parent)


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
        root = user_cache.folder()
        self._path = None if root is None else root / f"modes-{user_cache.machine()}" / f"{COMPILING}{device}"

    def ratio(self) -> float:
        """The median of what was seen; 1 if nothing was."""
        found = self._read()
        return statistics.median(found) if found else 1.0

    def note(self, ratio: float) -> None:
        """Takes note of how long compiling took, as a share of what was expected without any note."""
        ratio = min(max(ratio, LEAST), MOST)
        if self._path is None or user_cache.make_private(self._path.parents[1]):
            return
        if user_cache.make_private(self._path.parent):
            return
        own = self._path.with_name(f"{self._path.name}.{os.getpid()}")
        with contextlib.suppress(OSError):
            own.write_text(json.dumps([*self._read(), ratio][-MOST_RATIOS:]))
            os.replace(own, self._path)

    def _read(self) -> list[float]:
        if self._path is None or not self._path.is_file() or user_cache.make_private(self._path.parent):
            return []
        try:
            found = [float(ratio) for ratio in json.loads(self._path.read_text())]
        except (OSError, ValueError, TypeError, OverflowError, RecursionError):
            return []
        return found if all(LEAST <= ratio <= MOST for ratio in found) else []


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
