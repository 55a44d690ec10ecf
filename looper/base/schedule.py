"""When something is due: `Every`, and the boundaries that executions are cut at."""

import dataclasses
import string
import time
from collections.abc import Callable, Sequence

from looper.base.errors import InputError, check_positive


@dataclasses.dataclass(frozen=True)
class Every:
    """A period: in steps, epochs, seconds or minutes (exactly one of them).

    Steps and epochs count from the start of training (those of `log_every` from the start of the epoch), not from the
    start of this process, so a run that was stopped and continued has the same boundaries. Seconds and minutes are
    wall-clock time since the last time (or since this process began to train), looked at after each execution.

    Raises:
        InputError: if none or several are given, or the number is not positive.

    Example:
        >>> Every(steps=100)
        Every(steps=100)
        >>> Every.parse("10 minutes")
        Every(minutes=10.0)
    """

    steps: int | None = None
    epochs: int | None = None
    seconds: float | None = None
    minutes: float | None = None

    def __post_init__(self) -> None:
        given = {f.name: v for f in dataclasses.fields(self) if (v := getattr(self, f.name)) is not None}
        if len(given) != 1:
            shown = ", ".join(f"{k}={v!r}" for k, v in given.items())
            raise InputError(f"Every({shown}): give exactly one of steps, epochs, seconds and minutes.")
        for name, value in given.items():
            check_positive(f"Every: {name}", value, int if name in ("steps", "epochs") else float)

    def __repr__(self) -> str:
        return f"Every({self._given()[0]}={self._given()[1]})"

    def __str__(self) -> str:
        unit, number = self._given()
        return f"{int(number) if float(number).is_integer() else number} {unit}"

    def _given(self) -> tuple[str, float]:
        return next((f.name, v) for f in dataclasses.fields(self) if (v := getattr(self, f.name)) is not None)

    @property
    def period_seconds(self) -> float | None:
        """The wall-clock period in seconds, or None for steps and epochs."""
        return self.seconds if self.minutes is None else 60.0 * self.minutes

    @classmethod
    def parse(cls, text: str) -> "Every":
        """Reads a period as the command line gives it.

        Example:
            >>> Every.parse("100 steps"), Every.parse("100"), Every.parse("5m"), Every.parse("2h")
            (Every(steps=100), Every(steps=100), Every(minutes=5.0), Every(minutes=120.0))
        """
        number = text.strip().rstrip(string.ascii_letters).strip()
        letters = text.strip().removeprefix(number).strip()
        letters = {"": "steps", "s": "seconds"}.get(letters, letters)
        unit = next((unit for unit in (*cls.__dataclass_fields__, "hours") if unit.startswith(letters)), "")
        try:
            if unit == "hours":
                return cls(minutes=60 * float(number))
            return cls(**{unit: int(number) if unit in ("steps", "epochs") else float(number)})  # type: ignore[arg-type]
        except (TypeError, ValueError) as error:
            if isinstance(error, InputError):
                raise
            raise InputError(
                f"{text!r} is not a period: write a number and a unit, such as '100 steps', '1 epochs', '10 minutes', "
                "or 5m, 30s, 2h; a number alone counts steps."
            ) from None


@dataclasses.dataclass(frozen=True)
class At:
    """Certain steps, each once.

    Example:
        >>> At((10, 20)).steps
        (10, 20)
    """

    steps: tuple[int, ...]


class Ticker:
    """Tells when one `Every` is due. Holds the wall-clock time at which it last was.

    Args:
        every: the period, certain steps, or None for never.
        clock: seconds since some fixed moment; a test gives its own.

    Example:
        >>> ticker = Ticker(Every(steps=10))
        >>> ticker.steps_left(step=7)
        3
        >>> ticker.due(step=10, epochs_done=None)
        True
    """

    def __init__(self, every: Every | At | None, clock: Callable[[], float] = time.monotonic) -> None:
        self.every = every
        self._clock = clock
        self._last = clock()

    def steps_left(self, step: int) -> int | None:
        """Steps from `step` to the next boundary that is known beforehand; None if none is."""
        if isinstance(self.every, At):
            return min((at - step for at in self.every.steps if at > step), default=None)
        if self.every is None or self.every.steps is None:
            return None
        return self.every.steps - step % self.every.steps

    def due(self, step: int, epochs_done: int | None) -> bool:
        """Whether it is due after `step` steps; `epochs_done` is None except at the end of an epoch."""
        every = self.every
        if every is None:
            return False
        if isinstance(every, At):
            return step in every.steps
        if every.steps is not None:
            return step % every.steps == 0
        if every.epochs is not None:
            return epochs_done is not None and epochs_done % every.epochs == 0
        if self._clock() - self._last < every.period_seconds:
            return False
        self._last = self._clock()
        return True


def steps_to_cut(one_by_one: range, step: int) -> int | None:
    """Steps that an execution from `step` on may run where each step of a range is one of its own; None if any number.

    Example:
        >>> [steps_to_cut(range(10, 20), step) for step in (7, 10, 19, 20)]
        [3, 1, 1, None]
    """
    if step >= one_by_one.stop:
        return None
    return max(one_by_one.start - step, 1) if one_by_one else None


def steps_to_boundary(step: int, tickers: Sequence[Ticker], *limits: int | None) -> int | None:
    """The number of steps an execution that starts at `step` may run before something is due.

    `limits` are further bounds in steps (the end of the epoch, the last step); None means no bound.

    Example:
        >>> steps_to_boundary(95, [Ticker(Every(steps=100)), Ticker(Every(epochs=1))], 64, None)
        5
    """
    bounds = [ticker.steps_left(step) for ticker in tickers] + list(limits)
    return min((b for b in bounds if b is not None), default=None)
