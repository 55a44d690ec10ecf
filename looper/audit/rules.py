"""Rules of Keras about the flag that differ between its versions, seen in what it does."""

import functools
from typing import Any

import keras
import tensorflow as tf


class _Told(keras.Layer):
    """Takes the flag by its default, or as it was given."""

    def __init__(self) -> None:
        super().__init__(name=type(self).__name__.strip("_"))  # Keras counts the names that it makes up itself
        self.received: Any = None

    def call(self, x: Any, training: bool | None = None) -> Any:
        self.received = training
        return x


class _TrueByDefault(_Told):
    def call(self, x: Any, training: bool | None = True) -> Any:
        return super().call(x, training)


class _Outer(keras.Layer):
    def __init__(self) -> None:
        super().__init__(name="Outer")
        self.first, self.second = _TrueByDefault(), _Told()

    def call(self, x: Any) -> Any:
        return self.second(self.first(x))


@functools.cache
def default_leaks() -> bool:
    """Whether a default of the signature, `call(x, training=True)`, holds for what is called after the layer, too.

    It does in Keras 3.15; a snapshot of 3.16 has given that up.

    Example:
        >>> default_leaks() in (True, False)
        True
    """
    with tf.init_scope():
        outer = _Outer()
        outer(tf.zeros([1, 1]))
    return outer.second.received is True
