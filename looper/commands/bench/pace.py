"""How many steps make a burst, and when bursts may begin."""

import time
from collections.abc import Callable

WARM_SECONDS = 5.0
"""Most time to go once through the data before the bursts: a smaller last batch may be compiled for by itself."""


def fitting(seconds_of: Callable[[int], float], wanted: float, length: int | None = None) -> int:
    """The number of steps that take about so many seconds, at least 1.

    Where it comes near to a pass over the data it is a number of whole ones: the same in each burst.

    Args:
        seconds_of: runs so many steps, and returns how many seconds they took.
        wanted: seconds.
        length: batches of a pass, or None for data without an end.

    Example:
        >>> fitting(lambda steps: 0.001 * steps, 0.3), fitting(lambda steps: 0.001 * steps, 0.3, length=45)
        (300, 315)
    """
    steps = 1
    while True:
        took = seconds_of(steps)
        if took >= wanted / 4:
            break
        steps = max(2 * steps, min(32 * steps, int(steps * wanted / 2 / max(took, 1e-9))))
    steps = max(1, round(steps * wanted / took))
    passes = round(steps / length) if length else 0
    return passes * length if passes else steps


class Warmth:
    """Tells when a side is warm: after two bursts, and once through the data if that does not take too long.

    Args:
        length: batches of a pass over the data, or None for data without an end.

    Example:
        >>> warmth = Warmth(length=30)
        >>> [warmth.enough(steps) for steps in (20, 40)]
        [False, True]
    """

    def __init__(self, length: int | None) -> None:
        self._length = length or 0
        self._bursts = 0
        self._began = time.perf_counter()

    def enough(self, steps: int) -> bool:
        """Takes note of another burst; `steps` were done up to now."""
        self._bursts += 1
        through = steps >= self._length or time.perf_counter() - self._began >= WARM_SECONDS
        return self._bursts >= 2 and through
