"""Bursts of all sides in turn, so that each is measured in the same period: A B C A B C."""

import time
from collections.abc import Callable, Mapping
from typing import NamedTuple

from looper.commands.bench.messages import LeftOutError

BURST_SECONDS = 0.3
"""Seconds that a burst should take: long enough to hide that it is begun and ended."""

LEAST_BURSTS = 5
"""Of each side, however long they take."""


class Burst(NamedTuple):
    """One burst of a side.

    Attributes:
        round: in which it was.
        steps: how many it ran.
        seconds: how long they took.
    """

    round: int
    steps: int
    seconds: float


def burst_seconds(seconds: float, sides: int) -> float:
    """How long a burst shall be: shorter where there is little time, so that there are enough of them.

    Example:
        >>> burst_seconds(60, 4), burst_seconds(8, 4)
        (0.3, 0.2)
    """
    return min(BURST_SECONDS, seconds / (sides * 2 * LEAST_BURSTS))


def alternate(
    run: Mapping[str, Callable[[], tuple[int, float]]],
    seconds: float,
    length: float,
    clock: Callable[[], float] = time.perf_counter,
) -> tuple[dict[str, list[Burst]], dict[str, str]]:
    """Runs a burst of each side, again and again, until the time is over.

    A side whose bursts are much too long, such as of a single slow step, stops when it has used up its share. Each has
    at least `LEAST_BURSTS`.

    Args:
        run: for each side, what runs a burst and returns its steps and seconds.
        seconds: for all sides together.
        length: seconds that a burst was to take.
        clock: seconds since some fixed moment; a test gives its own.

    Returns:
        The bursts of each side, and why others failed (`LeftOutError`).
    """
    found: dict[str, list[Burst]] = {name: [] for name in run}
    failed: dict[str, str] = {}
    share = seconds / len(run)
    began = clock()

    def wants_more(bursts: list[Burst]) -> bool:
        used = sum(burst.seconds for burst in bursts)
        if len(bursts) < LEAST_BURSTS:
            return True
        return clock() - began < seconds and (used < share or used < 2 * length * len(bursts))

    number = 0
    while True:
        due = [name for name, bursts in found.items() if wants_more(bursts)]
        if not due:
            return found, failed
        for name in due:
            try:
                found[name].append(Burst(number, *run[name]()))
            except LeftOutError as error:
                del found[name]
                failed[name] = str(error)
        number += 1
