"""Data: from what people have to one iterator over global batches that can be put at any position."""

from looper.data import augment
from looper.data.arrays import ArraySource
from looper.data.choose import as_inputs, has_batches, hint_at_named, make_source
from looper.data.dataset import DatasetSource
from looper.data.feed import Feed, check_batch_size, check_length, data_ended, replayed
from looper.data.feeds import Feeds, identity
from looper.data.indexed import IndexedSource
from looper.data.iterables import IterableSource
from looper.data.named import Named, named
from looper.data.py_dataset import PyDatasetSource
from looper.data.python import tidy, without_lists
from looper.data.source import Source
from looper.data.split import split
from looper.data.stacks import (
    Part,
    Stacks,
    bytes_of,
    graph_stack_size,
    of_iterator,
    size_of,
    stack_size,
    stacked_in_graph,
    why_not_kept,
    why_not_stacked,
)
from looper.data.zipped import zipped

__all__ = [
    "ArraySource",
    "DatasetSource",
    "Feed",
    "Feeds",
    "IndexedSource",
    "IterableSource",
    "Named",
    "Part",
    "PyDatasetSource",
    "Source",
    "Stacks",
    "as_inputs",
    "augment",
    "bytes_of",
    "check_batch_size",
    "check_length",
    "data_ended",
    "graph_stack_size",
    "has_batches",
    "hint_at_named",
    "identity",
    "make_source",
    "named",
    "of_iterator",
    "replayed",
    "size_of",
    "split",
    "stack_size",
    "stacked_in_graph",
    "tidy",
    "why_not_kept",
    "why_not_stacked",
    "without_lists",
    "zipped",
]
