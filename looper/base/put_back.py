"""Variables that are changed for a while only."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

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
