"""How TensorFlow treats the graphs of the suite."""

import contextlib
import os
from collections.abc import Iterator

import tensorflow as tf

SMALL = 1000
"""Nodes."""


def leave_small_ones() -> None:
    """Has graphs of up to 1,000 nodes run as they were traced.

    Grappler takes a quarter of the suite to make graphs faster that run for a few steps; TensorFlow leaves those of up
    to 4 nodes alone. With `LOOPER_TESTS_OPTIMIZE_GRAPHS=1` all are optimized, as in the commands that tests start.
    """
    if "LOOPER_TESTS_OPTIMIZE_GRAPHS" not in os.environ:
        tf.config.optimizer.set_experimental_options({"min_graph_nodes": SMALL})


@contextlib.contextmanager
def optimized() -> Iterator[None]:
    """Inside, graphs are optimized as a user's are: for what is right only where Grappler does not undo it."""
    before = tf.config.optimizer.get_experimental_options()
    tf.config.optimizer.set_experimental_options({**before, "min_graph_nodes": 0})  # TensorFlow's own number
    try:
        yield
    finally:
        tf.config.optimizer.set_experimental_options({**before, "min_graph_nodes": before.get("min_graph_nodes", 0)})
