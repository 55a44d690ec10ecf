"""Skips or rolls back steps whose loss or gradient is not finite."""

from collections.abc import Mapping
from typing import Any

from looper.base.errors import NonFiniteLossError, check_choice, check_positive
from looper.base.lines import warn
from looper.run.callback import Callback, Logs, Run


class NanGuard(Callback):
    """Stops, skips the update, or goes back, when a loss or gradient is NaN or infinite.

    - "stop" is what happens without this callback: `NonFiniteLossError` at the next boundary.
    - "skip" leaves out updates whose gradients are not finite, inside the compiled step, after the reduction over the
      replicas. `skipped_steps` is logged. What the forward pass itself changed, such as batch statistics, stays: for
      NaN in the data take "rollback".
    - "rollback" puts back everything as it was at the last boundary that was well, and goes on with the data that
      follows. `trainer.step` goes on counting, the optimizer's iterations go back. The kept state takes as much memory
      as the variables. A continued run goes back to where it was continued at the furthest.

    Args:
        action: "stop", "skip" or "rollback".
        limit: how many steps may be skipped, or how often it may go back, in all, before training ends with
            `NonFiniteLossError`.

    Raises:
        InputError: if an argument is wrong.

    Example:
        >>> NanGuard("rollback", limit=3).action
        'rollback'
    """

    def __init__(self, action: str = "stop", limit: int = 10) -> None:
        check_choice("action", action, ("stop", "skip", "rollback"))
        check_positive("limit", limit)
        self.action, self.limit = action, limit
        self.needs = ("skip_nonfinite",) if action == "skip" else ()
        self.count = 0
        self._good: Any = None

    def on_fit_begin(self, run: Run) -> None:
        self._keep()

    def on_step(self, step: int, logs: Logs) -> None:
        if self.action == "skip":
            self.count += int(logs["skipped_steps"])
            if self.count > self.limit:
                raise NonFiniteLossError(
                    f"{self.count} steps with gradients that are not finite were skipped by step {step}, more than "
                    f"NanGuard's limit={self.limit}. Look at the data, or try a lower learning rate or clip_norm=1.0."
                )

    def on_nonfinite(self, error: NonFiniteLossError) -> bool:
        if self.action != "rollback":
            return False
        if self.count == self.limit:
            raise NonFiniteLossError(f"{error} NanGuard has gone back {self.limit} times, its limit.") from error
        self.count += 1
        warn(f"{error} NanGuard goes back to the last boundary ({self.count} of {self.limit}).")
        self.run.restore(self._good)
        return True

    def on_boundary_end(self, step: int) -> None:
        self._keep()

    def on_fit_end(self) -> None:
        self._good = None

    def _keep(self) -> None:
        if self.action == "rollback":
            self._good = self.run.snapshot()

    def state(self) -> dict[str, Any]:
        return {"count": self.count}

    def restore(self, state: Mapping[str, Any]) -> None:
        self.count = state["count"]
