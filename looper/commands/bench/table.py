"""The results as a table for the terminal."""

from collections.abc import Mapping
from typing import Any

NAMES = {
    "raw": "raw loop by hand",
    "graph": "looper graph",
    "xla_step": "looper xla_step",
    "xla_loop": "looper xla_loop",
    "eager": "looper eager",
    "keras": "Keras fit",
    "keras_many": "Keras fit, {} steps",
}

FEW = 100
"""Batches of an epoch below which what is done at its end counts."""


def title(name: str, side: Mapping[str, Any]) -> str:
    """The name of a side.

    Example:
        >>> title("keras_many", {"steps_per_execution": 32})
        'Keras fit, 32 steps'
    """
    return NAMES[name].format(side.get("steps_per_execution"))


def table(found: Mapping[str, Any]) -> str:
    """One line for each side, and one for each that is left out."""
    sides = found["sides"]
    on_gpu = any(side["peak_gpu_memory_bytes"] is not None for side in sides.values())
    heads = ["", "us/step", "95% interval", "of raw", "95% interval", "first step", "memory"]
    heads += ["on GPU"] * on_gpu + [f"losses of first steps ({found['losses_are_compared_with']})"]
    rows = [heads]
    for name, side in sides.items():
        ratio = side.get("ratio_to_raw")
        row = [title(name, side), *_numbers(side["microseconds_per_step"])]
        row += ["", ""] if ratio is None else [f"{ratio['median']:.2f}", "{:.2f} to {:.2f}".format(*ratio["interval"])]
        row += [f"{side['first_step_seconds']:.2f} s", _bytes(side["peak_memory_bytes"])]
        row += [_bytes(side["peak_gpu_memory_bytes"])] * on_gpu + [side.get("losses", "")]
        rows.append(row)
    left_out = {NAMES[name].partition(",")[0]: why for name, why in found["left_out"].items()}
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    widths[0] = max([widths[0], *map(len, left_out)])
    lines = ["  ".join(_cell(i, cell, widths) for i, cell in enumerate(row)).rstrip() for row in rows]
    lines += [f"{name:{widths[0]}}  left out: {why}" for name, why in left_out.items()]
    length = found["batches_per_epoch"]
    if length is not None and length < FEW:
        lines.append(
            f"An epoch has {length} batches. What ends it is part of looper's and Keras' time; the raw loop goes on."
        )
    return "\n".join(lines)


def _cell(column: int, text: str, widths: list[int]) -> str:
    return text.ljust(widths[column]) if column in (0, len(widths) - 1) else text.rjust(widths[column])


def _numbers(time: Mapping[str, Any]) -> list[str]:
    digits = 1 if time["median"] < 100 else 0
    low, high = time["interval"]
    return [f"{time['median']:,.{digits}f}", f"{low:,.{digits}f} to {high:,.{digits}f}"]


def _bytes(number: int | None) -> str:
    return "" if number is None else f"{number / 2**20:,.0f} MiB"
