"""Variables and attributes that are changed for a while only."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import tensorflow as tf


@contextmanager
def put_back(variables: Iterable[tf.Variable]) -> Iterator[None]:
    """Puts the values of variables (of one replica) back after the `with`.

    Example:
        >>> weight = tf.Variable(1.0)
        >>> with put_back([weight]):
        ...     print(weight.assign(2.0).numpy())
        2.0
        >>> weight.numpy()
        np.float32(1.0)
    """
    values = [(variable, variable.read_value()) for variable in variables]
    try:
        yield
    finally:
        for variable, value in values:
            variable.assign(value)


@contextmanager
def instead(thing: object, name: str, value: Any) -> Iterator[None]:
    """Inside it an object, a class or a module has another attribute; after it, the one of its own that it had, if any.

    Set past the `__setattr__` of an object's class: Keras tracks what is set.

    Example:
        >>> class Greeter:
        ...     def greet(self): return "hello"
        >>> greeter = Greeter()
        >>> with instead(greeter, "greet", lambda: "hi"):
        ...     greeter.greet()
        'hi'
        >>> greeter.greet(), vars(greeter)
        ('hello', {})
    """
    own, had = vars(thing).get(name), name in vars(thing)
    kind = type if isinstance(thing, type) else object
    kind.__setattr__(thing, name, value)
    try:
        yield
    finally:
        if had:
            kind.__setattr__(thing, name, own)
        else:
            kind.__delattr__(thing, name)
