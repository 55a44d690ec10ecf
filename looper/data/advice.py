"""What makes a dataset slow, from what it shows of itself: for runs whose steps wait for data."""

import tensorflow as tf

from looper.base.xla import PYTHON
from looper.data.exact import ops_of, stage_name, stages

CALLING = ("map", "map_and_batch", "interleave", "flat_map", "filter")
"""Stages that call a function for each of their elements."""

IN_PARALLEL = ("map", "map_and_batch", "interleave")
"""Those that can be told to call several at a time."""


def remedies(dataset: tf.data.Dataset) -> list[str]:
    """What to change in a dataset, the most helpful first.

    Example:
        >>> remedies(tf.data.Dataset.range(8).map(lambda x: x + 1).batch(2))[0]
        'map() makes one call after another: give it num_parallel_calls=tf.data.AUTOTUNE'
    """
    calling, found = [], []
    for stage, after in stages(dataset):
        name, ops = stage_name(stage), ops_of(stage)
        if ops & PYTHON or "GeneratorDataset" in ops:
            return ["Python makes its elements, one at a time: write that in TensorFlow's ops, or keep them in arrays"]
        if name in CALLING:
            calling.append((name, after))
            if name in IN_PARALLEL and "Parallel" not in type(stage).__name__:
                found.append(f"{name}() makes one call after another: give it num_parallel_calls=tf.data.AUTOTUNE")
    for name, after in calling:
        if name == "map" and "batch" in after:
            found.append("map() is called for each example: put batch() before it")
    if not calling:
        return ["its examples are taken one by one: if they fit into memory, give looper the arrays in its place"]
    if not any("cache" in after for _, after in calling):
        found.append("what its functions make is made anew in each pass: cache() behind them keeps it in memory")
    return found
