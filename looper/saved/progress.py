"""How far training is."""

import dataclasses
from collections.abc import Mapping
from typing import Any, Protocol


class Goal(Protocol):
    """How far training is to go: until so many steps or, where that is None, so many epochs are done."""

    @property
    def steps(self) -> int | None: ...

    @property
    def epochs(self) -> int | None: ...


@dataclasses.dataclass
class Progress:
    """How far training is. Survives restarts.

    Attributes:
        step: steps done.
        epoch: epochs done.
        epoch_step: steps done of the current epoch.
        evaluated: the step of the last evaluation, or None.
        ended: why training ended before the last step, or None.
        ended_before: the number of epochs or steps that it was to reach then.
        mode: the way that the steps are run, or None before that was settled.
        mode_for: the last step of the run that was too short to compare modes; None if they were compared.
    """

    step: int = 0
    epoch: int = 0
    epoch_step: int = 0
    evaluated: int | None = None
    ended: str | None = None
    ended_before: int | None = None
    mode: str | None = None
    mode_for: int | None = None

    def state(self) -> dict[str, Any]:
        """All of it."""
        return dataclasses.asdict(self)

    def restore(self, state: Mapping[str, Any]) -> None:
        """Takes back what `state` gave; an older looper may have known less."""
        for field in dataclasses.fields(self):
            setattr(self, field.name, state.get(field.name, field.default))

    def count(self) -> None:
        """A step more is done, outside of any epoch."""
        self.step += 1

    def advance(self, steps: int) -> None:
        """So many steps more are done."""
        self.step += steps
        self.epoch_step += steps

    def end_epoch(self) -> None:
        """An epoch is done."""
        self.epoch, self.epoch_step = self.epoch + 1, 0

    def begin_epoch(self) -> None:
        """The next step is the first of an epoch, whatever was before it."""
        self.epoch_step = 0

    def move_to(self, epoch: int, steps_per_epoch: int) -> None:
        """Puts training to the beginning of an epoch, counted from 0."""
        self.step, self.epoch, self.epoch_step = epoch * steps_per_epoch, epoch, 0

    def note_evaluation(self) -> bool:
        """Takes note that it is evaluated now. Returns whether it was not at this step before."""
        before, self.evaluated = self.evaluated, self.step
        return before != self.step

    def end(self, reason: str | None, goal: Goal) -> None:
        """Training ends before its goal, for a reason; None takes that back."""
        self.ended = reason
        if reason is not None:
            self.ended_before = goal.steps or goal.epochs

    def set_mode(self, mode: str | None) -> None:
        """The steps run in a mode."""
        self.mode = mode

    def choose_mode(self, mode: str, uncompared_until: int | None) -> None:
        """The steps run in a mode that was chosen now, for a run up to a step without comparison, or None."""
        self.mode, self.mode_for = mode, uncompared_until

    def mode_was_for_less(self, last_step: int | None) -> bool:
        """Whether the mode was taken without comparison, for a shorter run than one up to `last_step`."""
        return self.mode_for is not None and last_step is not None and last_step > self.mode_for

    def reached(self, goal: Goal) -> bool:
        """Whether there are as many steps or epochs behind as wanted."""
        return self.step >= goal.steps if goal.steps is not None else self.epoch >= (goal.epochs or 0)
