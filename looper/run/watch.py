"""Callbacks around what `evaluate` and `predict` do."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import keras

from looper.base.errors import InputError
from looper.base.own_logs import is_own
from looper.run.callback import Callback

WRITERS = (
    keras.callbacks.CSVLogger,
    keras.callbacks.ModelCheckpoint,
    keras.callbacks.RemoteMonitor,
    keras.callbacks.TensorBoard,
)
"""Of several workers only the chief calls these, which write; all others are called on every worker."""


class Watch:
    """Calls callbacks in one `evaluate` or `predict`. Use it as a context, around all batches.

    Keras' get what Keras' own methods give them: `on_test_begin`, `on_test_batch_begin` and so on, and may set
    `model.stop_evaluating` or `model.stop_predicting`. looper's get `on_eval_begin` and `on_eval_end`, or
    `on_predict_begin` and `on_predict_end`; `run` is that of the last `fit` they were in.

    Attributes:
        each_batch: whether a callback is called around each batch, which is an execution of its own then.

    Args:
        callbacks: of both kinds, in their order.
        kind: "test" or "predict", as Keras calls them.
        model: the trainer's, or None.
        optimizer: the trainer's, which callbacks of Keras may look at.
        stamp: the step and epoch that training is at.
        is_chief: of several workers, whether this is the one that writes.

    Raises:
        InputError: if there are callbacks of Keras and no Keras model, or a callback of looper's needs a `fit`.
    """

    def __init__(
        self,
        callbacks: Sequence[Any],
        kind: Literal["test", "predict"],
        model: Any,
        optimizer: Any,
        stamp: Mapping[str, float],
        is_chief: bool,
    ) -> None:
        self._kind, self._model, self._stamp, self._begun = kind, model, stamp, 0
        self._ours = [callback for callback in callbacks if isinstance(callback, Callback)]
        theirs = [callback for callback in callbacks if not isinstance(callback, Callback)]
        self._theirs = [callback for callback in theirs if is_chief or not isinstance(callback, WRITERS)]
        self._optimizer = optimizer
        for callback in self._ours:
            if callback.chief_only:
                raise InputError(f"{type(callback).__name__} writes what a fit does: give it to fit().")
        names = [f"on_{kind}_batch_begin", f"on_{kind}_batch_end"]
        self.each_batch = any(_overrides(callback, name) for callback in self._theirs for name in names)
        self._flag = "stop_evaluating" if kind == "test" else "stop_predicting"
        self._logs: dict[str, float] = {}
        if self._theirs:
            if not isinstance(model, keras.Model):
                raise InputError(f"Keras callbacks need self.model: it is {type(model).__name__}, not a keras.Model.")
            self._list = keras.callbacks.CallbackList(self._theirs, model=model, verbose=0, epochs=1)

    def __enter__(self) -> "Watch":
        if self._theirs:
            self._lent = {} if hasattr(self._model, "optimizer") else {"optimizer": self._optimizer}
            vars(self._model).update(self._lent)  # as if it were compiled
            self.go_on()
            getattr(self._list, f"on_{self._kind}_begin")()
        self._call_ours("begin", self._stamp["step"])
        return self

    def __exit__(self, kind: Any, *_: object) -> None:
        if self._theirs:
            if kind is None:
                logs = (as_keras(self._logs),) if self._kind == "test" else ()
                getattr(self._list, f"on_{self._kind}_end")(*logs)
            for name in (self._flag, *self._lent):
                vars(self._model).pop(name, None)
        if kind is None:
            evaluated = ({**self._stamp, **self._evaluated()},) if self._kind == "test" else ()
            self._call_ours("end", self._stamp["step"], *evaluated)

    def go_on(self) -> None:
        """Another set of data begins: what ended the one before it is forgotten."""
        if self._theirs:
            setattr(self._model, self._flag, False)

    def begin(self) -> None:
        """A batch is about to be computed."""
        if self._theirs and self.each_batch:
            getattr(self._list, f"on_{self._kind}_batch_begin")(self._begun)

    def end(self, found: Callable[[], Mapping[str, Any]]) -> bool:
        """A batch was computed. Returns whether that is to be the last.

        Args:
            found: what Keras' callbacks are to be given, which takes time to get.
        """
        if not self._theirs:
            return False
        if self.each_batch:
            getattr(self._list, f"on_{self._kind}_batch_end")(self._begun, dict(found()))
            self._begun += 1
        return bool(getattr(self._model, self._flag))

    def see(self, results: Mapping[str, float]) -> None:
        """The evaluation has found this."""
        self._logs = dict(results)

    def _evaluated(self) -> dict[str, float]:
        return {f"eval/{name}": value for name, value in self._logs.items()}

    def _call_ours(self, moment: str, *args: Any) -> None:
        hook = f"on_{'eval' if self._kind == 'test' else 'predict'}_{moment}"
        for callback in self._ours:
            try:
                getattr(callback, hook)(*args)
            except AttributeError as error:
                if error.obj is callback and "run" not in vars(callback):  # which is set when a fit begins
                    what = "evaluate()" if self._kind == "test" else "predict()"
                    raise InputError(
                        f"{type(callback).__name__} in {what} asks for its run, and it was in no fit yet: give it to "
                        "fit()."
                    ) from None
                raise


def as_keras(logs: Mapping[str, float]) -> dict[str, float]:
    """The logs that Keras would give: without what looper itself logs.

    Example:
        >>> as_keras({"step": 3, "loss": 0.5, "examples": 60})
        {'loss': 0.5}
    """
    return {name: value for name, value in logs.items() if not is_own(name)}


def _overrides(callback: Any, name: str) -> bool:
    own = getattr(callback, name)
    return getattr(own, "__func__", own) is not getattr(keras.callbacks.Callback, name)
