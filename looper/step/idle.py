"""Idle replicas: those that a batch of fewer examples than replicas leaves without any.

An idle replica runs the step too, on a batch of 0 examples, because replicas wait for one another in it. Means over
nothing are NaN there, so: its gradients count as 0 where they are not finite (`gradients.finite_if_idle`); its losses
and logs have no weight (`losses.weightless_if_idle`); its metrics and unsynchronized batch statistics are put back, and
of other state what is not finite. State that does not depend on examples, such as seeds, moves on as everywhere.
"""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import keras
import tensorflow as tf

from looper.base.names import as_tf, named_objects
from looper.recipe.layers import inside


class Untouched(NamedTuple):
    """A variable that an idle replica may spoil, and is to leave untouched.

    Attributes:
        copies: each local replica's copy of it.
        wholly: whether an idle replica leaves it as it was; otherwise only what it makes NaN or infinite is put back.
        shared: whether what one replica writes reaches all.
    """

    copies: tuple[tf.Variable, ...]
    wholly: bool
    shared: bool


def find_untouched(attributes: Mapping[str, Any], strategy: tf.distribute.Strategy) -> tuple[Untouched, ...]:
    """Finds the variables that idle replicas leave untouched.

    They are the floating ones of layers, modules and metrics that no gradient updates.

    Args:
        attributes: the trainer's public attributes.
        strategy: whose replicas hold the values; nothing is found where there is one replica.
    """
    if strategy.num_replicas_in_sync == 1:
        return ()
    things = [thing for _, thing in named_objects(attributes) if not isinstance(thing, keras.optimizers.Optimizer)]
    layers = [layer for thing in things if isinstance(thing, keras.Layer) for layer in inside(thing)]
    sources = [layer for layer in layers if gathers_alone(layer)] + [t for t in things if isinstance(t, keras.Metric)]
    wholly = {id(as_tf(v)) for source in sources for v in source.variables}
    found: dict[int, Untouched] = {}
    for variable in (as_tf(v) for thing in things for v in _variables(thing)):
        if variable.dtype.is_floating and not variable.trainable:
            copies = strategy.experimental_local_results(variable)
            on_read = variable.synchronization == tf.VariableSynchronization.ON_READ
            shared = not on_read and variable.aggregation != tf.VariableAggregation.NONE
            found.setdefault(id(copies[0]), Untouched(copies, id(variable) in wholly, shared))
    return tuple(found.values())


def gathers_alone(layer: Any) -> bool:
    """Whether a layer gathers statistics of this replica's examples alone."""
    return isinstance(layer, keras.layers.BatchNormalization) and not layer.synchronized


def _variables(thing: Any) -> Sequence[Any]:
    if isinstance(thing, tf.Variable | keras.Variable):
        return [thing]
    return () if isinstance(thing, keras.random.SeedGenerator) else thing.variables


@contextlib.contextmanager
def untouched(variables: Sequence[Untouched], examples: tf.Tensor, global_examples: tf.Tensor) -> Iterator[None]:
    """Surrounds one replica's step, in replica context: puts back what a replica without examples has spoiled.

    Args:
        variables: see `find_untouched`.
        examples: int scalar, this replica's number of examples.
        global_examples: int scalar, the number over all replicas.
    """
    if not variables:
        yield
        return
    context = tf.distribute.get_replica_context()
    replica = int(tf.get_static_value(context.replica_id_in_sync_group))
    copies = [v.copies[replica % len(v.copies)] for v in variables]
    before = [copy.read_value() for copy in copies]
    yield

    def put_back() -> tf.Tensor:
        for variable, copy, old in zip(variables, copies, before, strict=True):
            new = copy.read_value()
            spoiled = ~tf.math.is_finite(new)
            if not variable.shared:
                spoiled = (spoiled | variable.wholly) & (examples == 0)
            # not copy.assign: to an audit, which watches that, it is no effect of the recipe
            tf.raw_ops.AssignVariableOp(resource=copy.handle, value=tf.where(spoiled, old, new))
        return tf.constant(0)

    tf.cond(global_examples < context.num_replicas_in_sync, put_back, lambda: tf.constant(0))
