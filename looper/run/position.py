"""What lives from one `fit` of a trainer to the next."""

from collections.abc import Mapping, Sequence
from typing import Any

from looper.base.own_world import OwnRandom
from looper.data import Feed
from looper.recipe.metrics import Window
from looper.run.callback import Callback
from looper.run.history import History
from looper.saved.by_identity import Together
from looper.saved.progress import Progress
from looper.saved.resume import Saved, Stateful


class Nowhere:
    """The place in the data before there is any."""

    def state(self) -> Mapping[str, Any]:
        """Its beginning."""
        return {"number": 0, "batch": 0}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Nothing is put anywhere."""


class Position:
    """How far a trainer is, and where in its data.

    Attributes:
        progress: steps and epochs done.
        window: sums of the logs since the last one.
        history: the rows that were logged.
        feed: the batches of the last `fit`, or None.
        waiting: a checkpoint that was restored, and that no `fit` has begun with; or None.
        entered: the one that a `fit` began with, while no step has run since; or None.
        callbacks: those of the last `fit`.
    """

    def __init__(self) -> None:
        self.progress, self.window, self.history = Progress(), Window(), History()
        self.feed: Feed | None = None
        self.waiting: Saved | None = None
        self.entered: Saved | None = None
        self.callbacks: Sequence[Callback] = ()
        self._placed: Feed | None = None  # the one that was put to a checkpoint's position

    @property
    def saved(self) -> Saved | None:
        """A checkpoint whose values hold for variables that are yet to be made."""
        return self.waiting or self.entered

    @property
    def numbers(self) -> tuple[int, int]:
        """Steps and epochs done."""
        return self.progress.step, self.progress.epoch

    def take(self, saved: Saved) -> None:
        """Goes to where a checkpoint was: at once with the numbers, with the data in the next `fit`."""
        self.progress.restore(saved.items["progress"])
        self.waiting, self.entered = saved, None

    def read(self, feed: Feed) -> None:
        """Goes on with other data, from its beginning; where the last ended in the middle of an epoch, in a new one."""
        if self.feed is not None and self.saved is None:
            feed.begin(self.progress.epoch if feed.source.repeats else 0)
            self.progress.begin_epoch()
        self.feed = feed

    def place(self) -> None:
        """Puts window and data to where the checkpoint was that a `fit` goes on from."""
        saved = self.waiting or (self.entered if self.feed is not self._placed else None)
        if saved is not None:
            self.window.restore(saved.items["window"])
            self.feed.restore(saved.items["feed"], saved.load_iterator)
            self._placed = self.feed

    def enter(self, callbacks: Sequence[Callback]) -> None:
        """A `fit` goes on from what waits: its callbacks get their states."""
        if self.waiting is not None:
            Together(callbacks).restore(self.waiting.items["callbacks"])
            self.entered, self.waiting = self.waiting, None

    def left(self, step: int) -> None:
        """A `fit` has ended that began at a step."""
        if self.progress.step != step:
            self.entered = None

    def step(self) -> None:
        """One step was made on a batch of somebody else's loop."""
        self.progress.count()
        self.entered = None
        self.window.reset()  # of a fit that was stopped between two logs

    def use(self, callbacks: Sequence[Callback]) -> None:
        """A `fit` has these callbacks."""
        self.callbacks = callbacks

    def items(self, random: OwnRandom) -> dict[str, Stateful]:
        """All that must survive besides variables and flags, by name."""
        return {
            "progress": self.progress,
            "window": self.window,
            "feed": self.feed or Nowhere(),
            "callbacks": Together(self.callbacks),
            "random": random,
        }
