"""The results as a chart."""

import importlib.util
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from looper.commands.bench.options import MODES
from looper.commands.bench.table import title


def can_draw() -> bool:
    """Whether matplotlib is installed."""
    return importlib.util.find_spec("matplotlib") is not None


def draw(found: Mapping[str, Any], path: Path) -> None:
    """Writes a PNG: time per step of each side with its interval, on a logarithmic axis. Needs matplotlib."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogLocator, NullFormatter

    sides = found["sides"]
    times = [side["microseconds_per_step"] for side in sides.values()]
    figure = Figure(figsize=(8, 1.5 + 0.45 * len(sides)), layout="constrained")
    axes = figure.subplots()
    for i, (name, time) in enumerate(zip(sides, times, strict=True)):
        error = [[time["median"] - time["interval"][0]], [time["interval"][1] - time["median"]]]
        color = "tab:blue" if name in MODES else "tab:gray"
        axes.errorbar(time["median"], i, xerr=error, fmt="o", color=color, capsize=4)
        axes.annotate(f"{time['median']:,.0f}", (time["median"], i), (0, 7), textcoords="offset points", ha="center")
    axes.set_yticks(range(len(sides)), [title(name, side) for name, side in sides.items()])
    axes.set_ylim(-0.7, len(sides) - 0.4)
    axes.grid(axis="x", which="both", alpha=0.3)
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter("{x:,.0f}")
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.margins(x=0.1)
    axes.invert_yaxis()
    axes.set_xlabel("microseconds per step: median over bursts, 95% interval")
    axes.set_title(found["recipe"])
    figure.savefig(path, dpi=150)
