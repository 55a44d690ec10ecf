"""`execution="auto"`: measures the modes on the first batches of a run, and picks the fastest.

What it costs is bounded: a share of the expected run, and of a mode that it tries the compilation and two steps.
"""

import dataclasses
import math
import statistics
import time
from collections.abc import Mapping
from typing import Any

from looper.base import xla
from looper.base.options import XLA_MODES
from looper.step.trial import Modes

SHARE = 0.05
"""The share of the expected run that may be spent on measuring."""

LEAST_STEPS = 1000
"""In a shorter run not even the small models, which compile soon, are worth measuring: see `SECONDS_TO_COMPILE`."""

MOST_BYTES = 1 << 30
"""More state than this is not kept twice to put it back."""

SECONDS_TO_COMPILE, SECONDS_PER_OPERATION = 0.7, 0.0017
"""Seconds that XLA takes to compile on a CPU, about: in all, and for each operation."""

LASTING = xla.UNSEEDED | {"PyFunc", "EagerPyFunc", "PrintV2", "WriteSummary", "WriteScalarSummary"}
"""Operations with an effect that is in no variable: counters of random numbers, and what Python or a file sees."""

MOST_COMPILING = 15.0
"""Seconds. A longer compilation must be asked for."""

MOST_SECONDS = 3.0
"""More measuring than this gains nothing."""

WORSE, CALL_SECONDS = 2.0, 0.002
"""A mode is dropped if one step alone takes so many times as long as in the graph, and this much for the call."""

ROUNDS, STEPS = 7, 100
"""How often each mode is measured, and the most steps each time."""

GAIN = 0.97
"""The graph is left only for a mode that takes less than this share of its time."""


@dataclasses.dataclass(frozen=True)
class Choice:
    """Which mode was chosen, and why.

    Attributes:
        mode: the mode.
        why: in one line.
        table: by mode `seconds_per_step`, `compile_seconds`, what the `first_steps_seconds` were of the two that tried
            it, or in `left_out` why it was not measured.
        seconds: that the choice took, compilations included.
    """

    mode: str
    why: str
    table: Mapping[str, Mapping[str, Any]] = dataclasses.field(default_factory=dict)
    seconds: float = 0.0

    @property
    def compared(self) -> bool:
        """Whether another mode than the graph was compiled."""
        return any("compile_seconds" in row for row in self.table.values())

    def __str__(self) -> str:
        rows = [f"{mode} {_cell(row)}" for mode, row in self.table.items()]
        return (
            f"execution: {self.mode}, because {self.why} (per step: {', '.join(rows)}; chosen in {self.seconds:.1f} s)"
        )

    def markdown(self) -> str:
        """The table for TensorBoard."""
        rows = [
            f"| {mode} | {_cell(row)} | {row.get('compile_seconds', 0.0):.1f} |" for mode, row in self.table.items()
        ]
        head = ["| mode | a step | seconds to compile |", "| --- | --- | --- |"]
        return "\n".join([f"{self.mode}: {self.why}", "", *head, *rows])


def _cell(row: Mapping[str, Any]) -> str:
    return f"{row['seconds_per_step'] * 1e6:,.0f} us" if "seconds_per_step" in row else row["left_out"]


def choose(modes: Modes, steps: int | None, seconds: float | None) -> Choice:
    """Measures the modes if that pays, and picks one. All that it does is put back.

    Args:
        modes: what may be picked.
        steps: that are left to run, or None if it is not known.
        seconds: after which the run will be stopped, or None.
    """
    if steps is None and seconds is None:
        return Choice("graph", "it is not known how long the run will be")
    if steps is not None and steps < LEAST_STEPS:
        return Choice("graph", f"a run of {steps} steps is too short to measure others")
    if modes.state_bytes() > MOST_BYTES:
        return Choice(
            "graph", f"the state is more than {MOST_BYTES >> 30} GiB, too much to be kept twice for measuring"
        )
    unfit = {mode: reason for mode in XLA_MODES if (reason := modes.unfit(mode)) is not None}
    if len(unfit) == len(XLA_MODES):
        return Choice("graph", unfit[XLA_MODES[0]], {mode: {"left_out": reason} for mode, reason in unfit.items()})
    operations = modes.operations()
    lasting = sorted(operations.keys() & LASTING)
    if lasting:
        return Choice("graph", f"what {', '.join(lasting)} does cannot be put back after measuring")
    compiling = SECONDS_TO_COMPILE + operations.total() * SECONDS_PER_OPERATION
    if compiling > MOST_COMPILING:
        return Choice("graph", f"XLA would compile for about {compiling:.0f} s, which must be asked for")
    with modes.put_back():
        return _measure(modes, steps, seconds, unfit, compiling)


def _measure(
    modes: Modes, steps: int | None, seconds: float | None, unfit: Mapping[str, str], compiling: float
) -> Choice:
    began = time.perf_counter()
    modes.seconds("graph", 1)  # the first call of a function is not like the others
    once = modes.seconds("graph", 1)
    most = min(modes.between or STEPS, STEPS)

    def budget(step: float) -> float:
        return SHARE * min(math.inf if steps is None else steps * step, math.inf if seconds is None else seconds)

    graph = once
    if compiling <= budget(once):
        count = max(1, min(most, int(min(budget(once), MOST_SECONDS) / (4 * once))))
        graph = modes.seconds("graph", count) / count
    left = min(budget(graph), MOST_SECONDS)
    table: dict[str, dict[str, Any]] = {"graph": {"seconds_per_step": graph}}
    for mode in XLA_MODES:
        if mode in unfit:
            table[mode] = {"left_out": unfit[mode]}
        elif compiling > budget(graph):
            of_run = f"{SHARE:.0%} of the run are {budget(graph):.1f} s"
            table[mode] = {"left_out": f"not tried: it would compile for about {compiling:.0f} s, and {of_run}"}
        else:
            table[mode] = _try(modes, mode, once)
    contenders = [mode for mode, row in table.items() if "left_out" not in row]
    if len(contenders) > 1:
        count = max(1, min(most, int(left / (ROUNDS * len(contenders) * graph))))
        times: dict[str, list[float]] = {mode: [] for mode in contenders}
        while left > 0 and len(times["graph"]) < ROUNDS:
            for mode in contenders:
                took = modes.seconds(mode, count)
                times[mode].append(took / count)
                left -= took
        for mode, found in times.items():
            table[mode]["seconds_per_step"] = statistics.median(found)
    per_step = {mode: table[mode]["seconds_per_step"] for mode in contenders}
    fastest = min(per_step, key=per_step.get)
    mode = fastest if per_step[fastest] < GAIN * per_step["graph"] else "graph"
    why = "it is the fastest" if len(contenders) > 1 else "no other mode was worth measuring"
    return Choice(mode, why, table, time.perf_counter() - began)


def _try(modes: Modes, mode: str, once: float) -> dict[str, Any]:
    """Compiles a mode, and runs a step or two to see whether it is worth measuring."""
    began = time.perf_counter()
    reason = modes.why_not(mode)
    row: dict[str, Any] = {"compile_seconds": time.perf_counter() - began}
    if reason is not None:
        return row | {"left_out": reason}
    firsts = [modes.seconds(mode, 1) for _ in range(2)]
    row["first_steps_seconds"], alone = sum(firsts), min(firsts)
    if alone > WORSE * once + CALL_SECONDS:
        return row | {
            "left_out": f"dropped: one step alone takes {alone * 1e3:,.1f} ms, in the graph {once * 1e3:,.1f}"
        }
    return row
