"""Which source serves what a user gives."""

from typing import Any

import keras
import tensorflow as tf

from looper.base.errors import InputError
from looper.data import leaves
from looper.data.arrays import ArraySource, is_arrays
from looper.data.augment import Augmented
from looper.data.dataset import DatasetSource
from looper.data.indexed import IndexedSource, is_map_dataset
from looper.data.iterables import IterableSource
from looper.data.named import Named
from looper.data.py_dataset import PyDatasetSource
from looper.data.python import without_lists
from looper.data.source import Source
from looper.data.zipped import Zipped, zipped_source

DATA = (
    "a tf.data.Dataset of batches, arrays as x, (x, y) or (x, y, sample_weight), where x may be a dict or a list, a "
    "keras.utils.PyDataset, a sequence of examples, or a generator of batches"
)


def make_source(
    data: Any,
    *,
    batch_size: int | None,
    shuffle: bool,
    seed: int,
    name: str = "data",
    training: bool = False,
    on_demand: bool = False,
) -> Source:
    """The source for what a user gives.

    Args:
        data: a `tf.data.Dataset` of batches; an array, or nested tuples, lists and dicts of arrays (NumPy, tensors,
            pandas, SciPy; memory-mapped and HDF5 ones are read batch by batch); a `keras.utils.PyDataset`;
            something with `len()` and `[i]` that returns an example, such as a list of `(x, y)` or a PyTorch map
            dataset; a generator, a function that makes one, or another iterable of batches; what `zipped` returned.
        batch_size: examples per batch, for arrays and examples only (default 32).
        shuffle: whether to shuffle arrays and examples.
        seed: of the shuffling.
        name: what to call the data in errors.
        training: whether to do what `looper.data.augment.augmented` asked for.
        on_demand: whether to read no batch before it is asked for, of data that Python makes batch by batch.

    Raises:
        InputError: if it is none of these, is empty, or batch_size is given for data that has its batches; if it cannot
            be read `on_demand`.
    """
    if isinstance(data, Named):
        raise InputError(f"the {name} is what named() returned, which is for eval_data and evaluate() alone.")
    batched = _batched(data)
    if batched is not None:
        if batch_size is not None:
            raise InputError(f"batch_size={batch_size} is for arrays and examples: {batched} has its batches already.")
        if isinstance(data, tf.data.Dataset):
            _check_reads_ahead(batched, on_demand)
            return DatasetSource(data)
        if isinstance(data, Zipped):
            _check_reads_ahead("several sources side by side", on_demand)
            return zipped_source(_members(data, shuffle, seed, training))
        if isinstance(data, keras.utils.PyDataset):
            return PyDatasetSource(data, on_demand)
        return IterableSource(data, on_demand)
    options: dict[str, Any] = {"batch_size": batch_size or 32, "shuffle": shuffle, "seed": seed}
    if isinstance(data, Augmented):
        options["transform"] = data.transform() if training or data.evaluate else None
        data = data.data
    if is_map_dataset(data):
        return IndexedSource(data, **options, on_demand=on_demand)
    arrays = without_lists(data)
    if is_arrays(arrays):
        if any(leaves.is_read_lazily(leaf) for leaf in tf.nest.flatten(arrays)):
            return IndexedSource(arrays, **options, on_demand=on_demand)
        _check_reads_ahead("arrays", on_demand)
        try:
            return ArraySource(arrays, **options)
        except InputError as error:
            raise InputError(f"{error}{hint_at_named(data)}") from None
    kinds = sorted({type(leaf).__name__ for leaf in tf.nest.flatten(arrays) if not leaves.is_array(leaf)})
    kind = type(data).__name__ + (f" of {', '.join(kinds)}" if isinstance(data, dict | list | tuple) else "")
    raise InputError(f"the {name} is {kind}: expected {DATA}.{hint_at_named(data)}")


def hint_at_named(data: Any) -> str:
    """What to say of a dict or list that looks like several sets of data, in an error about it; else "".

    Example:
        >>> hint_at_named({"val": (tf.zeros([3, 2]), tf.zeros([3])), "ood": (tf.zeros([5, 2]), tf.zeros([5]))})
        ' Several sets of evaluation data are given as looper.data.named(val=..., ood=...).'
    """
    members = list(data.values()) if isinstance(data, dict) else data if isinstance(data, list | tuple) else []
    if not members or not all(has_batches(member) or isinstance(member, tuple) for member in members):
        return ""
    return " Several sets of evaluation data are given as looper.data.named(val=..., ood=...)."


def _check_reads_ahead(what: str, on_demand: bool) -> None:
    if on_demand:
        raise InputError(
            f"prefetch=0 is for generators and sequences, which Python asks for each batch, and the data is {what}: "
            "leave prefetch out, or give a function that makes a generator."
        )


def _members(data: Zipped, shuffle: bool, seed: int, training: bool) -> dict[str, Source]:
    found = {}
    for i, (name, source) in enumerate(data.sources.items()):
        size = None if has_batches(source) else data.batch_size[name]
        own = seed + i  # an order of its own
        found[name] = make_source(source, batch_size=size, shuffle=shuffle, seed=own, name=name, training=training)
    return found


def as_inputs(data: Any) -> Any:
    """Data to predict from, of which a tuple is `(x, ...)` and a list of arrays one `x` of several inputs.

    Example:
        >>> as_inputs([tf.zeros([2]), tf.ones([2])])[0][1].numpy().tolist(), as_inputs([1, 2])
        ([1.0, 1.0], [1, 2])
    """
    return (data,) if isinstance(data, list) and data and leaves.is_array(data[0]) else data


def has_batches(data: Any) -> bool:
    """Whether data comes in batches, so that `batch_size` has no meaning for it."""
    return _batched(data) is not None


def _batched(data: Any) -> str | None:
    """The name for data that comes in batches; None for other data."""
    if isinstance(data, tf.data.Dataset):
        return "a tf.data.Dataset"
    if isinstance(data, keras.utils.PyDataset):
        return "a PyDataset"
    if isinstance(data, Zipped):
        return "what zipped() returned"
    plain = isinstance(data, str | bytes | dict | tuple | list | set) or leaves.is_array(data)
    if plain or is_map_dataset(data) or not (hasattr(data, "__iter__") or callable(data)):
        return None
    return f"a {type(data).__name__}"
