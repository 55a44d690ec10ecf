"""How many steps make a burst."""

from collections.abc import Callable


def fitting(seconds_of: Callable[[int], float], wanted: float) -> int:
    """The number of steps that take about so many seconds, at least 1.

    Args:
        seconds_of: runs so many steps, and returns how many seconds they took.
        wanted: seconds.

    Example:
        >>> fitting(lambda steps: 0.002 + 0.001 * steps, 0.3)
        290
    """
    steps = 1
    while True:
        took = seconds_of(steps)
        if took >= wanted / 4:
            return max(1, round(steps * wanted / took))
        steps = max(2 * steps, min(32 * steps, int(steps * wanted / 2 / max(took, 1e-9))))
