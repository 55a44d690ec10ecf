"""Stop when a log no longer gets better."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from looper.base.errors import check_patience
from looper.callbacks.monitor import Monitor
from looper.run.callback import Best


class EarlyStopping(Monitor):
    """Ends training after `patience` evaluations (or logs) without an improvement; one that is NaN is none.

    The best weights, batch statistics included, are put back at the end of training, as Keras does. They are part of
    the checkpoint, so a continued run stops where an undisturbed one would, with the same weights.

    Args:
        monitor: a log's name, such as "eval/loss" or "loss".
        patience: how many times in a row it may fail to improve; 0 means 1, as in Keras.
        min_delta: the smallest change that is an improvement.
        mode: "min", "max" or "auto" (see `Best`).
        restore_best_weights: whether to put back the weights of the best time.

    Raises:
        InputError: when `fit` begins, if nothing of this name is logged.

    Example:
        >>> EarlyStopping("eval/accuracy", patience=3).best.monitor
        'eval/accuracy'
    """

    def __init__(
        self,
        monitor: str = "eval/loss",
        patience: int = 5,
        min_delta: float = 0.0,
        mode: str = "auto",
        restore_best_weights: bool = True,
    ) -> None:
        check_patience(patience)
        self.best = Best(monitor, mode, min_delta)
        self.patience = patience
        self.restore_best_weights = restore_best_weights
        self._waited = -1  # the first time is compared with nothing
        self._weights: dict[str, Any] | None = None

    def _look(self, better: bool) -> None:
        if better:
            self._waited = 0
            self._weights = self.run.weights() if self.restore_best_weights else None
            return
        self._waited += 1
        if self._waited >= max(self.patience, 1):
            best = self.best
            if best.value is None:
                self.run.stop(f"{best.monitor} was not a finite number at any of {self._waited + 1} times")
            else:
                self.run.stop(f"{best.monitor} has not improved on {best.value:.6g} of step {best.step}")

    def on_fit_end(self) -> None:
        if self._weights is not None and not self.run.interrupted:
            self.run.set_weights(self._weights)

    def state(self) -> dict[str, Any]:
        weights = None
        if self._weights is not None:
            weights = {name: np.asarray(value) for name, value in self._weights.items()}
        return super().state() | {"waited": self._waited, "weights": weights}

    def restore(self, state: Mapping[str, Any]) -> None:
        super().restore(state)
        self._waited = state["waited"]
        self._weights = state["weights"]
