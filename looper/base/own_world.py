"""What belongs to the whole process, and one trainer has for a while: Python's and NumPy's random numbers, floatx.

A trainer builds and traces in its own world, and leaves the caller's as it found it. Others wait meanwhile, so that two
trainers in two threads do not disturb each other. TensorFlow's own global seed is set, and cannot be put back: there is
no public way to read it (TensorFlow 2.21).
"""

import contextlib
import random
import threading
from collections.abc import Iterator, Mapping
from typing import Any

import keras
import numpy as np

ONE_AT_A_TIME = threading.RLock()
"""Held while something of the whole process is another than its other threads know. Replicas' threads never take it."""


class OwnRandom:
    """A stream of Python's and NumPy's random numbers of one trainer's own.

    Args:
        seed: of both, and of TensorFlow.

    Example:
        >>> random.seed(1); np.random.seed(1)
        >>> expected = random.Random(1).random(), np.random.RandomState(1).uniform()
        >>> own = OwnRandom(seed=0)
        >>> with own.entered():
        ...     drawn = random.random(), np.random.uniform()
        >>> drawn == (random.Random(0).random(), np.random.RandomState(0).uniform())
        True
        >>> (random.random(), np.random.uniform()) == expected
        True
    """

    def __init__(self, seed: int) -> None:
        self._inside = False
        with ONE_AT_A_TIME:
            outside = _read()
            keras.utils.set_random_seed(seed)
            self._own = _read()
            _set(outside)

    @contextlib.contextmanager
    def entered(self) -> Iterator[None]:
        """Inside it, Python and NumPy draw from this stream. It may be entered again inside."""
        with ONE_AT_A_TIME:
            if self._inside:
                yield
                return
            outside, self._inside = _read(), True
            _set(self._own)
            try:
                yield
            finally:
                self._own, self._inside = _read(), False
                _set(outside)

    @contextlib.contextmanager
    def put_back(self) -> Iterator[None]:
        """Puts back, at its end, where the stream was."""
        before = self._own
        try:
            yield
        finally:
            self._own = before

    def state(self) -> dict[str, Any]:
        """Where the stream is."""
        (version, numbers, gauss), (_, keys, *rest) = self._own
        return {"python": [version, list(numbers), gauss], "numpy": [keys, *rest]}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Puts it where it was."""
        version, numbers, gauss = state["python"]
        keys, *rest = state["numpy"]
        self._own = (version, tuple(numbers), gauss), ("MT19937", np.asarray(keys, np.uint32), *rest)


def _read() -> tuple[Any, Any]:
    return random.getstate(), np.random.get_state()


def _set(state: tuple[Any, Any]) -> None:
    random.setstate(state[0])
    np.random.set_state(state[1])
