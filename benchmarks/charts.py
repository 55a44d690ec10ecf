"""Draws what `benchmarks.hot_step` measured: a panel for each model, a bar for each way to train it.

    pip install -e '.[bench]'
    python -m benchmarks.charts

Reads `benchmarks/results/hot_step_MODEL[_EXECUTION].json`, writes `benchmarks/results/hot_step.png`. looper has a bar
for each of its modes that there is a file of; what else is in several files is drawn from that of `auto`.
"""

import argparse
import json
from pathlib import Path
from typing import Any

from matplotlib import pyplot

from benchmarks.problems import PROBLEMS

RESULTS = Path(__file__).parent / "results"
OURS, THEIRS = "tab:orange", "tab:gray"


def rows(results: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Microseconds per step by who took them, the fastest first; looper's modes by name."""
    found: dict[str, dict[str, Any]] = {}
    for result in results:
        for title, times in result["microseconds per step"].items():
            found.setdefault(f"looper, {result['execution']}" if title == "looper" else title, times)
    return dict(sorted(found.items(), key=lambda row: row[1]["median"]))


def draw(axes: Any, model: str, times: dict[str, dict[str, Any]]) -> None:
    """Horizontal bars with their intervals; logarithmic, because the ways to train are far apart."""
    medians = [time["median"] for time in times.values()]
    sides = [[abs(time["interval"][side] - time["median"]) for time in times.values()] for side in (0, 1)]
    colors = [OURS if title.startswith("looper") else THEIRS for title in times]
    bars = axes.barh(list(times), medians, xerr=sides, color=colors, ecolor="black", capsize=3)
    axes.bar_label(bars, [f"{median:,.0f}" for median in medians], padding=6)
    axes.set_xscale("log")
    axes.set_xlim(min(medians) / 2, max(medians) * 3)
    axes.invert_yaxis()
    axes.set_title(f"{model} (batch {PROBLEMS[model].batch})")
    axes.set_xlabel("microseconds per step, median and 95% interval")
    axes.spines[["top", "right"]].set_visible(False)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--results", type=Path, default=RESULTS, help="the folder of the JSON files")
    parser.add_argument("--out", type=Path, default=RESULTS / "hot_step.png", help="the PNG file to write")
    arguments = parser.parse_args()
    results = [json.loads(path.read_text()) for path in sorted(arguments.results.glob("hot_step_*.json"))]
    results.sort(key=lambda result: result["execution"] != "auto")
    by_model = {model: [one for one in results if one["model"] == model] for model in PROBLEMS}
    panels = {model: rows(found) for model, found in by_model.items() if found}
    if not panels:
        raise SystemExit(f"{arguments.results} has no results: python -m benchmarks.hot_step --model mlp --peers all")
    heights = [1.5 + 0.4 * len(times) for times in panels.values()]
    figure, axes = pyplot.subplots(
        len(panels), figsize=(9, sum(heights)), height_ratios=heights, layout="constrained", squeeze=False
    )
    for panel, (model, times) in zip(axes.flat, panels.items(), strict=True):
        draw(panel, model, times)
    figure.savefig(arguments.out, dpi=120)
    print(arguments.out)


if __name__ == "__main__":
    main()
