"""Freezing layers so that nothing in them changes, and unfreezing them."""

import functools
import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import keras

from looper.base.errors import InputError
from looper.recipe.layers import Which, find, find_one, inside, sublayers, walk


def freeze(
    model: keras.Layer,
    until: Which | int | None = None,
    layers: Which | Sequence[Which] | None = None,
    dropout: bool = False,
) -> list[str]:
    """Freezes layers: their weights and statistics stay as they are, and they act as in inference.

    Their weights are not trained, batch normalization uses its moving statistics and leaves them alone, and dropout and
    noise are off, whatever `training` they are called with. Layers that augment data (`keras.layers.RandomFlip` and the
    like) go on. A saved model knows `trainable=False` of its layers, and nothing of `dropout`.

    Args:
        model: a Sequential, Functional or subclassed model, or any layer that holds others.
        until: a layer, its name, path or index: all layers before it are frozen, in the order of `model.layers`.
        layers: a layer, a name or pattern such as "conv5_*", or a list of them: these are frozen, and all they hold.
            Without `until` and `layers`, the whole model is.
        dropout: whether dropout, noise and the like go on in the frozen layers, as `trainable=False` leaves them.

    Returns:
        The paths of the layers that changed.

    Raises:
        InputError: if both are given, or a layer is not in the model.

    Example:
        >>> layers = [keras.layers.Dense(4, name="body"), keras.layers.Dense(2, name="head")]
        >>> model = keras.Sequential([keras.Input((3,)), *layers])
        >>> freeze(model, until="head")
        ['body']
        >>> [v.path.split("/", 1)[1] for v in model.trainable_variables]
        ['head/kernel', 'head/bias']
    """
    chosen = meant(model, "until", until, layers)
    for layer in chosen:
        vars(layer).pop(_DROPS, None)
        if dropout:
            vars(layer)[_DROPS] = True
    return _change(model, frozen=chosen, as_inference=() if dropout else chosen, as_called=chosen if dropout else ())


def unfreeze(
    model: keras.Layer,
    since: Which | int | None = None,
    layers: Which | Sequence[Which] | None = None,
    batch_norm: bool = True,
) -> list[str]:
    """Trains layers again, with their dropout; what `freeze` did to them is undone.

    A layer inside a frozen one trains alone: its siblings stay frozen.

    Args:
        model: as for `freeze`.
        since: a layer, its name, path or index: it and all layers after it are unfrozen.
        layers: as for `freeze`.
        batch_norm: False leaves batch normalization as it is: where it was frozen its statistics stay those of
            the base, which is the usual advice for fine-tuning on little data.

    Returns:
        The paths of the layers that changed.

    Raises:
        InputError: if both are given, or a layer is not in the model.

    Example:
        >>> layers = [keras.layers.Dense(4, name="body"), keras.layers.Dense(2, name="head")]
        >>> model = keras.Sequential([keras.Input((3,)), *layers])
        >>> freeze(model)
        ['body', 'head']
        >>> unfreeze(model, since=-1)
        ['head']
    """
    chosen = meant(model, "since", since, layers)
    if not batch_norm:
        chosen = [layer for layer in chosen if not isinstance(layer, keras.layers.BatchNormalization)]
    return _change(model, thawed=chosen, as_called=chosen)


def acts_as_inference(layer: keras.Layer) -> bool:
    """Whether `freeze` makes the layer act as in inference.

    Example:
        >>> layer = keras.layers.Dropout(0.5)
        >>> _ = freeze(layer)
        >>> acts_as_inference(layer)
        True
    """
    return hasattr(vars(layer).get("call"), _MARK)


def drops_though_frozen(layer: keras.Layer) -> bool:
    """Whether a frozen layer's dropout goes on because `freeze` was told so.

    Example:
        >>> layer = keras.layers.Dropout(0.5)
        >>> _ = freeze(layer, dropout=True)
        >>> drops_though_frozen(layer)
        True
    """
    return _DROPS in vars(layer)


class Switches:
    """What is trainable among layers, and how: compared at boundaries, as what is compiled depends on it.

    Example:
        >>> layer = keras.layers.Dense(1)
        >>> switches = Switches({"layer": layer})
        >>> layer.trainable = False
        >>> switches.changed()
        True
    """

    def __init__(self, layers: Mapping[str, keras.Layer]) -> None:
        self._layers = list({id(one): one for layer in layers.values() for one in inside(layer)}.values())
        self._variables = list({id(v): v for layer in layers.values() for v in layer.variables}.values())
        self._seen = self._now()

    def changed(self) -> bool:
        return self._seen != self._now()

    def _now(self) -> list[bool]:
        layers, variables = self._layers, self._variables
        return [one.trainable for one in layers + variables] + [acts_as_inference(one) for one in layers]


def set_flags(layers: Iterable[tuple[keras.Layer, bool, bool]], variables: Iterable[tuple[Any, bool]] = ()) -> None:
    """Sets what is trained and what acts as in inference, layer by layer and variable by variable.

    Args:
        layers: `(layer, trainable, as_inference)`, a layer before those that it holds: Keras hands `trainable` down.
        variables: `(variable, trainable)`.
    """
    for layer, trainable, as_inference in layers:
        layer.trainable = not trainable  # TensorFlow 2.21 does nothing where an attribute is what it is set to
        layer.trainable = trainable
        _set_as_inference(layer, as_inference)
    for variable, trainable in variables:
        variable.trainable = trainable


def meant(
    model: keras.Layer, option: str, border: Which | int | None, layers: Which | Sequence[Which] | None
) -> list[keras.Layer]:
    """The layers that `freeze` and `unfreeze` mean, with all that they hold.

    Args:
        model, border, layers: as for them.
        option: what the border is called, "until" or "since".

    Raises:
        InputError: as they do.
    """
    if not isinstance(model, keras.Layer):
        raise InputError(f"{model!r} is {type(model).__name__}: expected a Keras model or layer.")
    if border is not None and layers is not None:
        raise InputError(f"{option}={border!r} and layers={layers!r}: give one of them.")
    if layers is not None:
        return list({id(inner): inner for layer in find(model, layers) for inner in inside(layer)}.values())
    everything = list(walk(model).values())
    if border is None:
        return everything
    first = find_one(model, border, option)
    place = next(i for i, layer in enumerate(everything) if layer is first)
    if option == "since":
        return everything[place:]
    # the layers around it come before it, and are not meant
    return [layer for layer in everything[:place] if not any(inner is first for inner in inside(layer))]


def _change(
    model: keras.Layer,
    frozen: Iterable[keras.Layer] = (),
    thawed: Iterable[keras.Layer] = (),
    as_inference: Iterable[keras.Layer] = (),
    as_called: Iterable[keras.Layer] = (),
) -> list[str]:
    layers = walk(model)
    frozen, thawed, as_inference, as_called = (
        {id(layer) for layer in group} for group in (frozen, thawed, as_inference, as_called)
    )
    touched = frozen | thawed
    before = {id(layer): _acts(layer) for layer in layers.values()}
    around = {id(outer) for outer in layers.values() if any(id(inner) in thawed for inner in inside(outer))}
    others = [
        (variable, variable.trainable)
        for layer in layers.values()
        if id(layer) not in touched
        for variable in _own(layer)
    ]

    def flags(layer: keras.Layer) -> tuple[keras.Layer, bool, bool]:
        trainable = layer.trainable
        trainable = id(layer) not in frozen and (trainable or id(layer) in around)
        # what holds a layer that trains must hand its `training` on
        on = id(layer) in as_inference or (acts_as_inference(layer) and id(layer) not in as_called | around)
        return layer, trainable, on

    set_flags([flags(layer) for layer in layers.values()], others)
    changed = {path for path, layer in layers.items() if id(layer) in touched and _acts(layer) != before[id(layer)]}
    return [path for path, layer in layers.items() if path in changed and _worth_telling(path, layer, layers, changed)]


def _acts(layer: keras.Layer) -> tuple:
    return acts_as_inference(layer), layer.trainable, *(variable.trainable for variable in _own(layer))


def _worth_telling(path: str, layer: keras.Layer, layers: dict[str, keras.Layer], changed: set[str]) -> bool:
    """Whether to name a layer that changed: what has no layers to name in it, and does something in training."""
    outer = path.rpartition("/")[0]
    while outer:
        if outer in changed and not isinstance(layers[outer], keras.Model):
            return False  # it belongs to that one
        outer = outer.rpartition("/")[0]
    if isinstance(layer, keras.Model) and sublayers(layer):
        return bool(_own(layer))
    return bool(layer.weights) or not layer.built or _takes_training(layer)


def _own(layer: keras.Layer) -> list[Any]:
    """The weights that a layer holds itself."""
    theirs = {id(variable) for inner in sublayers(layer) for variable in inner.weights}
    return [variable for variable in layer.weights if id(variable) not in theirs]


_MARK = "_acts_as_in_inference"
_DROPS = "_drops_though_frozen"


def _set_as_inference(layer: keras.Layer, as_inference: bool) -> None:
    if as_inference == acts_as_inference(layer):
        return
    if not as_inference:
        replaced = getattr(vars(layer)["call"], _MARK)
        del vars(layer)["call"]
        if replaced is not None:
            vars(layer)["call"] = replaced
    elif _takes_training(layer):
        # on the instance: TimeDistributed calls `layer.call`; an outer True overrides a flag given at a call
        call = functools.wraps(layer.call)(without_training(layer.call))
        setattr(call, _MARK, vars(layer).get("call"))
        vars(layer)["call"] = call


def _takes_training(layer: keras.Layer) -> bool:
    """Whether the layer's `call` takes `training`, and it is no batch normalization and holds no augmentation.

    Batch normalization in a frozen layer is in inference mode by Keras' own rule. Keras 3.15 has no public base class
    of its layers that augment data.
    """
    if isinstance(layer, keras.layers.BatchNormalization) or any(_augments(inner) for inner in inside(layer)):
        return False
    return "training" in inspect.signature(layer.call).parameters


def _augments(layer: keras.Layer) -> bool:
    return any(kind.__module__.startswith("keras.src.layers.preprocessing.") for kind in type(layer).__mro__)


def without_training(call: Callable[..., Any]) -> Callable[..., Any]:
    """What calls a layer's `call` with `training=False`, whatever it is given."""
    signature = inspect.signature(call)

    def in_inference(*args: Any, **kwargs: Any) -> Any:
        bound = signature.bind(*args, **kwargs)
        bound.arguments["training"] = False
        return call(*bound.args, **bound.kwargs)

    return in_inference
