"""Effects that depend on a tensor."""

from collections.abc import Callable

import tensorflow as tf


def run_if(condition: tf.Tensor | None, run: Callable[[], object]) -> None:
    """Calls `run`, whose result is left out; with a condition, a bool scalar, only if the graph finds it true.

    Example:
        >>> count = tf.Variable(0)
        >>> for condition in (None, tf.constant(True), tf.constant(False)):
        ...     run_if(condition, lambda: count.assign_add(1))
        >>> int(count)
        2
    """

    def ran() -> tf.Tensor:
        run()
        return tf.constant(0)

    if condition is None:
        run()
    else:
        tf.cond(condition, ran, lambda: tf.constant(0))
