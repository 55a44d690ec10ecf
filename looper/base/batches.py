"""Batches: how many examples one has, and a run of them. Dense, ragged and sparse tensors alike.

A batch may have parts of different lengths, such as labelled and unlabelled examples: a recipe or the data names them,
by keys of a dict or positions of a tuple. What is not named is a part together. All else has the same first axis.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import tensorflow as tf

from looper.base import xla
from looper.base.errors import InputError

Parts = Sequence[str | int]
"""Names of parts: keys of a dict, or positions of a tuple."""

Length: TypeAlias = "int | tf.Tensor"
"""A number of rows: an int where the shape is known, else an int32 scalar."""


def count_examples(batch: Any, parts: Parts = ()) -> tf.Tensor:
    """The number of examples of a batch: the length of its first tensor's first axis, int32 scalar.

    Of a batch with parts it is that of the first part.

    Example:
        >>> int(count_examples({"words": tf.ragged.constant([[1, 2], [3]])}))
        2
        >>> int(count_examples({"a": tf.zeros([32]), "b": tf.zeros([8])}, ["b", "a"]))
        8
    """
    first = tf.nest.flatten(batch)[owners(batch, parts).index(0)]
    if isinstance(first, tf.RaggedTensor):
        return tf.cast(first.nrows(), tf.int32)
    if isinstance(first, tf.SparseTensor):
        return tf.cast(first.dense_shape[0], tf.int32)
    known = first.shape[0]
    return tf.shape(first)[0] if known is None else tf.constant(known)


def take(batch: Any, start: tf.Tensor, stop: tf.Tensor) -> Any:
    """The examples of a batch from `start` up to `stop`, int32 scalars.

    Example:
        >>> take((tf.range(4), tf.ragged.constant([[1, 2], [3], [], [4]])), 1, 3)[1].to_list()
        [[3], []]
    """
    return tf.nest.map_structure(lambda tensor: rows(tensor, start, stop), batch)


def cut(batch: Any, span: Callable[[tf.Tensor], tuple[Any, Any]], parts: Parts = ()) -> tuple[Any, tf.Tensor]:
    """Some of the examples of each part, and how many of the first part.

    Args:
        batch: see above.
        span: from the length of a part to where to start and stop in it, int32 scalars.
        parts: the parts that it has.

    Example:
        >>> some, count = cut({"a": tf.range(2), "b": tf.range(6)}, lambda length: (0, length // 2), ["a", "b"])
        >>> some["b"].numpy().tolist(), int(count)
        ([0, 1, 2], 1)
    """
    of_each, flat = owners(batch, parts), tf.nest.flatten(batch)
    spans = [span(count_examples(flat[of_each.index(i)])) for i in range(max(of_each) + 1)]
    found = [rows(tensor, *spans[owner]) for tensor, owner in zip(flat, of_each, strict=True)]
    return tf.nest.pack_sequence_as(batch, found), spans[0][1] - spans[0][0]


def check_parts(parts: Any) -> None:
    """Raises `InputError` for what does not name parts.

    Example:
        >>> check_parts("labelled")
        Traceback (most recent call last):
        ...
        looper.errors.InputError: parts='labelled': expected names of parts, such as ('labelled', 'unlabelled').
    """
    if not isinstance(parts, tuple | list) or not all(isinstance(part, str | int) for part in parts):
        raise InputError(f"parts={parts!r}: expected names of parts, such as ('labelled', 'unlabelled').")


def parts_in(batch: Any, parts: Parts) -> tuple[str | int, ...]:
    """Those of some parts that a batch, or its spec, has.

    Example:
        >>> parts_in({"a": 1, "b": 2}, ["b", "c"]), parts_in((1, 2), ["b", 1]), parts_in(1, ["b", 0])
        (('b',), (1,), ())
    """
    if isinstance(batch, Mapping):
        return tuple(part for part in dict.fromkeys(parts) if part in batch)
    size = len(batch) if isinstance(batch, tuple | list) else 0
    return tuple(part for part in dict.fromkeys(parts) if isinstance(part, int) and 0 <= part < size)


def owners(batch: Any, parts: Parts) -> list[int]:
    """The number of the part that each tensor of a batch belongs to, in the order of `tf.nest.flatten`.

    Example:
        >>> owners({"x": 1, "y": 2, "z": (3, 4)}, ["z"])
        [1, 1, 0, 0]
    """
    own = parts_in(batch, parts)
    if not own:
        return [0] * len(tf.nest.flatten(batch))
    items = batch if isinstance(batch, Mapping) else dict(enumerate(batch))
    number = {key: own.index(key) if key in own else len(own) for key in items}
    return tf.nest.flatten({key: [number[key]] * len(tf.nest.flatten(item)) for key, item in items.items()})


def lengths(batch: Any, parts: Parts) -> list[Length]:
    """The length of each part."""
    of_each, flat = owners(batch, parts), tf.nest.flatten(batch)
    return [_length(flat[of_each.index(i)]) for i in range(max(of_each) + 1)]


def why_not_cut(batch: Any, parts: Parts = ()) -> str | None:
    """Why a batch, or what its spec tells of it, cannot be cut into slices; None if nothing is known against it.

    Example:
        >>> why_not_cut((tf.zeros([8]), tf.zeros([8]))), why_not_cut((tf.zeros([8]), tf.zeros([9])), [0])
        (None, None)
        >>> why_not_cut((tf.zeros([8]), tf.zeros([32])))[:41]
        "the batch's parts have 8 and 32 examples:"
    """
    of_each = owners(batch, parts)
    known = [x.shape[0] if x.shape.rank else None for x in tf.nest.flatten(batch)]
    for i in range(max(of_each) + 1):
        sizes = list(dict.fromkeys(n for n, owner in zip(known, of_each, strict=True) if owner == i and n is not None))
        if len(sizes) > 1:
            return f"the batch's parts have {' and '.join(map(str, sizes))} examples: {_remedy(batch, parts)}"
    return None


def checked(batch: Any, parts: Parts = ()) -> Any:
    """The batch, if it can be cut into slices: all tensors of a part have the same length.

    Where shapes are not known, the graph looks, and what fails there begins with "looper: ". In an XLA program,
    which leaves such checks out, only what is known is looked at.

    Raises:
        InputError: if it is known that it cannot.
    """
    reason = why_not_cut(batch, parts)
    if reason is not None:
        raise InputError(f"{reason}.")
    found = list(map(_length, tf.nest.flatten(batch)))
    of_each = owners(batch, parts)
    groups = [[n for n, o in zip(found, of_each, strict=True) if o == i] for i in range(max(of_each) + 1)]
    unsure = [group for group in groups if len(group) > 1 and not _all_known(group)]
    if unsure:
        alike = [tf.reduce_all(tf.equal(group[0], tf.stack(group))) for group in unsure]
        sizes = [n for group in unsure for n in group]
        text = ["the batch's parts have ", sizes, f" examples: {_remedy(batch, parts)}"]
        batch = only_if(tf.reduce_all(tf.stack(alike)), text, batch)
    return batch


def only_if(sound: bool | tf.Tensor, text: Sequence[str | Sequence[Length]], tensors: Any) -> Any:
    """Some tensors, which can be had only if something is sound; if that is known now, they are as they were.

    Args:
        sound: a bool, or a bool scalar that the graph looks at, unless it is in an XLA program.
        text: of the error, with lists of lengths, and without brackets and full stop.
        tensors: any structure.

    Raises:
        InputError: if it is known that it is not sound.

    Example:
        >>> only_if(False, ["found ", [2, 3, 2], " of them"], tf.zeros([]))
        Traceback (most recent call last):
        ...
        looper.errors.InputError: found 2 and 3 of them.
    """
    if isinstance(sound, bool):
        if sound:
            return tensors
        shown = [s if isinstance(s, str) else " and ".join(map(str, dict.fromkeys(s))) for s in text]
        raise InputError(f"{''.join(shown)}.")
    if xla.traces():
        return tensors

    def fail() -> tf.Tensor:
        shown = [s if isinstance(s, str) else _listed(s) for s in text]
        with tf.control_dependencies([tf.debugging.Assert(sound, [tf.strings.join(["looper: ", *shown])])]):
            return tf.identity(sound)

    with tf.control_dependencies([tf.cond(sound, lambda: tf.identity(sound), fail)]):
        return tf.nest.map_structure(tf.identity, tensors, expand_composites=True)


def rows(tensor: Any, start: Length, stop: Length) -> Any:
    """The rows of a dense, ragged or sparse tensor from `start` up to `stop`."""
    if not isinstance(tensor, tf.SparseTensor):
        return tensor[start:stop]
    shape, others = tensor.shape, tensor.dense_shape[1:]
    start, stop = tf.cast(start, tf.int64), tf.cast(stop, tf.int64)
    first = tf.concat([[start], tf.zeros_like(others)], 0)
    found = tf.sparse.slice(tensor, first, tf.concat([[stop - start], others], 0))
    found.set_shape([None, *shape[1:]])  # which the slice does not know of
    return found


def of_any_size(spec: tf.TypeSpec) -> tf.TypeSpec:
    """The spec of a tensor of batches that have any number of examples.

    Example:
        >>> of_any_size(tf.TensorSpec([8, 3]))
        TensorSpec(shape=(None, 3), dtype=tf.float32, name=None)
    """
    shape = [None, *spec.shape[1:]]
    if isinstance(spec, tf.RaggedTensorSpec):
        return tf.RaggedTensorSpec(shape, spec.dtype, spec.ragged_rank, spec.row_splits_dtype)
    return type(spec)(shape, spec.dtype)


def _length(tensor: Any) -> Length:
    if tensor.shape.rank == 0:
        return 0  # which is no batch, as others find
    known = tensor.shape[0] if tensor.shape.rank else None
    return count_examples(tensor) if known is None else known


def _all_known(numbers: Sequence[Length]) -> bool:
    return all(isinstance(number, int) for number in numbers)


def _listed(numbers: Sequence[Length]) -> tf.Tensor:
    return tf.strings.reduce_join(tf.strings.as_string(tf.unique(tf.stack(numbers))[0]), separator=" and ")


def _remedy(batch: Any, parts: Parts) -> str:
    if parts_in(batch, parts):
        return "one part is what has the same number of examples"
    keys = tuple(batch) if isinstance(batch, Mapping) else tuple(range(len(batch)))
    return f"declare them with parts = {keys} in the recipe, or give looper.data.zipped"
