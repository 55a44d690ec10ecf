"""Feeds that are kept: `tf.data` keeps every function for good, so data that is used again gets no new pipeline."""

import collections
import zlib
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from looper.data import leaves
from looper.data.augment import Augmented
from looper.data.choose import has_batches, make_source
from looper.data.feed import Feed
from looper.data.indexed import is_map_dataset
from looper.data.split import split

MOST = 4
"""Feeds of one trainer at once: each holds its data."""


class Feeds:
    """Feeds for evaluation and prediction, the last few used, found by the identity and content of their data."""

    def __init__(self) -> None:
        self._feeds: collections.OrderedDict[Any, Feed] = collections.OrderedDict()
        self._most = MOST

    def keep_at_least(self, count: int) -> None:
        """Keeps so many from now on, or more."""
        self._most = max(self._most, count)

    def get(self, data: Any, *, batch_size: int | None, name: str, held_out: float | None = None) -> Feed:
        """The feed over data, in order; `held_out` means the last fraction of it alone. Raises like `make_source`."""
        if isinstance(data, Augmented) and not data.evaluate:
            data = data.data
        key = (*identity(data), batch_size, held_out, keras.config.floatx())
        if key not in self._feeds:
            chosen = data if held_out is None else split(data, held_out)[1]
            source = make_source(chosen, batch_size=batch_size, shuffle=False, seed=0, name=name)
            self._feeds[key] = Feed(source, holding=data)
        self._feeds.move_to_end(key)
        while len(self._feeds) > self._most:
            self._feeds.popitem(last=False)
        return self._feeds[key]


def identity(data: Any) -> list[Any]:
    """Tells data from other data that is alive, and from itself before it was changed.

    That is the ids of its leaves and their structure, or its own id and length; and checksums of the arrays in
    memory, which may have been written to since: a pipeline has copied them.
    """
    if has_batches(data) or is_map_dataset(data):
        # how many batches a PyDataset has may change from pass to pass
        return [id(data), None if isinstance(data, keras.utils.PyDataset) else _length(data)]
    structure = str(tf.nest.map_structure(lambda _: 0, data))
    found = tf.nest.flatten(data)
    return [structure, *map(id, found), *(_checksum(leaf) for leaf in found if leaves.is_array(leaf))]


def _length(data: Any) -> int | None:
    try:
        return len(data)
    except TypeError:
        return None


def _checksum(leaf: Any) -> int:
    if leaves.is_read_lazily(leaf) or isinstance(leaf, tf.Tensor | tf.RaggedTensor | tf.SparseTensor):
        return 0
    if hasattr(leaf, "tocoo"):
        coo = leaf.tocoo()
        return hash((_checksum(coo.row), _checksum(coo.col), _checksum(coo.data)))
    array = np.asarray(leaves.as_numpy(leaf))
    if array.dtype == object:
        return zlib.crc32(repr(array.tolist()).encode())
    return zlib.crc32(np.ascontiguousarray(array).view(np.uint8).data) if array.size else 0
