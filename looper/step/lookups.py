"""Lookups in large tables that read the rows they look up, and not the table."""

import contextlib
import functools
from collections.abc import Iterable, Iterator
from typing import Any

import keras
import tensorflow as tf

from looper.base.names import on_this_replica
from looper.base.put_back import instead
from looper.recipe.layers import inside
from looper.step import rows

Embedding = keras.layers.Embedding


def find(layers: Iterable[keras.Layer]) -> tuple[keras.Layer, ...]:
    """Those of the layers, and of what they hold, that look rows of a large table up as Keras' `Embedding` does.

    Example:
        >>> few, many = Embedding(10, 8), Embedding(rows.LARGE, 1)
        >>> few.build(), many.build()
        (None, None)
        >>> find([few, many]) == (many,)
        True
    """
    found = {id(one): one for layer in layers for one in inside(layer)}.values()
    return tuple(layer for layer in found if isinstance(layer, Embedding) and layer.built and _is_plain(layer))


@contextlib.contextmanager
def of_rows(layers: Iterable[keras.Layer]) -> Iterator[None]:
    """Inside it these layers read from their tables the rows that they look up.

    Keras 3.15 reads the table and takes rows of that. For TensorFlow (2.21, `EnsureSparseVariableAccess`) such a read
    of a variable of which an optimizer has changed rows is a copy of the whole; reading rows is not.

    Example:
        >>> layer = Embedding(rows.LARGE, 2, embeddings_initializer="ones")
        >>> layer.build()
        >>> with of_rows([layer]):
        ...     layer(tf.constant([3, rows.LARGE - 1])).numpy().tolist()
        [[1.0, 1.0], [1.0, 1.0]]
    """
    with contextlib.ExitStack() as stack:
        for layer in layers:
            stack.enter_context(instead(layer, "call", functools.partial(_look_up, layer, layer.embeddings.value)))
        yield


def _is_plain(layer: keras.Layer) -> bool:
    """Whether a layer has a large table and does with it what Keras' class does."""
    table = layer.embeddings
    call = layer.call
    while hasattr(call, "looper_recorder"):  # an audit's, which takes notes
        call = call.__wrapped__
    return (
        isinstance(table, keras.Variable)
        and table.shape[0] * table.shape[1] >= rows.LARGE
        and getattr(call, "__func__", None) is Embedding.call
    )


def _look_up(layer: keras.Layer, table: tf.Variable, inputs: Any) -> tf.Tensor:
    """`Embedding.call`, bound to a layer and its table; it also takes negative indices, from the table's end."""
    if (
        getattr(layer.embeddings, "value", None) is not table  # cast, or given by a `keras.StatelessScope`
        or not isinstance(inputs, tf.Tensor)  # ragged or sparse
        or tf.distribute.in_cross_replica_context()
    ):
        return Embedding.call(layer, inputs)
    indices = inputs if inputs.dtype in (tf.int32, tf.int64) else tf.cast(inputs, tf.int32)
    # a distributed variable would be read: what it hands on does not know `sparse_read`, which `tf.gather` uses
    copy = on_this_replica(tf.distribute.get_strategy().experimental_local_results(table))
    found = tf.gather(copy, tf.where(indices < 0, indices + table.shape[0], indices))
    return tf.cast(found, layer.compute_dtype)
