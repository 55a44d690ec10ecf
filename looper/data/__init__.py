"""Data: from what people have to one iterator over global batches that can be put at any position."""

from looper.data import augment
from looper.data.choose import make_source
from looper.data.named import named
from looper.data.source import Source
from looper.data.zipped import zipped

__all__ = ["Source", "augment", "make_source", "named", "zipped"]
