"""What a trace of TensorFlow's profiler shows: the operations that take the time, and how much of it is idle."""

import collections
import dataclasses
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

STEP = "train"
"""The name of the markers around steps."""

MOST = 10
"""Operations in a summary."""


LONGEST = 70
"""Letters of an operation's name, of which the last ones say most."""


@dataclasses.dataclass(frozen=True)
class TraceSummary:
    """What some steps spent their time on.

    Attributes:
        steps: how many were traced.
        seconds: from the beginning of the first to the end of the last.
        idle: the share of that time, from 0 to 1, in which no operation ran.
        operations: seconds by operation, the longest first; on several threads or streams at once they add up to more
            than the time that passed.
        device: where they ran, "CPU" or "GPU".
    """

    steps: int
    seconds: float
    idle: float
    operations: dict[str, float]
    device: str

    def __str__(self) -> str:
        """Lines for a terminal."""
        each = self.seconds / self.steps * 1e3
        head = f"profile: {self.steps} steps of {each:.3g} ms; no operation ran on the {self.device} {self.idle:.0%} of"
        total = sum(self.operations.values())
        rows = [
            f"  {seconds / total:4.0%}  {seconds / self.steps * 1e3:8.3f} ms a step  {name}"
            for name, seconds in list(self.operations.items())[:MOST]
        ]
        return "\n".join([f"{head} the time (one step a call, and traced: the host takes longer than usual)", *rows])


def read_trace(folder: Path) -> TraceSummary | None:
    """Summarizes the newest trace below a directory that TensorFlow's profiler wrote to; None if it shows no step.

    Args:
        folder: what `tf.profiler.experimental.start` was given.
    """
    files = sorted(folder.glob("plugins/profile/*/*.xplane.pb"), key=lambda file: file.stat().st_mtime)
    if not files:
        return None
    # no public API (TensorFlow 2.21): the only public reader of traces is `xprof`, a package of 60 MB.
    # tests/callbacks/test_more_callbacks.py reads a trace with it.
    from tensorflow.tsl.profiler.protobuf import xplane_pb2

    space = xplane_pb2.XSpace()
    space.ParseFromString(files[-1].read_bytes())
    return summarize(space)


def summarize(space: Any) -> TraceSummary | None:
    """Summarizes an `XSpace`; None if there is no step in it."""
    steps = [
        (begin, end)
        for plane in space.planes
        for line in plane.lines
        for begin, end, name, _ in _events(plane, line)
        if name == STEP
    ]
    if not steps:
        return None
    first, last = min(begin for begin, _ in steps), max(end for _, end in steps)
    devices = [plane for plane in space.planes if plane.name.startswith("/device:GPU")]
    operations: collections.Counter[str] = collections.Counter()
    busy: list[tuple[int, int]] = []
    for plane in devices or space.planes:
        for line in plane.lines:
            if devices and not line.name.startswith("Stream"):  # others tell the same once more
                continue
            found = [event for event in _events(plane, line) if devices or _is_operation(event)]
            inside = [event for event in found if event[0] < last and event[1] > first]
            for name, own in _own_times(inside):
                operations[_shown(name)] += own
            busy += [(max(begin, first), min(end, last)) for begin, end, *_ in inside]
    if not operations:
        return None
    return TraceSummary(
        steps=len(steps),
        seconds=(last - first) / 1e12,
        idle=1 - _covered(busy) / max(last - first, 1),
        operations={name: own / 1e12 for name, own in operations.most_common()},
        device="GPU" if devices else "CPU",
    )


Event = tuple[int, int, str, bool]
"""Begin and end in picoseconds, name, and whether XLA says that it is an operation."""


def _events(plane: Any, line: Any) -> Iterator[Event]:
    for event in line.events:
        begin = line.timestamp_ns * 1000 + event.offset_ps
        of_xla = any(plane.stat_metadata[stat.metadata_id].name == "hlo_op" for stat in event.stats)
        yield begin, begin + event.duration_ps, plane.event_metadata[event.metadata_id].name, of_xla


def _is_operation(event: Event) -> bool:
    """Of what a CPU does: events of operations in graphs are called "path:Type"."""
    return event[3] or bool(re.search(r"\S:_?[A-Z]\w*$", event[2]) and "::" not in event[2] and " " not in event[2])


def _own_times(events: Sequence[Event]) -> Iterator[tuple[str, int]]:
    """Of each event the time that is not that of events inside it."""
    waiting: list[list[Any]] = []  # name, end, own time
    for begin, end, name, _ in sorted(events, key=lambda event: (event[0], -event[1])):
        while waiting and waiting[-1][1] <= begin:
            done = waiting.pop()
            yield done[0], done[2]
        if waiting:
            waiting[-1][2] -= min(end, waiting[-1][1]) - begin
        waiting.append([name, end, end - begin])
    for name, _, own in waiting:
        yield name, own


def _covered(intervals: Sequence[tuple[int, int]]) -> int:
    """The length of what intervals cover together.

    Example:
        >>> _covered([(0, 3), (2, 5), (7, 8)])
        6
    """
    total, reached = 0, 0
    for begin, end in sorted(intervals):
        total += max(0, end - max(begin, reached))
        reached = max(reached, end)
    return total


def _shown(name: str) -> str:
    """An operation's name without the loops that looper runs it in.

    Example:
        >>> _shown("while/body/_10/gradient_tape/while/sequential/dense/MatMul:MatMul")
        'gradient_tape/sequential/dense/MatMul'
    """
    path, _, kind = name.partition(":")
    parts = [part for part in path.split("/") if not re.fullmatch(r"while|body|cond|_\d+", part)]
    parts = [part for i, part in enumerate(parts) if not i or part != parts[i - 1]] or [path]
    told = not kind or re.sub(r"_\d+$", "", parts[-1]) == kind
    shown = "/".join(parts) + ("" if told else f" ({kind})")
    return shown if len(shown) <= LONGEST else f"...{shown[-LONGEST:]}"
