"""The layers and modules of a recipe as a tree: what each is called, where it stands, which variables are its own."""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import keras
import tensorflow as tf

from looper.base.names import as_tf, is_layer_or_module, named_children, named_objects


@dataclasses.dataclass(frozen=True)
class Place:
    """Where a layer or module stands.

    Attributes:
        path: the trainer's attribute, then layers' names (in Sequential and Functional models) or attributes:
            `model/block/norm`. A layer that is shared stands where it is found first.
        thing: the layer or module.
        parent: what holds it, or None.
    """

    path: str
    thing: Any
    parent: Any


class Tree:
    """All layers and modules among a trainer's attributes, in their order.

    Attributes:
        places: by the `id` of the layer or module.
        replicas: of the strategy.
        untracked: the `id`s of variables that are attributes of Keras layers, which does not know them.

    Args:
        attributes: the trainer's public attributes.
        strategy: whose replicas hold the variables.

    Example:
        >>> model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(3, name="head")])
        >>> [place.path for place in Tree({"model": model}, tf.distribute.get_strategy()).places.values()]
        ['model', 'model/head']
    """

    def __init__(self, attributes: Mapping[str, Any], strategy: tf.distribute.Strategy) -> None:
        self.places: dict[int, Place] = {}
        self.untracked: set[int] = set()
        self._owners: dict[int, tuple[Any, str]] = {}
        self._strategy = strategy
        self.replicas = strategy.num_replicas_in_sync
        for name, thing in named_objects(attributes):
            if is_layer_or_module(thing):
                self._add(name, thing, None)
            elif isinstance(thing, tf.Variable | keras.Variable):
                self._own(thing, None, name)
        for place in reversed(list(self.places.values())):  # the innermost first
            listed = getattr(place.thing, "variables", ())
            tracked = {id(as_tf(v)) for v in listed}
            for name, variable in _named(place.thing, listed):
                self._own(variable, place.thing, f"{place.path}/{name}")
                if id(as_tf(variable)) not in tracked:
                    self.untracked.update(map(id, self._forms(variable)))

    def _own(self, variable: Any, owner: Any, name: str) -> None:
        for form in self._forms(variable):
            self._owners.setdefault(id(form), (owner, name))

    def _forms(self, variable: Any) -> tuple[Any, ...]:
        """A variable as Keras', as TensorFlow's, and each replica's copy of it."""
        plain = as_tf(variable)
        return variable, plain, *self._strategy.experimental_local_results(plain)

    def _add(self, path: str, thing: Any, parent: Any) -> None:
        if id(thing) in self.places:
            return
        self.places[id(thing)] = Place(path, thing, parent)
        for name, child in named_children(thing):
            self._add(f"{path}/{name}", child, thing)

    def path(self, thing: Any) -> str | None:
        """The path of a layer or module, None for one that is not in the tree."""
        place = self.places.get(id(thing))
        return None if place is None else place.path

    def owner(self, variable: Any) -> Any:
        """The layer or module that a variable is an own one of, or None."""
        return self._owners.get(id(variable), (None, ""))[0]

    def name(self, variable: Any) -> str | None:
        """A variable's owner's path and its own name; None if it is not of the tree."""
        return self._owners.get(id(variable), (None, None))[1]


def _named(thing: Any, listed: Sequence[Any]) -> Iterator[tuple[str, Any]]:
    """The variables in a layer or module, with names: those `listed`, and those that Keras 3 does not track."""
    if isinstance(thing, keras.Layer):
        for variable in listed:
            yield variable.name.split("/")[-1], variable
    for name, value in named_objects(vars(thing)):
        if isinstance(value, tf.Variable | keras.Variable) and not name.startswith("_"):
            yield name, value
