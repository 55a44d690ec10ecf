"""`execution="auto"`: measures the modes on the first batches of a run, and picks the fastest.

Whether a mode is compiled depends on what hardly varies from run to run: the operations of a step, the length of the
run, and whether the graph's time goes to launching operations or to arithmetic. Times decide among what was compiled.
"""

import collections
import dataclasses
import math
import statistics
import time
from collections.abc import Collection, Mapping
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

WAITS, SLOW = 2.0, 0.02
"""Where a batch takes so many times as long to be read as a step in the graph, and so many seconds, no other mode can
gain anything. A thread reads the first batches one by one while another traces: it waits for Python's lock, 5 ms
a time (`sys.getswitchinterval`), so that fast data may look slow."""

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
        table: by mode `seconds_per_step`, `compile_seconds`, whether it was `compiled` and not loaded, what the
            `first_steps_seconds` were of the two that tried it, or in `left_out` why it was not measured.
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
    unfit = unfit_modes(modes)
    if len(unfit) == len(XLA_MODES):
        return Choice("graph", unfit[XLA_MODES[0]], {mode: {"left_out": reason} for mode, reason in unfit.items()})
    operations = modes.operations()
    if "xla_loop" not in unfit and (reason := why_not_looped(operations)):
        unfit["xla_loop"] = reason
    lasting = sorted(operations.keys() & LASTING)
    if lasting:
        return Choice("graph", f"what {', '.join(lasting)} does cannot be put back after measuring")
    known = Known((modes.facts(), sorted(operations.items()))) if alone else None
    table = None if known is None else known.read()
    run = _Run(steps, seconds)
    if table is not None and (choice := _by_what_is_known(table, unfit, run)) is not None:
        return choice
    expected, compiling = expected_seconds(operations), Compiling("GPU" if _on_gpu() else "CPU")
    with modes.put_back():
        stretched = expected * (compiling.ratio() if alone else 1.0)
        choice = _measure(modes, run, unfit, operations.total(), stretched)
    if known is not None:
        known.write(choice.table)
        for row in choice.table.values():
            if row.get("compiled"):
                compiling.note(row["compile_seconds"] / expected)
    return choice


def _on_gpu() -> bool:
    return bool(tf.config.list_logical_devices("GPU"))


def unfit_modes(modes: Modes) -> dict[str, str]:
    """The modes of XLA that are not for this data or so many replicas, with the reasons."""
    return {mode: reason for mode in XLA_MODES if (reason := modes.unfit(mode)) is not None}


def why_not_looped(operations: Collection[str]) -> str | None:
    """Why steps of these types of operations are not for `"xla_loop"`, or None."""
    if any("Conv" in name for name in operations) and not _on_gpu():
        return "convolutions in a loop of XLA are slow on a CPU"
    return None


def expected_seconds(operations: collections.Counter[str]) -> float:
    """How long XLA takes to compile a step of so many operations of each type, where nothing is known of the machine.

    Example:
        >>> round(expected_seconds(collections.Counter(MatMul=300, AddV2=100)), 2)
        0.85
    """
    return SECONDS_TO_COMPILE + operations.total() * SECONDS_PER_OPERATION


@dataclasses.dataclass(frozen=True)
class _Run:
    """What is left of a run.

    Attributes:
        steps: how many, or None if that is not known.
        limit: seconds after which it will be stopped, or None.
    """

    steps: int | None
    limit: float | None

    def seconds(self, step: float) -> float:
        """How long it takes if a step takes so many seconds."""
        in_steps = math.inf if self.steps is None else self.steps * step
        return min(in_steps, math.inf if self.limit is None else self.limit)


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


def _by_what_is_known(table: Table, unfit: Mapping[str, str], run: _Run) -> Choice | None:
    """The mode with which the run ends first, by what an earlier process measured; None if that says too little."""
    if any(mode in unfit for mode in table):
        return None
    graph = table["graph"]["seconds_per_step"]
    left = run.seconds(graph) / graph

    def takes(mode: str) -> float:
        row = table[mode]
        return left * row["seconds_per_step"] + LOADED * row.get("compile_seconds", 0.0)

    mode = min(table, key=takes)
    return Choice(mode, "a process before has measured it", table)


def _measure(modes: Modes, run: _Run, unfit: Mapping[str, str], operations: int, compiling: float) -> Choice:
    """Chooses by measuring what is worth it.

    Args:
        modes, run, unfit: what may be picked, for what, and what may not be, with the reasons.
        operations: of a step.
        compiling: seconds that a mode of XLA is expected to compile.
    """
    began = time.perf_counter()
    modes.seconds("graph", 1)  # the first call of a function is not like the others
    once = modes.seconds("graph", 1)
    graph, probing = once, 0.0
    if is_worth(compiling, run.seconds(once), GAINS[0][1]):
        graph, probing = _probe(modes, run, once)
        data = modes.data_seconds()
        if data is not None and data > max(WAITS * graph, SLOW):
            why = f"the data comes at {1 / data:,.0f} batches/s, and steps in the graph would take {1 / graph:,.0f}"
            return Choice("graph", why, {"graph": {"seconds_per_step": graph}}, time.perf_counter() - began)
    gain = next(gain for seconds, gain in GAINS if graph / operations <= seconds)
    faster = run.seconds(graph / gain)
    table: dict[str, dict[str, Any]] = {"graph": {"seconds_per_step": graph}, **{mode: {} for mode in XLA_MODES}}
    alone: dict[str, float] = {"graph": once}
    tried = False
    for mode in reversed(XLA_MODES):  # the likeliest first
        if mode in unfit:
            table[mode] = {"left_out": unfit[mode]}
        elif 2 * compiling <= SECOND * faster if tried else is_worth(compiling, run.seconds(graph), gain):
            table[mode], alone[mode] = _try(modes, mode, once)
            tried = "left_out" not in table[mode]
        else:
            what, than = (
                ("both", f"{faster:.1f} s then") if tried else ("it", f"{run.seconds(graph):.1f} s in the graph")
            )
            table[mode] = {
                "left_out": f"not tried: {what} would compile for about {compiling * (1 + tried):.1f} s, and the run "
                f"takes about {than}"
            }
    contenders = {mode: alone[mode] for mode, row in table.items() if "left_out" not in row}
    if len(contenders) > 1:
        budget = min(SHARE * faster, MOST_SECONDS)
        for mode, seconds in _compare(modes, contenders, graph, max(budget - probing, budget / 2)).items():
            table[mode]["seconds_per_step"] = seconds
    per_step = {mode: table[mode]["seconds_per_step"] for mode in contenders}
    fastest = min(per_step, key=per_step.get)
    mode = fastest if per_step[fastest] < GAIN * per_step["graph"] else "graph"
    why = "it is the fastest" if len(contenders) > 1 else "no other mode was worth measuring"
    return Choice(mode, why, table, time.perf_counter() - began)


def _most_steps(modes: Modes) -> int:
    """The most steps that are measured in a call."""
    return min(modes.between or STEPS, STEPS)


def _probe(modes: Modes, run: _Run, once: float) -> tuple[float, float]:
    """Seconds of a step in the graph, of which one alone took `once`; and seconds that it took to find out."""
    few = min(PROBE_STEPS, int(run.seconds(once) / once / 100))
    in_time = int(min(SHARE * run.seconds(once), MOST_SECONDS) / (4 * PROBES * once))
    count = max(1, min(_most_steps(modes), max(few, in_time)))
    probes = [modes.seconds("graph", count) for _ in range(PROBES)]
    return min(probes) / count, sum(probes)  # what else the machine does only adds to it


def _compare(modes: Modes, alone: Mapping[str, float], graph: float, left: float) -> dict[str, float]:
    """Seconds of a step in each mode, in turns.

    Args:
        modes: whose.
        alone: what one step alone takes, by mode.
        graph: what one of many takes in the graph.
        left: seconds to spend.
    """
    call = max(left / ROUNDS, min(CALL * len(alone), left / FEWEST)) / len(alone)
    count = max(1, min(_most_steps(modes), int(call / graph)))
    counts = {mode: max(1, int(count * min(1.0, alone["graph"] / alone[mode]))) for mode in alone}
    times: dict[str, list[float]] = {mode: [] for mode in alone}
    while left > 0 and len(times["graph"]) < ROUNDS:
        for mode, steps in counts.items():
            took = modes.seconds(mode, steps)
            times[mode].append(took / steps)
            left -= took
    return {mode: statistics.median(found) for mode, found in times.items()}


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
