"""Which layers do something else in training than in evaluation: Keras' own by what they are, others by their code."""

import ast
import functools
import inspect
import textwrap
from typing import Any

import keras

L = keras.layers

MASKING = (L.Dropout, L.SpatialDropout1D, L.SpatialDropout2D, L.SpatialDropout3D, L.AlphaDropout, L.GaussianDropout)
CELLS = (L.LSTMCell, L.GRUCell, L.SimpleRNNCell)
AUGMENTING = tuple(
    kind
    for name, kind in vars(L).items()
    if name.startswith(("Random", "AugMix", "CutMix", "MixUp", "RandAugment")) and isinstance(kind, type)
)


def drop_rate(layer: Any) -> float | None:
    """The rate of a dropout layer, the standard deviation of a noise layer; None for another.

    Example:
        >>> drop_rate(keras.layers.SpatialDropout2D(0.25))
        0.25
    """
    if isinstance(layer, MASKING):
        return float(layer.rate)
    return float(layer.stddev) if isinstance(layer, L.GaussianNoise) else None


def sensitivity(layer: Any) -> str | None:
    """Names what of a layer or module itself depends on `training`; None if nothing does.

    A class may say so: `mode_sensitive = True` or `False`. Otherwise a class that is not of Keras is mode-sensitive if
    its `call` (a module's `__call__`) reads its argument `training`; passing it on with `training=` is not reading.

    Example:
        >>> sensitivity(keras.layers.Dropout(0.5)), sensitivity(keras.layers.Dropout(0.0))
        ('dropout', None)
    """
    declared = getattr(layer, "mode_sensitive", None)
    if declared is not None:
        return "declared" if declared else None
    if isinstance(layer, L.BatchNormalization):
        return "batch statistics"
    rate = drop_rate(layer)
    if rate is not None:
        return None if rate == 0 else "noise" if isinstance(layer, L.GaussianNoise) else "dropout"
    if isinstance(layer, CELLS) or type(layer).__name__ == "ConvLSTMCell":  # the latter has no public name
        return "dropout" if layer.dropout or layer.recurrent_dropout else None
    if isinstance(layer, L.Attention):
        return "dropout" if layer.dropout else None
    if isinstance(layer, L.SpectralNormalization):
        return "power iteration"
    if isinstance(layer, AUGMENTING):
        return "augmentation"
    return "its own code" if _class_reads(type(layer)) else None  # type: ignore[arg-type]  # a type is hashable


@functools.cache
def _class_reads(kind: type) -> bool:
    method = "call" if issubclass(kind, keras.Layer) else "__call__"
    for base in kind.__mro__:
        if base.__module__.startswith(("keras.src.layers", "keras.src.models", "tensorflow")):
            return False
        if method in vars(base) and _reads(kind, vars(base)[method], frozenset()):
            return True
    return False


def _reads(kind: type, method: Any, seen: frozenset[str]) -> bool:
    """Whether a method of a class reads its argument `training`, itself or in another method that it passes it on to.

    Passing it on under its name to anything else, such as a layer, is not reading.
    """
    method = inspect.unwrap(getattr(method, "python_function", method))
    try:
        if "training" not in inspect.signature(method).parameters:
            return False
        tree = ast.parse(textwrap.dedent(inspect.getsource(method)))
    except (OSError, TypeError, ValueError, SyntaxError):  # made where no source is to be had: taken at its word
        return "training" in getattr(getattr(method, "__code__", None), "co_varnames", ())
    passed_on: set[int] = set()
    for call in (node for node in ast.walk(tree) if isinstance(node, ast.Call)):
        flags = [keyword.value for keyword in call.keywords if keyword.arg == "training"]
        passed_on |= {id(inner) for value in flags for inner in ast.walk(value)}
        name = _own_method(kind, call.func)
        if flags and name is not None and name not in seen and _reads(kind, getattr(kind, name), seen | {name}):
            return True
    return any(
        isinstance(node, ast.Name) and node.id == "training" and id(node) not in passed_on for node in ast.walk(tree)
    )


def _own_method(kind: type, called: ast.expr) -> str | None:
    """The name of the class's method that `self.name(...)` calls, or None if it is something else."""
    if isinstance(called, ast.Attribute) and isinstance(called.value, ast.Name) and called.value.id == "self":
        return called.attr if inspect.isfunction(getattr(kind, called.attr, None)) else None
    return None
