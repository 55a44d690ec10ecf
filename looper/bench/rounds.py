"""Bursts of all sides in turn, so that each is measured in the same period: A B C A B C."""

import time
from collections.abc import Callable, Mapping
from typing import NamedTuple

from looper.bench.messages import LeftOutError

BURST_SECONDS = 0.3
"""What a burst should take: long enough to hide that it is begun and ended."""

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
    run: Mapping[str, Callable[[], tuple[int, float]]], seconds: float
) -> tuple[dict[str, list[Burst]], dict[str, str]]:
    """Runs a burst of each side, again and again, until the time is over.

    A side whose bursts are so long that it has used up its share stops before, with at least `LEAST_BURSTS` of them.

    Args:
        run: for each side, what runs a burst and returns its steps and seconds.
        seconds: for all sides together.

    Returns:
        The bursts of each side, and why others failed (`LeftOutError`).
    """
    found: dict[str, list[Burst]] = {name: [] for name in run}
    failed: dict[str, str] = {}
    share = seconds / len(run)
    began = time.perf_counter()
    number = 0
    while True:
        over = time.perf_counter() - began >= seconds
        due = [
            name
            for name, bursts in found.items()
            if len(bursts) < LEAST_BURSTS or (not over and sum(burst.seconds for burst in bursts) < share)
        ]
        if not due:
            return found, failed
        for name in due:
            try:
                found[name].append(Burst(number, *run[name]()))
            except LeftOutError as error:
                del found[name]
                failed[name] = str(error)
        number += 1
