"""Whether a run that is continued reads the same from a `tf.data` dataset as one that was not stopped, and why not.

That TensorFlow can save an iterator does not mean that the passes after it have the same orders: a shuffle draws them
from a counter that only one process has. So the dataset is looked through, from its end to its beginning.
"""

from collections.abc import Iterator
from typing import Any

import tensorflow as tf

from looper.base.xla import PYTHON, UNSEEDED, operations

VARIABLES = frozenset({"AssignVariableOp", "AssignAddVariableOp", "RngReadAndSkip"})


def why_not_saved(dataset: tf.data.Dataset) -> str | None:
    """Why TensorFlow cannot save an iterator's place in a dataset, with the remedy; None if nothing is found.

    Example:
        >>> why_not_saved(tf.data.Dataset.range(5).map(lambda x: tf.random.uniform([])))
        'it calls random ops in map (RandomUniform): use looper.data.augment, or tf.random.stateless_*'
    """
    for stage, _ in stages(dataset):
        kind, where, ops = type(stage).__name__, stage_name(stage), ops_of(stage)
        if "GeneratorDataset" in ops:
            return "it is made by from_generator: give looper the generator function itself, or an indexable source"
        if ops & PYTHON:
            return (
                f"it calls Python in {where} (py_function or numpy_function): write it in TensorFlow's ops, or give "
                "looper a keras.utils.PyDataset or an indexable source"
            )
        if ops & UNSEEDED:
            named = ", ".join(sorted(ops & UNSEEDED))
            return f"it calls random ops in {where} ({named}): use looper.data.augment, or tf.random.stateless_*"
        if ops & VARIABLES:
            return (
                f"it changes variables in {where}, as Keras' augmentation layers do: use looper.data.augment, or put "
                "the layers into the model"
            )
        if "ShuffleDatasetV3" in ops:
            return f"it shuffles inside {where}: shuffle before or after it"
        if kind == "_CopyToDeviceDataset":
            return "it uses copy_to_device or prefetch_to_device: leave that out"
    return None


def why_other_orders(dataset: tf.data.Dataset) -> str | None:
    """Why a dataset whose iterators can be saved draws other numbers after a restart; None if nothing is found.

    Example:
        >>> why_other_orders(tf.data.Dataset.range(5).shuffle(5, seed=1).repeat(2))
        'repeat() comes after shuffle(): put repeat() before it, or leave repeating to looper'
    """
    if dataset.options().experimental_symbolic_checkpoint and (reason := why_not_saved(dataset)):
        return f"experimental_symbolic_checkpoint restores it to other numbers, because {reason}"
    if reason := why_other_in_each_process(dataset):
        return reason
    drawing = 0
    for stage, after in stages(dataset):
        shuffle = type(stage).__name__ == "_ShuffleDataset"
        if shuffle and not stage._reshuffle_each_iteration:
            continue
        drawing += shuffle
        if drawing > 1:
            return (
                "it has several shuffles that draw an order for each pass: keep one, or reshuffle_each_iteration=False"
            )
        again = [method for method in after if method in ("repeat", "cache")]
        if shuffle and again:
            other = again[0]
            remedy = "leave repeating to looper" if other == "repeat" else "give it reshuffle_each_iteration=False"
            return f"{other}() comes after shuffle(): put {other}() before it, or {remedy}"
    return None


def draws_orders(dataset: tf.data.Dataset) -> bool:
    """Whether a shuffle draws an order for each pass, from a counter that only this process has.

    Example:
        >>> draws_orders(tf.data.Dataset.range(5).shuffle(5, seed=1).batch(2))
        True
    """
    return any(type(s).__name__ == "_ShuffleDataset" and s._reshuffle_each_iteration for s, _ in stages(dataset))


def why_other_in_each_process(dataset: tf.data.Dataset) -> str | None:
    """Why two processes that make the same dataset read other batches; None if nothing is found.

    Example:
        >>> parallel = tf.data.Dataset.range(5).map(lambda x: x, num_parallel_calls=2, deterministic=False)
        >>> why_other_in_each_process(parallel)
        'map() is not deterministic: leave deterministic=False out'
    """
    deterministic = dataset.options().deterministic is not False
    for stage, _ in stages(dataset):
        if getattr(stage, "_deterministic", None) == "false" or not deterministic:
            return f"{stage_name(stage)}() is not deterministic: leave deterministic=False out"
        if type(stage).__name__ in ("_ShuffleDataset", "_RandomDataset") and _unseeded(stage):
            return f"{stage_name(stage)}() has no seed, so each process draws another: give it seed="
    return None


def stages(dataset: tf.data.Dataset, after: tuple[str, ...] = ()) -> Iterator[tuple[Any, tuple[str, ...]]]:
    """A dataset and what it is made of, the end of the pipeline first; and the methods called on each, the last first.

    `_inputs`, `_functions` and the classes' names and attributes are private in TensorFlow 2.21. The public way,
    `tf.raw_ops.DatasetToGraphV2`, copies all tensors of the dataset into the graph. tests/test_private_names.py fails
    if one of the names changes.
    """
    yield dataset, after
    for stage in dataset._inputs():
        yield from stages(stage, (*after, stage_name(dataset)))


def ops_of(dataset: Any) -> set[str]:
    """The types of the operations that a dataset's functions call."""
    found: set[str] = set()
    for function in dataset._functions():
        graph = getattr(function.function, "graph", None)  # `map_with_legacy_function` has none
        found |= {node.op for node in function.function.definition.node_def} if graph is None else {*operations(graph)}
    return found


def stage_name(dataset: Any) -> str:
    """The method of `tf.data.Dataset` that made a dataset, or the kind of its source.

    Example:
        >>> stage_name(tf.data.Dataset.range(3).flat_map(lambda x: tf.data.Dataset.range(x)))
        'flat_map'
    """
    name = type(dataset).__name__.strip("_").removesuffix("Dataset").removeprefix("Parallel")
    return "".join(f"_{letter.lower()}" if letter.isupper() else letter for letter in name).strip("_")


def _unseeded(dataset: Any) -> bool:
    """tf.data's seeds are 0 and 0 where neither the dataset nor the process has one."""
    return int(dataset._seed) == 0 and int(dataset._seed2) == 0
