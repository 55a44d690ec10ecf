"""What makes a dataset slow, from what it shows of itself: for runs whose steps wait for data."""

import tensorflow as tf

from looper.base.xla import PYTHON
from looper.data.exact import ops_of, stage_name, stages

IN_PARALLEL = ("map", "interleave")
"""Stages that call a function, and can be told to make several calls at a time."""

OTHER_EACH_TIME = ("shuffle", "repeat", "random", "directed_interleave", "shuffle_and_repeat")
"""Stages whose elements a cache behind them would keep as they were in the first pass, or without end."""


def remedies(dataset: tf.data.Dataset) -> list[str]:
    """What to change in a dataset, the most helpful first.

    Example:
        >>> remedies(tf.data.Dataset.range(8).map(lambda x: x + 1).batch(2))[0]
        'map() makes one call after another: give it num_parallel_calls=tf.data.AUTOTUNE'
    """
    found, called, names = [], [], set()
    draws = dataset.cardinality() == tf.data.INFINITE_CARDINALITY
    for stage, after in stages(dataset):
        name, ops = stage_name(stage), ops_of(stage)
        names.add(name)
        if ops & PYTHON or "GeneratorDataset" in ops:
            return ["Python makes its elements, one at a time: write that in TensorFlow's ops, or keep them in arrays"]
        if ops:
            called.append((name, after))
        if name in IN_PARALLEL and "Parallel" not in type(stage).__name__:
            found.append(f"{name}() makes one call after another: give it num_parallel_calls=tf.data.AUTOTUNE")
        draws |= name in OTHER_EACH_TIME or any("Random" in op or "Rng" in op for op in ops)
    for name, after in called:
        if name == "map" and "batch" in after and "unbatch" not in after:
            found.append("map() is called for each example: put batch() before it if its function takes whole batches")
    if not called:
        return ["its examples are taken one by one: if they fit into memory, give looper the arrays in its place"]
    if not draws and not names & {"cache", "snapshot"}:
        found.append("what its functions make is made anew in each pass: cache() behind them keeps it in memory")
    return list(dict.fromkeys(found))
