"""Pictures in TensorBoard."""

from collections.abc import Callable
from typing import Any

import numpy as np

from looper.base.errors import InputError, check_positive
from looper.base.schedule import Every
from looper.run import events
from looper.run.callback import Callback, Logs, Run


class Images(Callback):
    """Writes pictures to TensorBoard, such as what a generator makes of the same noise after each epoch.

    Args:
        data: a function of the current `Run` (`run.model`, `run.predict`) that returns pictures, or the pictures
            themselves: `[pictures, height, width, channels]`, or without channels; uint8, or floats from 0 to 1.
        every: when.
        max: the most pictures to write each time.
        tag: what to call them.

    Raises:
        InputError: when `fit` begins, without a workdir; if the pictures have another shape.

    Example:
        >>> Images(lambda run: run.predict(np.ones((4, 16))), max=4).tag
        'images'
    """

    def __init__(
        self,
        data: Callable[[Run], Any] | Any,
        every: Every = Every(epochs=1),
        max: int = 8,
        tag: str = "images",
    ) -> None:
        check_positive("max", max)
        self.data, self.every, self.max, self.tag = data, every, max, tag

    def on_fit_begin(self, run: Run) -> None:
        run.check_workdir("Images")

    def on_step(self, step: int, logs: Logs) -> None:
        pictures = np.asarray(self.data(self.run) if callable(self.data) else self.data)
        if pictures.ndim not in (3, 4) or (pictures.ndim == 4 and pictures.shape[-1] not in (1, 2, 3, 4)):
            raise InputError(
                f"Images: the pictures have the shape {pictures.shape}; expected [pictures, height, width, channels]."
            )
        self.run.events.add("train", step, events.images(self.tag, pictures[: self.max]))
