"""How far training is."""

import dataclasses
from typing import Protocol


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

    def mode_was_for_less(self, last_step: int | None) -> bool:
        """Whether the mode was taken without comparison, for a shorter run than one up to `last_step`."""
        return self.mode_for is not None and last_step is not None and last_step > self.mode_for

    def reached(self, goal: Goal) -> bool:
        """Whether there are as many steps or epochs behind as wanted."""
        return self.step >= goal.steps if goal.steps is not None else self.epoch >= (goal.epochs or 0)
