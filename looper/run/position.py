"""What lives from one `fit` of a trainer to the next."""

from collections.abc import Sequence
from typing import Any

from looper.base.own_world import OwnRandom
from looper.data.feed import Feed
from looper.recipe.metrics import Window
from looper.run.callback import Callback
from looper.run.history import History
from looper.saved import callback_states
from looper.saved.progress import Progress
from looper.saved.resume import Saved


class Position:
    """How far a trainer is, and where in its data.

    Attributes:
        progress: steps and epochs done.
        last_step: the step that the last `fit` trains to, 0 before the first; None if that is not known.
        window: sums of the logs since the last one.
        history: the rows that were logged.
        feed: the batches of the last `fit`, or None.
        waiting: a checkpoint that was restored, and that no `fit` has begun with; or None.
        refusals: why XLA could not be had so far, as it was told.
        callbacks: those of the last `fit`.
    """

    def __init__(self) -> None:
        self.progress, self.window, self.history = Progress(), Window(), History()
        self.last_step: int | None = 0
        self.feed: Feed | None = None
        self.waiting: Saved | None = None
        self.refusals: set[str] = set()
        self.callbacks: Sequence[Callback] = ()
        self._entered: Saved | None = None  # the one that the last `fit` to go on from one began with
        self._placed: Feed | None = None  # the one that was put to a checkpoint's position

    @property
    def saved(self) -> Saved | None:
        """A checkpoint whose values hold for variables that are yet to be made: since it, no step has run."""
        if self.waiting is not None or self._entered is None:
            return self.waiting
        return self._entered if self._entered.items["progress"]["step"] == self.progress.step else None

    @property
    def numbers(self) -> tuple[int, int, int | None]:
        """Steps and epochs done, and the last step."""
        return self.progress.step, self.progress.epoch, self.last_step

    def aim(self, last_step: int | None) -> None:
        """A `fit` trains to this step, or nobody knows to which."""
        self.last_step = last_step

    def take(self, saved: Saved) -> None:
        """Goes to where a checkpoint was: at once with the numbers, with the data in the next `fit`."""
        self.progress.restore(saved.items["progress"])
        self.waiting, self._entered = saved, None

    def read(self, feed: Feed) -> None:
        """Goes on with other data, from its beginning; where the last ended in the middle of an epoch, in a new one."""
        if self.feed is not None and self.saved is None:
            feed.begin(self.progress.epoch if feed.source.repeats else 0)
            self.progress.begin_epoch()
        self.feed = feed

    def place(self) -> None:
        """Puts window and data to where the checkpoint was that a `fit` goes on from."""
        saved = self.saved
        if saved is not None and (saved is self.waiting or self.feed is not self._placed):
            self.window.restore(saved.items["window"])
            self.feed.restore(saved.items["feed"], saved.load_iterator)
            self._placed = self.feed

    def enter(self, callbacks: Sequence[Callback]) -> None:
        """A `fit` goes on from what waits: its callbacks get their states."""
        if self.waiting is not None:
            callback_states.give(self.waiting.items["callbacks"], callbacks)
            self._entered, self.waiting = self.waiting, None

    def step(self) -> None:
        """One step was made on a batch of somebody else's loop."""
        self.progress.count()
        self.window.reset()  # of a fit that was stopped between two logs

    def use(self, callbacks: Sequence[Callback]) -> None:
        """A `fit` has these callbacks."""
        self.callbacks = callbacks

    def items(self, random: OwnRandom) -> dict[str, Any]:
        """The states of all that must survive besides variables and flags, by name."""
        return {
            "progress": self.progress.state(),
            "window": self.window.state(),
            "feed": {"number": 0, "batch": 0} if self.feed is None else self.feed.state(),
            "callbacks": callback_states.states(self.callbacks),
            "random": random.state(),
        }
