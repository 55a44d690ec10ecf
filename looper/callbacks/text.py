"""Texts in TensorBoard."""

from collections.abc import Callable, Sequence

from looper.base.errors import InputError
from looper.base.schedule import Every
from looper.run import events
from looper.run.callback import Callback, Logs, Run


class Text(Callback):
    """Writes texts to TensorBoard, such as what a language model says after each epoch.

    Args:
        make: a function of the current `Run` (`run.model`, `run.predict`) that returns a string, or several, in
            Markdown.
        every: when.
        tag: what to call them.

    Raises:
        InputError: when `fit` begins, without a workdir.

    Example:
        >>> Text(lambda run: "the model has learned nothing yet").tag
        'samples'
    """

    def __init__(
        self, make: Callable[[Run], str | Sequence[str]], every: Every = Every(epochs=1), tag: str = "samples"
    ) -> None:
        if not callable(make):
            raise InputError(f"Text({make!r}): expected a function of the run that returns a string.")
        self.make, self.every, self.tag = make, every, tag

    def on_fit_begin(self, run: Run) -> None:
        run.check_workdir("Text")

    def on_step(self, step: int, logs: Logs) -> None:
        made = self.make(self.run)
        markdown = made if isinstance(made, str) else "\n\n---\n\n".join(made)
        self.run.events.add("train", step, events.text(self.tag, markdown))
