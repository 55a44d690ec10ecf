"""Lower the learning rate when a log no longer gets better."""

from collections.abc import Mapping
from typing import Any

from looper.base.errors import InputError, check_patience, check_positive
from looper.callbacks import learning_rate
from looper.callbacks.monitor import Monitor
from looper.run.callback import Best, Run


class ReduceLROnPlateau(Monitor):
    """Multiplies the learning rate by `factor` after `patience` evaluations (or logs) without an improvement.

    The rule is that of `keras.callbacks.ReduceLROnPlateau`. The learning rate and the counts are part of the
    checkpoint.

    Args:
        monitor: a log's name, such as "eval/loss" or "loss".
        factor: between 0 and 1.
        patience: how many times in a row it may fail to improve; 0 means 1, as in Keras.
        min_delta: the smallest change that is an improvement.
        cooldown: how many times to wait after a reduction before counting again.
        min_lr: the lowest learning rate.
        mode: "min", "max" or "auto" (see `Best`).
        optimizer: the attribute of the optimizer, if it is not `self.optimizer` and there are several.

    Raises:
        InputError: if `factor` is not between 0 and 1; when `fit` begins, if nothing is logged under `monitor`, or the
            optimizer has a learning rate schedule.

    Example:
        >>> ReduceLROnPlateau("eval/accuracy", factor=0.5, patience=3).best.monitor
        'eval/accuracy'
    """

    def __init__(
        self,
        monitor: str = "eval/loss",
        factor: float = 0.1,
        patience: int = 10,
        min_delta: float = 1e-4,
        cooldown: int = 0,
        min_lr: float = 0.0,
        mode: str = "auto",
        optimizer: str | None = None,
    ) -> None:
        if not 0 < factor < 1:
            raise InputError(f"factor={factor!r}: expected a number between 0 and 1.")
        check_patience(patience)
        if cooldown:
            check_positive("cooldown", cooldown)
        self.best = Best(monitor, mode, min_delta)
        self.factor, self.patience, self.cooldown, self.min_lr = factor, patience, cooldown, min_lr
        self.optimizer = optimizer
        self._waited = self._cooling = 0

    def on_fit_begin(self, run: Run) -> None:
        super().on_fit_begin(run)
        self._rate = learning_rate.variable_of(run, self.optimizer, "ReduceLROnPlateau")

    def _look(self, better: bool) -> None:
        if self._cooling:
            self._cooling -= 1
            self._waited = 0
        if better:
            self._waited = 0
        elif not self._cooling:
            self._waited += 1
            if self._waited >= self.patience:
                self._reduce()

    def _reduce(self) -> None:
        before = learning_rate.read(self._rate)
        if before > self.min_lr:
            self._rate.assign(max(before * self.factor, self.min_lr))
            self._cooling, self._waited = self.cooldown, 0

    def state(self) -> dict[str, Any]:
        return super().state() | {"waited": self._waited, "cooling": self._cooling}

    def restore(self, state: Mapping[str, Any]) -> None:
        super().restore(state)
        self._waited, self._cooling = state["waited"], state["cooling"]
