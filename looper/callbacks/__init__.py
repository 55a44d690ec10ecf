"""Callbacks, which run at boundaries: the base class and those that come with looper."""

from collections.abc import Sequence
from typing import Any

import keras

from looper.base.errors import InputError, check_choice
from looper.callbacks.checkpoint import Checkpoint
from looper.callbacks.confusion_matrix import ConfusionMatrix
from looper.callbacks.csv_logger import CSVLogger
from looper.callbacks.early_stopping import EarlyStopping
from looper.callbacks.ema_evaluation import EmaEvaluation
from looper.callbacks.histograms import Histograms
from looper.callbacks.hparams import HParams
from looper.callbacks.images import Images
from looper.callbacks.keras_callback import KerasCallback
from looper.callbacks.lambda_callback import LambdaCallback
from looper.callbacks.learning_rate_scheduler import LearningRateScheduler
from looper.callbacks.metrics_file import MetricsFile
from looper.callbacks.model_summary import ModelSummary
from looper.callbacks.nan_guard import NanGuard
from looper.callbacks.profile import Profile
from looper.callbacks.progress_bar import ProgressBar
from looper.callbacks.reduce_lr_on_plateau import ReduceLROnPlateau
from looper.callbacks.tensorboard import TensorBoard
from looper.callbacks.text import Text
from looper.callbacks.throughput import Throughput
from looper.callbacks.unfreeze import Unfreeze
from looper.run.callback import NEEDS, Callback, Run

__all__ = [
    "CSVLogger",
    "Callback",
    "Checkpoint",
    "ConfusionMatrix",
    "EarlyStopping",
    "EmaEvaluation",
    "HParams",
    "Histograms",
    "Images",
    "KerasCallback",
    "LambdaCallback",
    "LearningRateScheduler",
    "MetricsFile",
    "ModelSummary",
    "NanGuard",
    "Profile",
    "ProgressBar",
    "ReduceLROnPlateau",
    "Run",
    "TensorBoard",
    "Text",
    "Throughput",
    "Unfreeze",
    "as_list",
    "with_defaults",
]


def as_list(callbacks: Any) -> list[Any]:
    """Callbacks as a list; one alone will do.

    Example:
        >>> len(as_list(ProgressBar()))
        1
    """
    return [callbacks] if isinstance(callbacks, Callback | keras.callbacks.Callback) else list(callbacks)


def _check_names(callback: Callback) -> None:
    """Raises `InputError` if a callback has something else under a name that looper reads."""
    kind = type(callback).__name__
    of = {"logs": "the names that it logs with run.log, such as ('probe',)", "needs": "names, such as ('input_wait',)"}
    for name, what in of.items():
        given = getattr(callback, name)
        if not isinstance(given, tuple | list | set | frozenset) or not all(isinstance(n, str) for n in given):
            raise InputError(
                f"{kind}.{name} is {type(given).__name__}: expected a tuple of {what}; give another attribute another "
                "name."
            )
    for need in callback.needs:
        check_choice(f"{kind}.needs", need, NEEDS)
    for name in ("title", "identity", "begin", "state", "restore"):
        if not callable(getattr(callback, name)):
            raise InputError(f"{kind}.{name} is no method, and looper calls it: give the attribute another name.")


def checked(callbacks: Any) -> list[Any]:
    """Callbacks, of looper and of Keras, as a list.

    Raises:
        InputError: if something is not a callback.
    """
    callbacks = as_list(callbacks)
    for callback in callbacks:
        if not isinstance(callback, Callback | keras.callbacks.Callback):
            raise InputError(
                f"callbacks: {callback!r} is {type(callback).__name__}; expected an instance of a "
                "looper.callbacks.Callback or keras.callbacks.Callback."
            )
        if isinstance(callback, Callback):
            _check_names(callback)
    return callbacks


def with_defaults(
    callbacks: Sequence[Callback | keras.callbacks.Callback], *, progress: bool, workdir: bool
) -> list[Callback]:
    """The user's callbacks and the ones that are on by default; one of the same kind replaces the default.

    Callbacks of Keras are run together by one `KerasCallback`, in the place of the first of them.

    Raises:
        InputError: if something is not a callback.
    """
    callbacks = checked(callbacks)
    theirs = [callback for callback in callbacks if isinstance(callback, keras.callbacks.Callback)]
    if theirs:
        callbacks[callbacks.index(theirs[0])] = KerasCallback(theirs)
        callbacks = [callback for callback in callbacks if isinstance(callback, Callback)]
    first = [MetricsFile, TensorBoard, HParams] if workdir else []
    last = [Checkpoint] if workdir else []
    given = tuple(type(callback) for callback in callbacks)

    def missing(kinds: Sequence[type[Callback]]) -> list[Callback]:
        return [kind() for kind in kinds if not any(issubclass(other, kind) for other in given)]

    return [*missing(first), *callbacks, *missing([ProgressBar] if progress else []), *missing(last)]
