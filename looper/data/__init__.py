"""Data: from what people have to one iterator over global batches that can be put at any position."""

from looper.data.arrays import ArraySource
from looper.data.dataset import DatasetSource
from looper.data.feed import Feed, Source, check_length, data_ended, make_source

__all__ = ["ArraySource", "DatasetSource", "Feed", "Source", "check_length", "data_ended", "make_source"]
