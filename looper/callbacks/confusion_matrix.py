"""Which classes are taken for which."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from looper.base.errors import InputError
from looper.base.schedule import Every
from looper.callbacks.confusion_picture import picture
from looper.run import events
from looper.run.callback import Callback, Logs


class ConfusionMatrix(Callback):
    """Counts predicted classes by true class over all of `data`, exactly, with the trainer's `predict`.

    Row i, column j of a matrix is the number of examples of class i that were taken for class j. With a workdir it is
    also written to TensorBoard as a picture (colored by the shares of each row) and as a table.

    Args:
        data: `(x, y)` as arrays, or a `tf.data.Dataset` of batches `(x, y)` that yields the same order each time.
            `y` are class numbers `[examples]` or one-hot `[examples, classes]`. Outputs are scores
            `[examples, classes]`, or `[examples]` or `[examples, 1]` for two classes: a probability, or a logit with
            `threshold=0`.
        every: when.
        names: of the classes, for picture and table.
        threshold: from which on a single output means class 1.

    Attributes:
        matrices: int64 `[classes, classes]` by step.

    Raises:
        InputError: if the outputs do not fit the classes.

    Example:
        >>> data = np.zeros((4, 2)), np.array([0, 1, 1, 0])
        >>> ConfusionMatrix(data, names=["cat", "dog"]).matrices
        {}
    """

    def __init__(
        self, data: Any, every: Every = Every(epochs=1), names: Sequence[str] | None = None, threshold: float = 0.5
    ) -> None:
        self.every, self.names, self.threshold = every, names, threshold
        self.matrices: dict[int, np.ndarray] = {}
        if isinstance(data, tf.data.Dataset):
            self._x, y = data, np.concatenate([batch[1] for batch in data.as_numpy_iterator()])
        elif isinstance(data, tuple | list) and len(data) >= 2:
            self._x, y = data[0], np.asarray(data[1])
        else:
            raise InputError(
                f"ConfusionMatrix: the data is {type(data).__name__}; expected (x, y) or a tf.data.Dataset."
            )
        one_hot = y.ndim == 2 and y.shape[1] > 1
        self._y = y.argmax(1) if one_hot else y.reshape(-1).astype(np.int64)

    def on_step(self, step: int, logs: Logs) -> None:
        outputs = np.asarray(self.run.predict(self._x))
        single = outputs.ndim == 1 or outputs.shape[-1] == 1
        classes = 2 if single else outputs.shape[-1]
        taken = (outputs.reshape(-1) > self.threshold).astype(np.int64) if single else outputs.argmax(-1)
        if taken.shape != self._y.shape or self._y.max() >= classes or (self.names and len(self.names) != classes):
            raise InputError(
                f"ConfusionMatrix: outputs of shape {outputs.shape}, {len(self._y)} examples of classes up to "
                f"{self._y.max()}, and {len(self.names or ())} names do not fit together."
            )
        matrix = np.bincount(self._y * classes + taken, minlength=classes**2).reshape(classes, classes)
        self.matrices[step] = matrix
        if self.run.events is not None:
            names = [str(name) for name in self.names or range(len(matrix))]
            pictures = picture(matrix, names)[None]
            self.run.events.add("eval", step, events.images("confusion_matrix/picture", pictures))
            self.run.events.add("eval", step, events.text("confusion_matrix/table", self._table(matrix, names)))

    def _table(self, matrix: np.ndarray, names: Sequence[str]) -> str:
        rows = [f"| **{name}** | " + " | ".join(map(str, row)) + " |" for name, row in zip(names, matrix, strict=True)]
        head = "| true \\ predicted | " + " | ".join(names) + " |"
        return "\n".join([head, "| --- |" + " --- |" * len(names), *rows])
