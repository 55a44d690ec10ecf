"""Steps in a row whose update was skipped, because gradients were not finite: a few are usual, many are an error."""

import numpy as np

from looper.base.errors import NonFiniteLossError


class SkippedInARow:
    """Counts them from call to call.

    Args:
        most: that are no error.

    Example:
        >>> skipped = SkippedInARow(most=2)
        >>> skipped.note(np.array([False, True, True]), first=0)
        >>> skipped.note(np.array([False, True]), first=3)
    """

    def __init__(self, most: int) -> None:
        self._most, self._count = most, 0

    def note(self, skipped: np.ndarray, first: int) -> None:
        """Takes note of the steps after the first `first`, bool `[steps]`.

        Raises:
            NonFiniteLossError: at the step that is the last of too many.
        """
        done = np.flatnonzero(~skipped)
        # steps up to each, since the last one that was not skipped; before these there were some already
        since = np.arange(1, len(skipped) + 1) + self._count
        if done.size:
            last = np.maximum.accumulate(np.where(skipped, -1, np.arange(len(skipped))))
            since = np.where(last < 0, since, np.arange(len(skipped)) - last)
        over = np.flatnonzero(since > self._most)
        if over.size:
            raise NonFiniteLossError(
                f"more than {self._most} steps in a row were skipped, the last one step {first + int(over[0]) + 1}: "
                "their gradients were not finite, whatever the loss was scaled by. Look at the data, or try a lower "
                "learning rate or precision='mixed_bfloat16'; max_skipped= allows more of them."
            )
        self._count = int(since[-1]) if len(since) else self._count
