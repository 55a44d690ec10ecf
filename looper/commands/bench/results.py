"""From what the sides measured to what is reported, and to the verdict about the overhead."""

import os
import platform
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from typing import Any

import numpy as np

from looper.commands.bench import statistics
from looper.commands.bench.options import RAW, BenchOptions
from looper.commands.bench.rounds import Burst

SAME = 1e-5
"""Relative difference up to which losses count as the same."""


def results(
    recipe: str,
    options: Sequence[str],
    started: Mapping[str, Mapping[str, Any]],
    bursts: Mapping[str, Sequence[Burst]],
    left_out: Mapping[str, str],
) -> dict[str, Any]:
    """The content of `bench.json`.

    Args:
        recipe: its file and class.
        options: that it was given.
        started: for each side what its process said, before and after the bursts.
        bursts: of each side.
        left_out: why the others are not among them.
    """
    reference = RAW if RAW in started else next(iter(started))
    any_side = started[reference]
    sides = {}
    for name, said in started.items():
        side = {
            "microseconds_per_step": statistics.microseconds(bursts[name]),
            "bursts": len(bursts[name]),
            "steps_per_burst": said["steps"],
            "first_step_seconds": said["first_step_seconds"],
            "peak_memory_bytes": said["peak_memory_bytes"],
            "peak_gpu_memory_bytes": said["peak_gpu_memory_bytes"],
            "losses_of_first_steps": said["losses"],
        }
        if "steps_per_execution" in said:
            side["steps_per_execution"] = said["steps_per_execution"]
        if RAW in bursts and name != RAW:
            side["ratio_to_raw"] = statistics.ratio(bursts[name], bursts[RAW])
        if name != reference:
            side["losses"] = compared(said["losses"], started[reference]["losses"], said["random"])
        sides[name] = side
    return {
        "recipe": recipe,
        "options": list(options),
        "sides": sides,
        "left_out": dict(left_out),
        "losses_are_compared_with": reference,
        "batches_per_epoch": any_side["batches_per_epoch"],
        "machine": {
            "processor": platform.processor() or platform.machine(),
            "cpus": os.cpu_count(),
            "gpus": any_side["gpus"],
            "python": platform.python_version(),
        },
        "versions": {name: version(name) for name in ("tensorflow", "keras")},
    }


def compared(losses: Sequence[float] | None, others: Sequence[float] | None, random: Sequence[str]) -> str:
    """Says whether the losses of the first steps of two sides agree.

    Example:
        >>> compared([2.0, 1.0], [2.0, 1.000001], [])
        'same to 1e-05'
        >>> compared([2.0, 1.0], [2.0, 1.1], ["Dropout"])
        'differ because of Dropout'
        >>> compared([2.0, 1.0], [2.0, 1.1], [])
        'differ by 9e-02'
    """
    if losses is None or others is None:
        return "not logged"
    ours, theirs = np.asarray(losses), np.asarray(others)
    count = min(len(ours), len(theirs))
    difference = np.max(np.abs(ours[:count] - theirs[:count]) / np.maximum(np.abs(theirs[:count]), 1e-12))
    if difference <= SAME:
        return f"same to {SAME:.0e}"
    return f"differ because of {', '.join(random)}" if random else f"differ by {difference:.0e}"


def verdict(found: Mapping[str, Any], mode: str, options: BenchOptions) -> tuple[bool, str]:
    """Whether looper's time per step keeps `max_overhead`, and the line that says so.

    It is broken only if the whole interval lies above it.
    """
    ratio = found["sides"][mode]["ratio_to_raw"]
    low, high = ratio["interval"]
    said = f"{mode} takes {ratio['median']:.3f} of the raw loop's time per step (95% interval {low:.3f} to {high:.3f})"
    bound = f"--max-overhead {options.max_overhead:g}"
    if low > options.max_overhead:
        return False, f"{bound} is broken: {said}."
    within = "kept" if high <= options.max_overhead else "not shown to be broken"
    return True, f"{bound} is {within}: {said}."
