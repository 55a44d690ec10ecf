"""The one list of everything that a compiled step reads and writes, by name.

Names are made of the trainer's attribute and a position, not of Keras' automatic layer names, which differ when a
process builds a second model: `model/3/kernel`. A variable whose replicas hold different values (batch statistics,
seeds, metrics) stands in the list once per replica: `model/5/seed_generator_state@1`.
"""

import collections
import contextlib
import functools
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from types import MappingProxyType
from typing import Any

import keras
import tensorflow as tf

from looper.base.errors import InputError
from looper.base.names import as_tf, is_layer_or_module, named_objects, path_of
from looper.base.put_back import put_back
from looper.saved import trained

MANY = 64
"""Variables from which on one call reads them all: each call takes about 20 microseconds."""

SEED_STRIDE = 1_000_003
"""Distance between the dropout seeds of two replicas; Keras draws seeds below 10**9."""


def variables_of(thing: Any) -> list[Any]:
    """All variables of a layer (seeds included), optimizer, metric, module or seed generator, or a variable itself."""
    if isinstance(thing, tf.Variable | keras.Variable):
        return [thing]
    if isinstance(thing, keras.random.SeedGenerator):
        return [thing.state]
    return list(thing.variables)


def trainable_variables(attributes: Mapping[str, Any]) -> list[Any]:
    """Variables that the default step trains: of layers and modules, and free ones, each once."""
    found: dict[int, Any] = {}
    for _, thing in named_objects(attributes):
        if is_layer_or_module(thing):
            candidates = list(thing.trainable_variables)
        else:
            candidates = [thing] if isinstance(thing, tf.Variable | keras.Variable) and thing.trainable else []
        for variable in candidates:
            found.setdefault(id(as_tf(variable)), variable)
    return list(found.values())


def trainable_flags(attributes: Mapping[str, Any]) -> tuple[Any, ...]:
    """Tells whether a step that was traced before still fits: what is trainable, and how."""
    # a frozen layer without variables may still act otherwise, as dropout does
    return (*(id(v) for v in trainable_variables(attributes)), repr(trained.read(named_objects(attributes))))


def offset_seeds(
    attributes: Mapping[str, Any], strategy: tf.distribute.Strategy, done: set[int], first_replica: int = 0
) -> None:
    """Gives each replica a seed of its own, once: Keras gives all replicas the same, and so the same dropout masks.

    The first replica keeps its seed, so one replica draws what Keras draws. `done` remembers which were set,
    `first_replica` is the number of this worker's first one.
    """
    for _, thing in named_objects(attributes):
        for variable in variables_of(thing):
            copies = strategy.experimental_local_results(as_tf(variable))
            if variable.name.split(":")[0].endswith("seed_generator_state") and id(copies[0]) not in done:
                done.add(id(copies[0]))
                for replica, copy in enumerate(copies, first_replica):
                    copy.assign_add(tf.cast([replica * SEED_STRIDE, 0], copy.dtype))


@contextlib.contextmanager
def averaged_statistics(
    attributes: Mapping[str, Any],
    strategy: tf.distribute.Strategy,
    mean_over_replicas: Callable[[tf.Tensor], tf.Tensor],
) -> Iterator[None]:
    """Inside the `with`, replicas have the mean of their layers' statistics; after it, each has its own again.

    For evaluation and export: without `synchronized=True`, batch normalization gathers different statistics on each
    replica. Training goes on with each replica's own, so that it does not depend on when it was evaluated.

    Args:
        attributes: the trainer's.
        strategy: whose replicas hold the values.
        mean_over_replicas: see `Workers.mean_over_replicas`.
    """
    replicated: list[tuple[tf.Variable, ...]] = []
    if strategy.num_replicas_in_sync > 1:
        layers = [thing for _, thing in named_objects(attributes) if isinstance(thing, keras.Layer)]
        for variable in (v for layer in layers for v in layer.non_trainable_variables):
            copies = strategy.experimental_local_results(as_tf(variable))
            if copies[0].dtype.is_floating and not as_tf(variable).trainable:  # a frozen weight is the same everywhere
                replicated.append(copies)
    with put_back(copy for copies in replicated for copy in copies):
        if replicated:
            sums = [tf.add_n([tf.cast(copy.read_value(), tf.float64) for copy in copies]) for copies in replicated]
            means = mean_over_replicas(tf.concat([tf.reshape(x, [-1]) for x in sums], 0))
            for copies, mean in zip(replicated, tf.split(means, [tf.size(x) for x in sums]), strict=True):
                for copy in copies:
                    copy.assign(tf.cast(tf.reshape(mean, copy.shape), copy.dtype))
        yield


class State:
    """Every variable of a run by name. See the module's docstring for the names.

    Args:
        attributes: the trainer's public attributes, and looper's own objects under names of their own.
        strategy: whose replicas hold the values.
        captured: variables that a traced step captured; the ones not found among the attributes (such as Keras'
            global seed generator) are added.
        averages: moving averages of variables, by the id of the variable that they are of; an average is called by
            that variable's name.
        first_replica: the number of this worker's first replica.

    Attributes:
        variables: by name.
        own: the names of those that other workers hold other values of.
        phase: what is trained, and how, as `looper.saved.trained.read` tells it.
    """

    def __init__(
        self,
        attributes: Mapping[str, Any],
        strategy: tf.distribute.Strategy,
        captured: Iterable[tf.Variable] = (),
        averages: Mapping[int, tf.Variable] = MappingProxyType({}),
        first_replica: int = 0,
    ) -> None:
        self.variables: dict[str, tf.Variable] = {}
        self.own: set[str] = set()
        self._first_replica = first_replica
        self.phase = trained.read(named_objects(attributes))
        self._mirrored: dict[str, list[tf.Variable]] = {}
        seen: set[int] = set()
        owners = _owners(attributes)
        for name, thing in named_objects(attributes):
            equal = isinstance(thing, keras.optimizers.Optimizer)
            for i, variable in enumerate(variables_of(thing)):
                copies = strategy.experimental_local_results(as_tf(variable))
                if id(copies[0]) in seen:
                    continue
                seen.update(id(copy) for copy in copies)
                own = _slot_name(variable, owners) if equal else None
                own = own or f"{i}/{_base_name(variable)}"
                # made to be trained: frozen or not, such a variable is the same on all replicas
                self._add(f"{name}/{own}", copies, equal or variable.trainable or as_tf(variable).trainable)
                average = averages.get(id(as_tf(variable)))
                if average is not None:
                    copies = strategy.experimental_local_results(average)
                    seen.update(id(copy) for copy in copies)
                    self._add(f"average/{name}/{own}", copies, True)
        count: collections.Counter[str] = collections.Counter()
        for variable in captured:
            if id(variable) not in seen:
                seen.add(id(variable))
                name = _base_name(variable)
                self._add(f"captured/{count[name]}/{name}", (variable,), True)
                count[name] += 1

    def _add(self, name: str, copies: tuple[tf.Variable, ...], equal: bool) -> None:
        if equal:
            self.variables[name] = copies[0]
            self._mirrored[name] = list(copies[1:])
        else:
            each = {f"{name}@{i}" if i else name: copy for i, copy in enumerate(copies, self._first_replica)}
            self.variables |= each
            self.own |= set(each)

    def snapshot(self) -> dict[str, tf.Tensor]:
        """The values of all variables. Nothing is copied until one is written to."""
        if len(self.variables) < MANY:
            return {name: v.read_value() for name, v in self.variables.items()}
        return dict(zip(self.variables, self._read_all(), strict=True))

    @functools.cached_property
    def _read_all(self) -> Callable[[], list[tf.Tensor]]:
        # what `read_value` does, without two identities more for each variable: half the time
        handles = [(v.handle, v.dtype) for v in self.variables.values()]
        read = tf.raw_ops.ReadVariableOp
        function = tf.function(lambda: [read(resource=h, dtype=dtype) for h, dtype in handles], autograph=False)
        return function.get_concrete_function()

    def restore(self, values: Mapping[str, Any]) -> None:
        """Puts back a snapshot, or a part of one; values may be tensors or arrays.

        Raises:
            InputError: if a name is not in the list.
        """
        unknown = [name for name in values if name not in self.variables]
        if unknown:
            raise InputError(f"the saved state has variables that this trainer lacks: {', '.join(unknown[:5])}.")
        for name, value in values.items():
            self.variables[name].assign(value)
        self.mirror(values)

    def mirror(self, names: Iterable[str]) -> None:
        """Copies the first replica's value of mirrored variables to the other replicas."""
        for name in names:
            for copy in self._mirrored.get(name, ()):
                copy.assign(self.variables[name].read_value())


def _owners(attributes: Mapping[str, Any]) -> dict[str, str]:
    """How the variables of layers and modules begin the names of an optimizer's variables for them, and what they are
    called here: by an optimizer's own order, which depends on what is trainable, they could not be told apart."""
    found: dict[str, str] = {}
    for name, thing in named_objects(attributes):
        if not isinstance(thing, keras.optimizers.Optimizer | keras.Metric):
            for i, variable in enumerate(variables_of(thing)):
                path = re.sub("[/:]", "_", path_of(variable))
                unique = f"{path}_" not in found
                found[f"{path}_"] = f"{name}/{i}/{_base_name(variable)}" if unique else ""
    return found


def _slot_name(slot: Any, owners: Mapping[str, str]) -> str | None:
    """`momentum/model/0/kernel` for an optimizer's variable that belongs to one of the trained ones."""
    longest = max((path for path in owners if slot.name.startswith(path)), key=len, default=None)
    if longest is None or not owners[longest]:
        return None
    return f"{slot.name.removeprefix(longest)}/{owners[longest]}"


def _base_name(variable: Any) -> str:
    """A variable's own name, without the counters in `sequential_2_dense_4_kernel_momentum`."""
    return re.sub(r"_\d+", "", variable.name.split(":")[0].split("/")[-1])
