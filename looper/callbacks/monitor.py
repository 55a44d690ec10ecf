"""The base class of callbacks that follow one log."""

from collections.abc import Mapping
from typing import Any

from looper.run.callback import Best, Callback, Logs, Run


class Monitor(Callback):
    """Calls `_look` each time that a log has a new value: at evaluations for `eval/...`, otherwise at log boundaries.

    What a callback declares to log has one when that callback logs it.

    Attributes:
        best: the log and the best value of it so far, part of the checkpoint; None: there is nothing to follow.

    Raises:
        InputError: when `fit` begins, if nothing of this name is logged.
    """

    best: Best | None

    def identity(self) -> str:
        kind = type(self).__name__
        return kind if self.best is None else f"{kind}({self.best.monitor}, {self.best.mode})"

    def _look(self, better: bool) -> None:
        """There is a new value; `better` tells whether it is the best."""
        raise NotImplementedError

    def on_fit_begin(self, run: Run) -> None:
        if self.best is not None:
            run.check_monitor(self.best.monitor)

    def on_step(self, step: int, logs: Logs) -> None:
        self._follow(step, logs, evaluation=False)

    def on_eval_end(self, step: int, logs: Logs) -> None:
        self._follow(step, logs, evaluation=True)

    def on_log(self, step: int, logs: Logs) -> None:
        if self.best is not None and self.best.monitor in logs:
            self._look(self.best.better(logs[self.best.monitor], step))

    def _follow(self, step: int, logs: Logs, evaluation: bool) -> None:
        if self.best is None or self.best.monitor in self.run.callback_logs:
            return
        if self.best.monitor.startswith("eval/") == evaluation:
            self.run.check_monitor(self.best.monitor, logs)
            self._look(self.best.better(logs[self.best.monitor], step))

    def state(self) -> dict[str, Any]:
        return {} if self.best is None else {"best": self.best.state()}

    def restore(self, state: Mapping[str, Any]) -> None:
        if self.best is not None and "best" in state:
            self.best.restore(state["best"])
