"""Print the model's summary."""

import sys
from typing import TextIO

from looper.base.errors import InputError
from looper.run.callback import Callback, Run


class ModelSummary(Callback):
    """Prints Keras' summary of the model once, when training begins.

    With a workdir, TensorBoard has it as a text anyway.

    Args:
        stream: where to print; default: standard output.

    Raises:
        InputError: when `fit` begins, if there is no built model called `model`.

    Example:
        >>> ModelSummary().stream is None
        True
    """

    chief_only = True

    def __init__(self, stream: TextIO | None = None) -> None:
        self.stream = stream

    def on_fit_begin(self, run: Run) -> None:
        if run.model is None or not run.model.built:
            raise InputError("ModelSummary prints self.model, and the recipe has no built model of this name.")
        run.model.summary(print_fn=lambda line, **_: print(line, file=self.stream or sys.stdout))
