"""The results as a chart."""

import importlib.util
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from looper.bench.table import title


def can_draw() -> bool:
    """Whether matplotlib is installed."""
    return importlib.util.find_spec("matplotlib") is not None


def draw(found: Mapping[str, Any], path: Path) -> None:
    """Writes a PNG: time per step of each side with its interval, on a logarithmic axis. Needs matplotlib."""
    from matplotlib.figure import Figure

    sides = found["sides"]
    times = [side["microseconds_per_step"] for side in sides.values()]
    medians = [time["median"] for time in times]
    errors = [[t["median"] - t["interval"][0] for t in times], [t["interval"][1] - t["median"] for t in times]]
    colors = ["tab:gray" if name == "raw" or name.startswith("keras") else "tab:blue" for name in sides]
    figure = Figure(figsize=(8, 1.5 + 0.45 * len(sides)), layout="constrained")
    axes = figure.subplots()
    axes.barh([title(name, side) for name, side in sides.items()], medians, xerr=errors, color=colors, capsize=3)
    for i, time in enumerate(times):
        axes.annotate(
            f"{time['median']:,.0f}", (time["interval"][1], i), (6, 0), textcoords="offset points", va="center"
        )
    axes.set_xscale("log")
    axes.margins(x=0.15)
    axes.invert_yaxis()
    axes.set_xlabel("microseconds per step: median over bursts, 95% interval")
    axes.set_title(found["recipe"])
    figure.savefig(path, dpi=150)
