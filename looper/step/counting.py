"""How many steps and epochs are done, and at which step training ends, as tensors inside of a trainer's steps.

A call of compiled steps is given the numbers as an argument, so that nothing is traced again as they grow. What a step
reads is made where it is read, of that argument and the index of the loop around it: a step that reads nothing has no
operation more.
"""

import contextlib
import re
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from typing import Any

import tensorflow as tf

from looper.base.errors import InputError, first_line

SPEC = tf.TensorSpec([3], tf.int64)
"""Of the argument: the steps done before a call, the epochs, and the step that training ends at."""

_THREAD = threading.local()  # a mirrored strategy traces each replica in a thread of its own

NOT_FOR_TENSORS = re.compile(r"SymbolicTensor|symbolic tf\.Tensor|int64|Cannot convert .* to EagerTensor|unhashable")
"""In what Python, NumPy and TensorFlow 2.21 say of a tensor in place of a number, or of int64 in place of a float."""

UNKNOWN = (
    "self.last_step is not known, as nobody can tell where training ends: give fit steps=, or steps_per_epoch= with "
    "epochs=; with train_on_batch use what has a length of its own, such as keras.optimizers.schedules.CosineDecay."
)
"""What is said of a step that reads it then."""

TENSORS = "self.step, self.epoch and self.last_step are int64 tensors in a step"


class Counting:
    """The numbers of steps and epochs, done and to do: Python's outside of the trainer's steps, tensors inside.

    Args:
        numbers: the steps and epochs done now, and the step that training ends at: None if that is not known.

    Example:
        >>> counting = Counting(lambda: (5, 1, 9))
        >>> with counting.at(counting.tensor(), 2):
        ...     inside = counting.step
        >>> int(inside), inside.dtype.name, counting.step, counting.epoch, counting.last_step
        (7, 'int64', 5, 1, 9)
    """

    def __init__(self, numbers: Callable[[], tuple[int, int, int | None]]) -> None:
        self._numbers = numbers
        self._needs_last = False  # whether a step has read it

    def tensor(self, more: int = 0) -> tf.Tensor:
        """The numbers now, as `SPEC` says, or after `more` steps of this epoch.

        Raises:
            InputError: if a step reads at which one training ends, and that is not known.
        """
        step, epoch, last = self._numbers()
        if last is None and self._needs_last:
            raise InputError(UNKNOWN)
        with tf.device("CPU:0"):
            return tf.constant([step + more, epoch, last or 0], tf.int64)

    @contextlib.contextmanager
    def at(self, counts: tf.Tensor, index: int | tf.Tensor | None = None) -> Iterator[None]:
        """Surrounds a step, in the thread where it is traced or run.

        Args:
            counts: as `SPEC` says.
            index: the steps that the loop around it has done, if it counts.

        Raises:
            InputError: if the step read a number, and used a tensor where only a number or a float will do.
        """
        place = _Place(self, counts, index)
        try:
            with _inside(place):
                yield
        except Exception as error:
            explanation = _explained(error) if place.read else None
            if explanation is None:
                raise
            raise InputError(explanation) from error

    @property
    def step(self) -> int | tf.Tensor:
        """The steps done."""
        place = self._place()
        return self._numbers()[0] if place is None else place.step()

    @property
    def epoch(self) -> int | tf.Tensor:
        """The epochs done."""
        place = self._place()
        return self._numbers()[1] if place is None else place.epoch()

    @property
    def last_step(self) -> int | tf.Tensor:
        """The step that training ends at, 0 before the first `fit`. Raises `InputError` if it is not known."""
        place, last = self._place(), self._numbers()[2]
        if place is not None and not tf.executing_eagerly():
            self._needs_last = True
        elif last is None:
            raise InputError(UNKNOWN)
        return last if place is None else place.last_step()

    def _place(self) -> "_Place | None":
        place = getattr(_THREAD, "place", None)
        return place if place is not None and place.counting is self else None


class _Place:
    """A step that is traced or run. Each reading makes its own tensor, in the graph that it is read in."""

    def __init__(self, counting: Counting, counts: tf.Tensor, index: int | tf.Tensor | None) -> None:
        self.counting, self._counts, self._index = counting, counts, index
        self.read = False

    def step(self) -> tf.Tensor:
        self.read = True
        first = self._counts[0]
        return first if self._index is None else first + tf.cast(self._index, tf.int64)

    def epoch(self) -> tf.Tensor:
        self.read = True
        return self._counts[1]

    def last_step(self) -> tf.Tensor:
        self.read = True
        return self._counts[2]


def check_captured(captured: Iterable[Any]) -> None:
    """Raises `InputError` if a traced step captured a tensor of another trace, and could not run."""
    if any(map(tf.is_symbolic_tensor, captured)):
        raise InputError(
            f"{TENSORS}, and a tf.function that the recipe calls kept one from the step that was traced before: give "
            "it self.step as an argument."
        )


def here() -> Callable[[], AbstractContextManager]:
    """What another thread is to enter that goes on with the step of this one."""
    place = getattr(_THREAD, "place", None)
    return lambda: _inside(place)


@contextlib.contextmanager
def _inside(place: _Place | None) -> Iterator[None]:
    before, _THREAD.place = getattr(_THREAD, "place", None), place
    try:
        yield
    finally:
        _THREAD.place = before


def _explained(error: Exception) -> str | None:
    """What to say if the error may come from a number that is a tensor; None if it does not."""
    if isinstance(error, tf.errors.OperatorNotAllowedInGraphError):
        return (
            f"the recipe uses a tensor as a Python bool or loops over it, which a compiled step cannot; {TENSORS}: use "
            "tf.cond, tf.where or tf.while_loop, and tf.cast(self.step, tf.float32) to calculate; or execution='eager'."
        )
    kinds = (TypeError, NotImplementedError, AttributeError, tf.errors.InvalidArgumentError)
    if not isinstance(error, kinds) or isinstance(error, InputError):
        return None
    said = first_line(error)
    if not NOT_FOR_TENSORS.search(said):
        return None
    said = re.split(r"\. | \[Op:", said)[0].rstrip(".")
    return f"{TENSORS}, and the recipe uses a tensor in another way ({said}): use tf.cast(self.step, tf.float32)."
