"""What runs at boundaries: the base class and the callbacks that come with looper."""

from collections.abc import Sequence

from looper.callbacks.callback import Callback, Run
from looper.callbacks.checkpoint import Checkpoint
from looper.callbacks.early_stopping import EarlyStopping
from looper.callbacks.metrics_file import MetricsFile
from looper.callbacks.progress_bar import ProgressBar
from looper.callbacks.tensorboard import TensorBoard
from looper.errors import InputError

__all__ = [
    "Callback",
    "Checkpoint",
    "EarlyStopping",
    "MetricsFile",
    "ProgressBar",
    "Run",
    "TensorBoard",
    "with_defaults",
]


def with_defaults(callbacks: Sequence[Callback], *, progress: bool, workdir: bool) -> list[Callback]:
    """The user's callbacks and the ones that are on by default; one of the same kind replaces the default.

    Raises:
        InputError: if something is not a `Callback`.
    """
    callbacks = [callbacks] if isinstance(callbacks, Callback) else list(callbacks)
    for callback in callbacks:
        if not isinstance(callback, Callback):
            raise InputError(
                f"callbacks: {callback!r} is {type(callback).__name__}; expected an instance of a "
                "looper.callbacks.Callback."
            )
    first = [MetricsFile, TensorBoard] if workdir else []
    last = [Checkpoint] if workdir else []
    given = tuple(type(callback) for callback in callbacks)

    def missing(kinds: Sequence[type[Callback]]) -> list[Callback]:
        return [kind() for kind in kinds if not any(issubclass(other, kind) for other in given)]

    return [*missing(first), *callbacks, *missing([ProgressBar] if progress else []), *missing(last)]
