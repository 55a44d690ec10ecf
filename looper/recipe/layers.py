"""The layers of a model, nested ones too: in order, by path, by name, by index."""

import fnmatch
import numbers
from collections.abc import Iterator, Sequence
from typing import Any

import keras

from looper.base.errors import InputError, nearest
from looper.base.names import named_children

Which = Any
"""One layer, or a name: a path such as "base/conv1", a name at any depth, or a pattern of them ("conv5_*"); or
the attributes that hold it, as in an audit's paths ("model/block/norm")."""


def sublayers(layer: keras.Layer) -> list[keras.Layer]:
    """The layers that a layer holds directly, in attributes, lists and dicts too.

    Keras 3.15 has a public list for models only; tests/test_private_names.py fails if the name changes.
    """
    return layer._flatten_layers(include_self=False, recursive=False)


def walk(model: keras.Layer) -> dict[str, keras.Layer]:
    """All layers of a model by path, each once, a layer before those that it holds. The model's own path is "".

    Layers stand in the order of the model's `layers`: that of the calls for Sequential and Functional models, that of
    the attributes for other ones.

    Example:
        >>> base = keras.Sequential([keras.layers.Dense(3, name="first")], name="base")
        >>> list(walk(keras.Sequential([base, keras.layers.Dense(1, name="head")])))
        ['', 'base', 'base/first', 'head']
    """
    found: dict[str, keras.Layer] = {}
    seen: set[int] = set()

    def visit(layer: keras.Layer, path: str) -> None:
        if id(layer) in seen:
            return
        seen.add(id(layer))
        free, number = path, 1
        while free in found:  # two layers of one name
            number += 1
            free = f"{path}#{number}"
        found[free] = layer
        for inner in sublayers(layer):
            visit(inner, f"{free}/{inner.name}".lstrip("/"))

    visit(model, "")
    return found


def inside(layer: keras.Layer) -> Iterator[keras.Layer]:
    """A layer and all that it holds, at any depth."""
    return iter(walk(layer).values())


def find(model: keras.Layer, which: Which | Sequence[Which]) -> list[keras.Layer]:
    """The layers that are meant, in the model's order.

    Args:
        model: where to look.
        which: a layer, a path, a name at any depth, a pattern of paths or names (as of `fnmatch`), or several.

    Raises:
        InputError: if one of them is not in the model, with the nearest name.

    Example:
        >>> model = keras.Sequential([keras.layers.Dense(3, name=name) for name in ("conv1", "conv2", "head")])
        >>> [layer.name for layer in find(model, ["conv*"])]
        ['conv1', 'conv2']
    """
    several = list(which) if isinstance(which, list | tuple | set) else [which]
    if not several:
        raise InputError(f"layers={which!r}: expected at least one layer or name.")
    layers = walk(model)
    meant = {id(layer) for one in several for layer in _matching(layers, one)}
    return [layer for layer in layers.values() if id(layer) in meant]


def find_one(model: keras.Layer, which: Which | int, option: str) -> keras.Layer:
    """One layer: by itself, path, name, or index in `model.layers`.

    Args:
        model: where to look.
        which: what is meant.
        option: what the caller calls it, for messages.

    Raises:
        InputError: if it is not in the model, or several are called so.

    Example:
        >>> model = keras.Sequential([keras.layers.Dense(3, name="base"), keras.layers.Dense(1, name="head")])
        >>> find_one(model, -1, "until").name
        'head'
    """
    if isinstance(which, numbers.Integral) and not isinstance(which, bool):
        direct = model.layers if isinstance(model, keras.Model) else sublayers(model)
        if not -len(direct) <= int(which) < len(direct):
            raise InputError(f"{option}={which}: {model.name!r} has {len(direct)} layers; expected an index of them.")
        return direct[which]
    if isinstance(which, list | tuple | set):
        raise InputError(f"{option}={which!r}: expected one layer, its name or its index.")
    layers = walk(model)
    found = _matching(layers, which)
    if len(found) > 1:
        paths = [path for path, layer in layers.items() if layer in found]
        raise InputError(f"{option}={which!r}: {len(found)} layers are called so; give one path of {', '.join(paths)}.")
    return found[0]


def _matching(layers: dict[str, keras.Layer], which: Which) -> list[keras.Layer]:
    if isinstance(which, keras.Layer):
        if not any(layer is which for layer in layers.values()):
            raise InputError(f"the layer {which.name!r} is not in the model: give one of its layers, or a name.")
        return [which]
    if not isinstance(which, str):
        raise InputError(f"{which!r} is {type(which).__name__}: expected a layer, its name, or a pattern of names.")
    if which and which in layers:
        return [layers[which]]
    by_attribute = _by_attribute(next(iter(layers.values())))
    for path, layer in by_attribute.items():
        if which == path or which.endswith(f"/{path}"):  # an audit's path begins with the trainer's attribute
            return [layer]
    names = {path: (path, layer.name) for path, layer in layers.items() if path}
    found = [layers[path] for path, known in names.items() if any(fnmatch.fnmatchcase(n, which) for n in known)]
    if not found:
        raise InputError(_unknown(which, {name for pair in names.values() for name in pair} | set(by_attribute)))
    return found


def _by_attribute(model: keras.Layer) -> dict[str, keras.Layer]:
    """The layers under the names that an audit has for them: `blocks/0/norm`."""
    found: dict[str, keras.Layer] = {}

    def visit(layer: Any, path: str) -> None:
        for name, child in named_children(layer):
            if all(child is not other for other in found.values()):
                found[f"{path}{name}"] = child
                visit(child, f"{path}{name}/")

    visit(model, "")
    return {path: layer for path, layer in found.items() if isinstance(layer, keras.Layer)}


def _unknown(which: str, known: set[str]) -> str:
    if len(known) <= 20:
        return f"no layer is called {which!r}: {nearest(which, known)}."
    close, found, _ = nearest(which, known).partition("? One of: ")  # too many to list
    return f"no layer is called {which!r}: {f'{close}?' if found else 'model.summary() lists the names.'}"
