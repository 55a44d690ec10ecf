"""`execution="auto"`: measures the modes on the first batches of a run, and picks the fastest.

Whether a mode is compiled depends on what hardly varies from run to run: the operations of a step, the length of the
run, and whether the graph's time goes to launching operations or to arithmetic. Times decide among what was compiled.
"""

import dataclasses
import math
import statistics
import time
from collections.abc import Mapping
from typing import Any

import tensorflow as tf

from looper.base import xla, xla_cache
from looper.base.options import XLA_MODES
from looper.step.known import Compiling, Known, Table
from looper.step.trial import Modes

SHARE = 0.05
"""The share of the expected run, in the mode that is expected to be chosen, that may be spent on measuring."""

CHEAP = 0.15
"""The share of the expected run that compiling may take, whatever it gains. One that takes more must be expected to
pay: for a gain that is not known no rule is better than 1.28 to 1.48 times the best (ski rental: Karlin et al., 1988).
"""

SECOND = 0.08
"""The share that both modes of XLA together may take to compile, of the run as it is expected to be in the first: if
that can be used, there is little left to gain."""

GAINS = ((1e-6, 3.0), (6e-6, 2.0), (30e-6, 1.3), (float("inf"), 1.1))
"""How many times as fast XLA's steps are expected to be, where the graph takes up to so many seconds for an operation:
where its time goes to launching operations, much; where it goes to arithmetic, little. From eight models on a CPU."""

LEAST_STEPS = 300
"""In a shorter run measuring itself takes too large a share."""

MOST_BYTES = 1 << 30
"""More state than this is not kept twice to put it back."""

SECONDS_TO_COMPILE, SECONDS_PER_OPERATION = 0.35, 0.00125
"""Seconds that XLA takes to compile on a CPU, about: in all, and for each operation. What this machine took before
stretches both."""

LASTING = xla.UNSEEDED | {"PyFunc", "EagerPyFunc", "PrintV2", "WriteSummary", "WriteScalarSummary"}
"""Operations with an effect that is in no variable: counters of random numbers, and what Python or a file sees."""

MOST_SECONDS = 6.0
"""More measuring than this gains nothing."""

WORSE, CALL_SECONDS = 10.0, 0.02
"""A mode is dropped if one step alone takes so many times as long as in the graph, and this much for the call: on busy
machines a single call may take any time. Of a slower mode fewer steps are measured, in proportion."""

PROBES, PROBE_STEPS = 3, 8
"""How often the graph is measured before a mode is compiled, and with how many steps, a hundredth of the run at most:
one alone takes longer, as the call counts."""

CALL, FEWEST = 0.25, 3
"""Seconds of a call that is measured, if there is time for so many of each mode: the run's own are as long."""

WAITS, SLOW = 2.0, 0.005
"""Where a batch takes so many times as long to be read as a step in the graph, and so many seconds, no other mode can
gain anything. The first batches come one by one, which alone takes up to a millisecond on busy machines."""

ROUNDS, STEPS = 7, 100
"""How often each mode is measured, and the most steps each time."""

LOADED = 0.5
"""What it takes to trace a step and load its program, which an earlier process has kept, as a share of compiling it."""

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


def choose(modes: Modes, steps: int | None, seconds: float | None, alone: bool = True) -> Choice:
    """Measures the modes if that pays, and picks one. All that it does is put back.

    Args:
        modes: what may be picked.
        steps: that are left to run, or None if it is not known.
        seconds: after which the run will be stopped, or None.
        alone: whether one process decides by itself, so that what an earlier one measured may be used.
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
    if any("Conv" in name for name in operations) and not tf.config.list_logical_devices("GPU"):
        unfit.setdefault("xla_loop", "convolutions in a loop of XLA are slow on a CPU")
    lasting = sorted(operations.keys() & LASTING)
    if lasting:
        return Choice("graph", f"what {', '.join(lasting)} does cannot be put back after measuring")
    known = Known((modes.facts(), sorted(operations.items()))) if alone else None
    table = None if known is None else known.read()
    if table is not None and (choice := _by_what_is_known(table, unfit, steps, seconds)) is not None:
        return choice
    expected = SECONDS_TO_COMPILE + operations.total() * SECONDS_PER_OPERATION
    compiling = Compiling("GPU" if tf.config.list_logical_devices("GPU") else "CPU")
    with modes.put_back():
        stretched = expected * (compiling.ratio() if alone else 1.0)
        choice = _measure(modes, steps, seconds, unfit, operations.total(), stretched)
    if known is not None:
        known.write(choice.table)
        for row in choice.table.values():
            if row.get("compiled"):
                compiling.note(row["compile_seconds"] / expected)
    return choice


def is_worth(compiling: float, run: float, gain: float) -> bool:
    """Whether to compile a mode, if none was compiled before.

    Args:
        compiling: seconds that it would take.
        run: seconds that the run would take in the graph.
        gain: how many times as fast the mode is expected to be.

    Example:
        >>> is_worth(1.0, 10.0, gain=1.1), is_worth(1.0, 5.0, gain=1.1), is_worth(1.0, 5.0, gain=2.0)
        (True, False, True)
    """
    return compiling <= CHEAP * run or compiling < run * (1 - 1 / gain)


def _by_what_is_known(
    table: Table, unfit: Mapping[str, str], steps: int | None, seconds: float | None
) -> Choice | None:
    """The mode with which the run ends first, by what an earlier process measured; None if that says too little."""
    if any(mode in unfit for mode in table):
        return None
    graph = table["graph"]["seconds_per_step"]
    left = min(math.inf if steps is None else steps, math.inf if seconds is None else seconds / graph)

    def takes(mode: str) -> float:
        row = table[mode]
        return left * row["seconds_per_step"] + LOADED * row.get("compile_seconds", 0.0)

    mode = min(table, key=takes)
    return Choice(mode, "a process before has measured it", table)


def _measure(
    modes: Modes,
    steps: int | None,
    seconds: float | None,
    unfit: Mapping[str, str],
    operations: int,
    compiling: float,
) -> Choice:
    began = time.perf_counter()
    most = min(modes.between or STEPS, STEPS)

    def run(step: float) -> float:
        return min(math.inf if steps is None else steps * step, math.inf if seconds is None else seconds)

    modes.seconds("graph", 1)  # the first call of a function is not like the others
    once = modes.seconds("graph", 1)
    graph, probing = once, 0.0
    if is_worth(compiling, run(once), GAINS[0][1]):
        few = min(PROBE_STEPS, int(run(once) / once / 100))
        count = max(1, min(most, max(few, int(min(SHARE * run(once), MOST_SECONDS) / (4 * PROBES * once)))))
        probes = [modes.seconds("graph", count) for _ in range(PROBES)]
        graph, probing = min(probes) / count, sum(probes)  # what else the machine does only adds to it
    data = modes.data_seconds()
    if data is not None and data > max(WAITS * graph, SLOW):
        why = f"the data comes at {1 / data:,.0f} batches/s, and steps in the graph would take {1 / graph:,.0f}"
        return Choice("graph", why, {"graph": {"seconds_per_step": graph}}, time.perf_counter() - began)
    gain = next(gain for seconds, gain in GAINS if graph / operations <= seconds)
    faster = run(graph / gain)
    table: dict[str, dict[str, Any]] = {"graph": {"seconds_per_step": graph}, **{mode: {} for mode in XLA_MODES}}
    alone: dict[str, float] = {"graph": once}
    tried = False
    for mode in reversed(XLA_MODES):  # the likeliest first
        if mode in unfit:
            table[mode] = {"left_out": unfit[mode]}
        elif 2 * compiling <= SECOND * faster if tried else is_worth(compiling, run(graph), gain):
            table[mode], alone[mode] = _try(modes, mode, once)
            tried = "left_out" not in table[mode]
        else:
            more, than = ("both", f"{faster:.1f} s then") if tried else ("it", f"{run(graph):.1f} s in the graph")
            seconds_more = compiling * (2 if tried else 1)
            table[mode] = {
                "left_out": f"not tried: {more} would compile for about {seconds_more:.1f} s, and the run takes about "
                f"{than}"
            }
    contenders = [mode for mode, row in table.items() if "left_out" not in row]
    if len(contenders) > 1:
        budget = min(SHARE * faster, MOST_SECONDS)
        left = max(budget - probing, budget / 2)
        call = max(left / ROUNDS, min(CALL * len(contenders), left / FEWEST)) / len(contenders)
        count = max(1, min(most, int(call / graph)))
        counts = {mode: max(1, int(count * min(1.0, once / alone[mode]))) for mode in contenders}
        times: dict[str, list[float]] = {mode: [] for mode in contenders}
        while left > 0 and len(times["graph"]) < ROUNDS:
            for mode in contenders:
                took = modes.seconds(mode, counts[mode])
                times[mode].append(took / counts[mode])
                left -= took
        for mode, found in times.items():
            table[mode]["seconds_per_step"] = statistics.median(found)
    per_step = {mode: table[mode]["seconds_per_step"] for mode in contenders}
    fastest = min(per_step, key=per_step.get)
    mode = fastest if per_step[fastest] < GAIN * per_step["graph"] else "graph"
    why = "it is the fastest" if len(contenders) > 1 else "no other mode was worth measuring"
    return Choice(mode, why, table, time.perf_counter() - began)


def _try(modes: Modes, mode: str, once: float) -> tuple[dict[str, Any], float]:
    """Compiles a mode, and runs a step or two to see whether it is worth measuring: also returns what one takes."""
    began, programs = time.perf_counter(), xla_cache.new_programs()
    reason = modes.why_not(mode)
    row: dict[str, Any] = {"compile_seconds": time.perf_counter() - began}
    if reason is not None:
        return row | {"left_out": reason}, once
    row["compiled"] = float(xla_cache.new_programs() > programs)  # and not loaded
    firsts = [modes.seconds(mode, 1) for _ in range(2)]
    row["first_steps_seconds"], alone = sum(firsts), min(firsts)
    if alone > WORSE * once + CALL_SECONDS:
        row["left_out"] = f"dropped: one step alone takes {alone * 1e3:,.1f} ms, in the graph {once * 1e3:,.1f}"
    return row, alone
