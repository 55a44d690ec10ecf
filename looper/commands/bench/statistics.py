"""Medians with their 95% bootstrap intervals."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from looper.commands.bench.rounds import Burst

DRAWS = 2000


def median(values: Sequence[float]) -> dict[str, Any]:
    """The median, and the 95% interval of it: percentiles of the medians of resampled values (Efron, 1979).

    Example:
        >>> median([1.0, 2.0, 3.0, 4.0, 100.0])
        {'median': 3.0, 'interval': [1.0, 100.0]}
    """
    given = np.asarray(values, np.float64)
    resampled = np.random.default_rng(0).choice(given, (DRAWS, len(given)))
    low, high = np.quantile(np.median(resampled, axis=1), [0.025, 0.975])
    return {"median": float(np.median(given)), "interval": [float(low), float(high)]}


def microseconds(bursts: Sequence[Burst]) -> dict[str, Any]:
    """Time per step in microseconds."""
    return median([1e6 * burst.seconds / burst.steps for burst in bursts])


def ratio(bursts: Sequence[Burst], others: Sequence[Burst]) -> dict[str, Any]:
    """Time per step over that of another side, from the bursts of the same rounds.

    Example:
        >>> ratio([Burst(0, 10, 2.0), Burst(1, 10, 8.0)], [Burst(0, 10, 1.0), Burst(1, 20, 8.0)])["median"]
        2.0
    """
    other = {burst.round: burst.seconds / burst.steps for burst in others}
    return median([burst.seconds / burst.steps / other[burst.round] for burst in bursts if burst.round in other])
