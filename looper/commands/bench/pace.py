"""How many steps make a burst, and when bursts may begin."""

import time
from collections.abc import Callable
from typing import Any

from looper.commands.bench.messages import Channel

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


class Bursts:
    """Runs bursts as they are asked for: says when its side is warm, and then how long each burst took.

    Warm is a side after two bursts, and once through the data if that does not take too long.

    Args:
        channel: where requests come from.
        steps: of a burst.
        length: batches of a pass over the data, or None for data without an end.
        said: what to say besides when the side is warm.

    Example:
        >>> import io
        >>> channel = Channel(io.StringIO('{"burst": true}\\n{"burst": false}\\n'), answers := io.StringIO())
        >>> bursts = Bursts(channel, 20, length=30)
        >>> bursts.reached(20), answers.getvalue()
        (True, '')
        >>> bursts.reached(20), answers.getvalue()
        (True, '{"steps": 20}\\n')
        >>> bursts.reached(20)
        False
    """

    def __init__(self, channel: Channel, steps: int, length: int | None, **said: Any) -> None:
        self._channel, self._steps, self._length, self._said = channel, steps, length or 0, said
        self._bursts = self._done = 0
        self._started, self._began = time.perf_counter(), 0.0

    def reached(self, ran: int) -> bool:
        """Another burst has ended, of so many steps. Returns whether there shall be one more."""
        now = time.perf_counter()
        self._bursts, self._done = self._bursts + 1, self._done + ran
        if self._began:
            self._channel.send(seconds=now - self._began, steps=ran)
        elif self._bursts >= 2 and (self._done >= self._length or now - self._started >= WARM_SECONDS):
            self._channel.send(steps=self._steps, **self._said)
        else:
            return True
        go_on = self._channel.receive()["burst"]
        self._began = time.perf_counter()
        return go_on
