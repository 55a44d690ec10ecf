"""How TensorFlow treats the graphs of the suite."""

import os

import tensorflow as tf


def leave_small_ones() -> None:
    """Has graphs of up to 1,000 nodes run as they were traced.

    Grappler takes a quarter of the suite to make graphs faster that run for a few steps; TensorFlow leaves those of up
    to 4 nodes alone. With `LOOPER_TESTS_OPTIMIZE_GRAPHS=1` all are optimized, as in the commands that tests start.
    """
    if "LOOPER_TESTS_OPTIMIZE_GRAPHS" not in os.environ:
        tf.config.optimizer.set_experimental_options({"min_graph_nodes": 1000})
