"""Idle replicas: those that a batch of fewer examples than replicas leaves without an example of their own.

An idle replica runs the step too, because replicas wait for one another in it, and some kernels fail on 0 examples. So
every replica gets the whole of such a batch, and it counts on the first one alone: on the others the loss and the logs
have no weight (`losses.weightless_if_idle`), so that their gradients are 0, and metrics and unsynchronized batch
statistics are put back. All else, such as seeds, moves on as everywhere.

A step that gathers or adds up over the replicas by itself meets the examples of such a batch once for each replica, and
so does a variable with `aggregation=tf.VariableAggregation.SUM` whose replicas write it together.
"""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import keras
import tensorflow as tf

from looper.base.conditions import run_if
from looper.base.names import as_tf, named_objects, on_this_replica
from looper.recipe.layers import inside
from looper.saved.variables import variables_of
from looper.step.effects import PUT_BACK

Copies = tuple[tf.Variable, ...]
"""Each local replica's copy of a variable."""


def find_untouched(attributes: Mapping[str, Any], strategy: tf.distribute.Strategy) -> tuple[Copies, ...]:
    """Finds the variables that idle replicas leave untouched: metrics, sums over replicas, unsynchronized statistics.

    Args:
        attributes: the trainer's public attributes.
        strategy: whose replicas hold the values; nothing is found where there is one replica.
    """
    if strategy.num_replicas_in_sync == 1:
        return ()
    things = [thing for _, thing in named_objects(attributes) if not isinstance(thing, keras.optimizers.Optimizer)]
    layers = [layer for thing in things if isinstance(thing, keras.Layer) for layer in inside(thing)]
    sources = [layer for layer in layers if gathers_alone(layer)] + [t for t in things if isinstance(t, keras.Metric)]
    alone = [as_tf(v) for source in sources for v in source.variables]
    found: dict[int, Copies] = {}
    for variable in [*alone, *filter(_is_summed, (as_tf(v) for thing in things for v in variables_of(thing)))]:
        if not variable.trainable:
            copies = strategy.experimental_local_results(variable)
            found.setdefault(id(copies[0]), copies)
    return tuple(found.values())


def gathers_alone(layer: Any) -> bool:
    """Whether a layer gathers statistics of this replica's examples alone."""
    return isinstance(layer, keras.layers.BatchNormalization) and not layer.synchronized


def _is_summed(variable: tf.Variable) -> bool:
    """Whether replicas write a variable apart, and it is read as their sum."""
    apart = variable.synchronization == tf.VariableSynchronization.ON_READ
    return apart and variable.aggregation == tf.VariableAggregation.SUM


@contextlib.contextmanager
def untouched(variables: Sequence[Copies], examples: tf.Tensor) -> Iterator[None]:
    """Surrounds one replica's step, in replica context: puts back what an idle replica has written.

    Args:
        variables: see `find_untouched`.
        examples: int scalar, this replica's number of examples that count.
    """
    if not variables:
        yield
        return
    own = [on_this_replica(copies) for copies in variables]
    before = [copy.read_value() for copy in own]
    yield

    def put_back() -> None:
        for copy, old in zip(own, before, strict=True):
            # not copy.assign: to an audit, which watches that, it is no effect of the recipe
            tf.raw_ops.AssignVariableOp(resource=copy.handle, value=old, name=PUT_BACK)

    run_if(tf.equal(examples, 0), put_back)
