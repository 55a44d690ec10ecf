"""Weights and optimizer slots that a run trains at the moment: read for a checkpoint, put back when it goes on.

A checkpoint holds the optimizer's variables of what was trained when it was written. A run that has unfrozen layers
since its first step is therefore put into the checkpoint's phase before its optimizer is built and its step traced.
"""

from collections.abc import Iterable, Mapping
from typing import Any

import keras

from looper.recipe import learning_rates
from looper.recipe.freezing import acts_as_inference, set_flags
from looper.recipe.layers import inside

Things = Iterable[tuple[str, Any]]


def read(things: Things) -> dict[str, dict[str, Any]]:
    """The phase of a trainer's layers and optimizers, as JSON values.

    Args:
        things: objects by name, as of `looper.base.names.named_objects`.

    Example:
        >>> layer = keras.layers.Dense(1); layer.trainable = False
        >>> read([("model", layer)])["layers"]
        {'model': [[False, False]]}
    """
    things = list(things)
    layers = {name: thing for name, thing in things if isinstance(thing, keras.Layer)}
    variables = _variables(things)
    return {
        "layers": {
            name: [[one.trainable, acts_as_inference(one)] for one in inside(layer)] for name, layer in layers.items()
        },
        "variables": {name: [v.trainable for v in layer.variables] for name, layer in layers.items()},
        "optimizers": {
            name: learning_rates.read(thing, variables)
            for name, thing in things
            if isinstance(thing, keras.optimizers.Optimizer)
        },
    }


def put_back_layers(saved: Mapping[str, Mapping[str, Any]], things: Things) -> None:
    """Puts layers into a phase that `read` returned; a layer that holds others than then is left alone."""
    by_name = dict(things)
    for name, flags in saved.get("layers", {}).items():
        layer = by_name.get(name)
        if not isinstance(layer, keras.Layer):
            continue
        found, trainable = list(inside(layer)), saved["variables"][name]
        if len(found) != len(flags) or len(layer.variables) != len(trainable):
            continue  # of another model: the variables' names will tell
        set_flags(
            [(one, *pair) for one, pair in zip(found, flags, strict=True)],
            zip(layer.variables, trainable, strict=True),
        )


def put_back_optimizers(saved: Mapping[str, Mapping[str, Any]], things: Things, factors: bool = True) -> None:
    """Puts optimizers into the phase that was saved.

    Call it after they were built: variables that they took for new may have been trained before.

    Without `factors` only from when on steps are counted, not the learning rates.
    """
    things = list(things)
    variables, by_name = _variables(things), dict(things)
    for name, settings in saved.get("optimizers", {}).items():
        if isinstance(by_name.get(name), keras.optimizers.Optimizer):
            learning_rates.put_back(by_name[name], settings, variables, factors)


def _variables(things: Things) -> dict[str, Any]:
    """Layers' variables and free ones, by names that do not depend on what else the process has built."""
    found: dict[str, Any] = {}
    for name, thing in things:
        if isinstance(thing, keras.Layer):
            found |= {f"{name}/{i}": variable for i, variable in enumerate(thing.variables)}
        elif isinstance(thing, keras.Variable):
            found[name] = thing
    return found
