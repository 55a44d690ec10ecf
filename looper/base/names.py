"""Layers, optimizers, metrics, modules and variables that a trainer, a model or a module holds, by name."""

import types
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import keras
import tensorflow as tf

MOST_ITEMS = 1000
"""Longer lists and dicts are taken for data, such as a vocabulary, and not looked through."""

PLAIN = frozenset({types.NoneType, types.FunctionType, bool, int, float, str})
"""Types of most attributes of a layer, passed over at once."""

OBJECTS = (
    tf.Variable,
    keras.Variable,
    keras.random.SeedGenerator,
    keras.Layer,
    keras.optimizers.Optimizer,
    keras.Metric,
    tf.Module,
)


def named_objects(attributes: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """The layers, optimizers, metrics, modules and variables among attributes and in their lists, tuples and dicts.

    Lists and dicts of more than `MOST_ITEMS` items are taken for data and not looked through.

    Example:
        >>> [name for name, _ in named_objects({"blocks": [keras.layers.Dense(1)], "rate": 0.1})]
        ['blocks/0']
    """
    for name, value in attributes.items():
        if type(value) in PLAIN:
            continue
        if isinstance(value, dict | list | tuple) and len(value) > MOST_ITEMS:
            continue
        if isinstance(value, OBJECTS):
            yield name, value
        elif isinstance(value, Mapping):
            yield from named_objects({f"{name}/{key}": item for key, item in value.items()})
        elif isinstance(value, list | tuple):
            yield from named_objects({f"{name}/{i}": item for i, item in enumerate(value)})


def as_tf(variable: Any) -> Any:
    """The `tf.Variable` (or distributed variable) of a Keras variable."""
    return variable.value if isinstance(variable, keras.Variable) else variable


def on_this_replica(copies: Sequence[Any]) -> Any:
    """Of each local replica's copy of something, that of the replica whose step is traced or run.

    Example:
        >>> on_this_replica(["a"])
        'a'
    """
    if len(copies) == 1:
        return copies[0]
    replica = tf.get_static_value(tf.distribute.get_replica_context().replica_id_in_sync_group)
    return copies[int(replica) % len(copies)]


def path_of(variable: Any) -> str:
    """The path of a Keras variable, or the name of a `tf.Variable`.

    Example:
        >>> path_of(keras.Variable(1.0, name="rate")), path_of(tf.Variable(1.0, name="rate"))
        ('rate', 'rate:0')
    """
    return variable.path if isinstance(variable, keras.Variable) else variable.name


def is_layer_or_module(thing: Any) -> bool:
    """Whether something is a layer, model or module, and not an optimizer or a metric."""
    return isinstance(thing, keras.Layer | tf.Module) and not isinstance(
        thing, keras.optimizers.Optimizer | keras.Metric
    )


def named_children(thing: Any) -> Iterator[tuple[str, Any]]:
    """The layers and modules that one holds directly, each once, by name.

    In Sequential and Functional models that is their own name, elsewhere the attribute's: `norm`, `blocks/0`.

    Example:
        >>> model = keras.Sequential([keras.layers.Dense(3, name="head")])
        >>> [name for name, _ in named_children(model)]
        ['head']
    """
    listed: set[int] = set()
    if isinstance(thing, keras.Sequential) or hasattr(thing, "operations"):  # Functional models have it
        for layer in thing.layers:
            listed.add(id(layer))
            yield layer.name, layer
        held = {name: value for name, value in vars(thing).items() if not name.startswith("_")}
    else:
        # `_self_...` are those of TensorFlow's checkpoints
        held = {
            name: value
            for name, value in vars(thing).items()
            if name not in ("_layers", "_tracked") and not name.startswith("_self_")
        }
    for name, child in named_objects(held):
        if is_layer_or_module(child) and id(child) not in listed and not isinstance(child, keras.layers.InputLayer):
            listed.add(id(child))
            yield name.lstrip("_"), child
    if isinstance(thing, keras.Layer) and not hasattr(thing, "operations"):
        # what Keras tracks in a way that no attribute shows, such as in a set
        for child in getattr(thing, "layers", ()):
            if id(child) not in listed:
                yield child.name, child
