"""Where the wall time of a `fit` goes: each moment is counted once, under what the host was busy with.

    startup     until the first step runs: building, tracing, compiling, the audit, reading a checkpoint; and all of
                that again when a callback changes what is trained
    input       opening the data and waiting for the next batch: before the steps where these take stacks of batches
                (mode "xla_loop", and "graph" over small batches of arrays) or are eager, and inside them otherwise, if
                a `looper.callbacks.Throughput` is there
    dispatch    the host around the compiled call: finding the next boundary, making arguments, and from the call
                until the graph begins to run, which may have to wait for a thread that slow data keeps busy
    device      the compiled steps, less the waits for input that are measured among them, and fetching what they return
    callbacks   each callback's methods
    checkpoint  taking the state for checkpoints, and waiting for them to be written
    evaluation  evaluations at boundaries, with their own input
    other       what the loop does besides: means, rows of logs, opening and closing files

Between boundaries the host reads nothing from the device: what the graph measures comes with the rows. On a CPU a
compiled call returns when its steps are done, so the call's own time cannot tell dispatch from the device: the graph
notes when it begins, and how long its steps wait for batches, and these are taken out. On a GPU a call returns when its
kernels are queued, and `device` is that and the wait for the results at the next boundary; `input` is an upper bound
there, because steps that are queued go on meanwhile. Graph and host are compared by the system's clock: if that is set
while training, what is moved out of `device` is wrong by as much, and never more than the calls took.

Reading the clock twice in each step of the compiled loop is too dear to be always on: a tenth and more of a step of a
tenth of a millisecond (`python -m benchmarks.input_timing`), and little of one that takes milliseconds.
"""

import time
from collections.abc import Callable, Mapping
from types import TracebackType

CATEGORIES = ("startup", "input", "dispatch", "device", "callbacks", "checkpoint", "evaluation", "other")

REMEDIES = {
    "input": "steps wait for data. In a dataset map with num_parallel_calls=tf.data.AUTOTUNE, cache(), batch before "
    "mapping, prefetch(tf.data.AUTOTUNE); data that fits into memory is read fastest as arrays",
    "dispatch": "calls are short. Give the Trainer a larger steps_per_execution, and log less often (log_every=)",
    "callbacks": "call it less often (every=, log_every=), or do less in it",
    "checkpoint": "save less often (save_every=)",
    "evaluation": "evaluate less often (eval_every=) or on less (eval_steps=)",
    "other": "boundaries are close together. Log less often (log_every=)",
    "startup": "it is paid once, and counts less in a longer run",
    "device": "the steps take the time. `looper bench` compares them with other modes; "
    "callbacks=[looper.callbacks.Throughput()] tells how much of it is waiting for data in the compiled loop",
}

NOTABLE = 0.1
"""Share of the time after the startup from which something other than the steps is what a run is bound by."""


class Ledger:
    """Counts seconds by category. Its clock begins with it, under "startup".

    Attributes:
        callbacks: seconds of each callback, by the name of its class; their sum is `seconds["callbacks"]`.

    Args:
        clock: seconds since some fixed moment.

    Example:
        >>> moments = iter([0.0, 1.0, 2.0, 5.0, 10.0, 10.0])
        >>> ledger = Ledger(clock=lambda: next(moments))
        >>> with ledger.section("device"):  # from 1 to 10
        ...     with ledger.section("callbacks", "Slow"):  # from 2 to 5
        ...         pass
        >>> ledger.end()
        >>> ledger.seconds["startup"], ledger.seconds["device"], ledger.callbacks
        (1.0, 6.0, {'Slow': 3.0})
    """

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self.callbacks: dict[str, float] = {}
        self._clock = clock
        self._seconds = dict.fromkeys(CATEGORIES, 0.0)
        self._open: list[tuple[str, str | None]] = [("startup", None)]
        self._measured: list[Callable[[], Mapping[str, float]]] = []
        self._ended = False
        self._why_input: Callable[[float], str | None] = lambda device: None
        self._since = clock()

    def section(self, category: str, name: str | None = None) -> "Section":
        """A context in which time counts under a category, and not under the one around it.

        Args:
            category: one of `CATEGORIES`.
            name: under "callbacks", whose.
        """
        return Section(self, category, name)

    def enter(self, category: str, name: str | None = None) -> int:
        """Begins a section. Returns the number of those around it, for `leave`."""
        self._count()
        self._open.append((category, name))
        return len(self._open) - 1

    def leave(self, around: int) -> None:
        """Ends the section that `around` others are around, and those that an error left open in it."""
        self._count()
        del self._open[around:]

    def later(self, measured: Callable[[], Mapping[str, float]]) -> None:
        """Keeps a function that tells how many seconds of "device" belong to other categories.

        It is called by `settle`, when the device has its results.
        """
        self._measured.append(measured)

    def settle(self) -> None:
        """Moves what the device has measured from "device" to where it belongs."""
        self._count()
        measured, self._measured = self._measured, []
        for seconds in measured:
            for category, value in seconds().items():
                value = min(max(value, 0.0), self._seconds["device"])
                self._seconds["device"] -= value
                self._seconds[category] += value

    def explain_input(self, why: Callable[[float], str | None]) -> None:
        """Has the verdict say why steps wait for data.

        Args:
            why: from the seconds of the steps themselves to a remedy; None if it knows none. `end` asks it a last time.
        """
        self._why_input = why

    def end(self) -> None:
        """Stops the clock for good."""
        self._count()
        self._ended = True
        reason = self._why_input(self._seconds["device"]) if self.bound_by == "input" else None
        self._why_input = lambda device: reason  # and holds no data any more

    @property
    def seconds(self) -> dict[str, float]:
        """Seconds by category so far; their sum is the wall time."""
        self._count()
        return dict(self._seconds)

    def shares(self, since: Mapping[str, float] | None = None) -> dict[str, float]:
        """The share of each category in the wall time, from 0 to 1.

        Args:
            since: what `seconds` was before; default: since the beginning.
        """
        spent = {name: value - (since or {}).get(name, 0.0) for name, value in self.seconds.items()}
        total = sum(spent.values())
        return {name: value / total if total > 0 else 0.0 for name, value in spent.items()}

    @property
    def bound_by(self) -> str:
        """The category to look at first: the largest that can be avoided, if it is notable; else "device".

        "startup" if that was most of the time.
        """
        shares = self.shares()
        if shares["startup"] > 0.5:
            return "startup"
        worst = max((name for name in CATEGORIES if name not in ("startup", "device")), key=shares.__getitem__)
        return worst if shares[worst] >= NOTABLE * (1 - shares["startup"]) else "device"

    @property
    def verdict(self) -> str:
        """One line: what the run is bound by, its share, and what to do."""
        worst, remedy = self.bound_by, REMEDIES[self.bound_by]
        if worst == "input":
            remedy = self._why_input(self.seconds["device"]) or remedy
        if worst == "callbacks" and self.callbacks:
            slowest = max(self.callbacks, key=self.callbacks.__getitem__)
            share = self.callbacks[slowest] / max(sum(self.callbacks.values()), 1e-9)
            remedy = f"{share:.0%} of it in {slowest}: {remedy}"
        return f"{worst}-bound {self.shares()[worst]:.0%}: {remedy}."

    def __str__(self) -> str:
        """Two lines: the shares from the largest on, without those below half a percent; and the verdict."""
        shares = sorted(self.shares().items(), key=lambda item: -item[1])
        shown = ", ".join(f"{name} {share:.0%}" for name, share in shares if share >= 0.005)
        return f"where the time went ({sum(self.seconds.values()):.1f} s): {shown}\n{self.verdict}"

    def _count(self) -> None:
        if self._ended:
            return
        now = self._clock()
        category, name = self._open[-1]
        self._seconds[category] += now - self._since
        if name is not None:
            self.callbacks[name] = self.callbacks.get(name, 0.0) + now - self._since
        self._since = now


class Section:
    """A context of `Ledger.section`; a class because it is entered at every execution."""

    __slots__ = ("_around", "_category", "_ledger", "_name")

    def __init__(self, ledger: Ledger, category: str, name: str | None) -> None:
        self._ledger, self._category, self._name = ledger, category, name

    def __enter__(self) -> None:
        self._around = self._ledger.enter(self._category, self._name)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ledger.leave(self._around)
