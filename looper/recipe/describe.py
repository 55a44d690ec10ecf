"""The configuration of a run, which tells it from others: written to `config.json`, compared on resuming."""

import dataclasses
import json
from collections.abc import Mapping
from typing import Any

import keras

from looper.recipe.freezing import acts_as_inference
from looper.recipe.learning_rates import groups_of
from looper.recipe.optimizers import inner, members


def describe(thing: Any) -> Any:
    """A JSON value that tells a model, optimizer, loss, dataclass or plain value from another of its kind.

    Automatic names, which depend on what else the process has built, are left out, and so are a dataclass's fields that
    do not count when two are compared (`dataclasses.field(compare=False)`).

    Example:
        >>> describe(keras.layers.Dropout(0.5))["Dropout"]["rate"]
        0.5
    """
    if isinstance(thing, keras.Layer):
        layers = thing.layers if isinstance(thing, keras.Model) else []
        own = {} if layers else _config(thing)
        own |= {"frozen_dropout": True} if acts_as_inference(thing) else {}
        return {type(thing).__name__: own | {str(i): describe(layer) for i, layer in enumerate(layers)}}
    if isinstance(thing, keras.optimizers.Optimizer):
        several = isinstance(inner(thing), keras.optimizers.MultiOptimizer)
        own = {str(i): describe(m) for i, m in enumerate(members(thing))} if several else _config(inner(thing))
        factors = groups_of(thing).described() if groups_of(thing) else {}
        return {type(inner(thing) if several else thing).__name__: own | ({"factors": factors} if factors else {})}
    if isinstance(thing, keras.Loss):
        return {type(thing).__name__: _config(thing)}
    if dataclasses.is_dataclass(thing) and not isinstance(thing, type):
        return _describe_fields(thing)
    return thing if isinstance(thing, str | int | float | bool | type(None)) else getattr(thing, "__name__", str(thing))


def _describe_fields(thing: Any) -> Any:
    """As `dataclasses.asdict`, without the fields that do not count."""
    if dataclasses.is_dataclass(thing) and not isinstance(thing, type):
        fields = [field.name for field in dataclasses.fields(thing) if field.compare]
        return {name: _describe_fields(getattr(thing, name)) for name in fields}
    if isinstance(thing, Mapping):
        return {key: _describe_fields(value) for key, value in thing.items()}
    return [_describe_fields(item) for item in thing] if isinstance(thing, list | tuple) else thing


def describe_components(attributes: Mapping[str, Any]) -> dict[str, Any]:
    """Describes the layers, optimizers and losses among a trainer's attributes, and `loss` and `loss_weights`."""
    kinds = (keras.Layer, keras.optimizers.Optimizer, keras.Loss)
    described = {name: describe(thing) for name, thing in attributes.items() if isinstance(thing, kinds)}
    for name in ("loss", "loss_weights"):
        if isinstance(attributes.get(name), Mapping | list | tuple):
            described[name] = _describe_nest(attributes[name])
    return described


def _describe_nest(thing: Any) -> Any:
    if isinstance(thing, Mapping):
        return {str(key): _describe_nest(item) for key, item in thing.items()}
    return [_describe_nest(item) for item in thing] if isinstance(thing, list | tuple) else describe(thing)


def as_json(config: Mapping[str, Any]) -> dict[str, Any]:
    """The configuration as it looks after being written and read."""
    return json.loads(json.dumps(config, default=str))


def _config(thing: Any) -> dict[str, Any]:
    try:
        config = thing.get_config()
    except NotImplementedError:  # a custom layer that was not made to be saved
        return {}
    return {key: value for key, value in config.items() if key != "name"}
