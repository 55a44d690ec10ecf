"""What a recipe's own `train_step` does, seen in a trace that is thrown away.

It tells which variables each optimizer gets, so that optimizers which are not built yet can be built before the steps
are compiled; and whether the one update of a step may wait until the step has returned. It may if nothing after
`minimize` reads what it changes, and the step assigns nothing but metrics and what layers keep of their own. Only then
may micro-batches add up to one update, and gradients and logs be summed over replicas at once.
"""

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import keras
import tensorflow as tf

from looper.base.errors import first_line
from looper.base.lines import line_of
from looper.base.names import as_tf, named_objects, path_of
from looper.recipe import optimizers
from looper.recipe.layers import inside
from looper.step import effects


class NotNoted(Exception):
    """Ends a trace that only notes what a step does, where the step updates by itself."""


@dataclasses.dataclass(frozen=True)
class Call:
    """One call of a step to looper.

    Attributes:
        method: its name, as a recipe writes it.
        optimizer: that is to apply something, or None.
        variables: what it is called for.
        operations: how many operations the graph had after it.
    """

    method: str
    optimizer: Any
    variables: tuple[Any, ...]
    operations: int


class Notes:
    """The calls of one replica's step, in order, and the graph that they were traced in."""

    def __init__(self) -> None:
        self.calls: list[Call] = []
        self.graph = tf.compat.v1.get_default_graph()

    def note(self, method: str, optimizer: Any, variables: Sequence[Any]) -> None:
        """Takes note of a call."""
        self.calls.append(Call(method, optimizer, tuple(variables), len(self.graph.get_operations())))


@dataclasses.dataclass(frozen=True)
class OwnStep:
    """What is known of an own `train_step`.

    Attributes:
        waits: whether its one `minimize` may wait with the update.
        through: whether its one update is that of `super().train_step(batch)`.
        reason: why neither, for a sentence that begins with "train_step"; None where one is True.
        built_for: the variables that each optimizer gets.
        error: what the look ended with, or None.
    """

    waits: bool = False
    through: bool = False
    reason: str | None = "could not be looked at"
    built_for: tuple[tuple[Any, tuple[Any, ...]], ...] = ()
    error: Exception | None = None


def look(
    trace: Callable[[], Sequence[Notes]], attributes: Callable[[], Mapping[str, Any]], strategy: tf.distribute.Strategy
) -> OwnStep:
    """Looks at what a step does.

    Args:
        trace: traces it with notes, and returns those of each replica. What it raises is left for the trace that
            counts to raise.
        attributes: gives the trainer's after the trace: what is a metric or a layer's own.
        strategy: whose replicas hold the variables.
    """
    try:
        notes = trace()[0]
    except NotNoted:
        return OwnStep(reason="calls an optimizer's own apply")
    except Exception as error:
        return OwnStep(reason=f"could not be looked at ({first_line(error)})", error=error)
    built_for: dict[int, tuple[Any, dict[int, Any]]] = {}
    for call in notes.calls:
        if call.optimizer is not None:
            variables = built_for.setdefault(id(call.optimizer), (call.optimizer, {}))[1]
            variables.update((id(as_tf(v)), v) for v in call.variables)
    own = OwnStep(built_for=tuple((optimizer, tuple(found.values())) for optimizer, found in built_for.values()))
    methods = [call.method for call in notes.calls]
    if methods == ["super().train_step"]:
        return dataclasses.replace(own, through=True, reason=None)
    if methods != ["minimize"]:
        return dataclasses.replace(own, reason=_said(methods))
    reason = _why_not_wait(notes, attributes(), strategy)
    return dataclasses.replace(own, waits=reason is None, reason=reason)


def _said(methods: Sequence[str]) -> str:
    if not methods:
        return "calls neither super().train_step(batch) nor self.minimize"
    counts = {method: methods.count(method) for method in methods}
    return "calls " + " and ".join(m if n == 1 else f"{m} {n} times" for m, n in counts.items())


def _why_not_wait(notes: Notes, attributes: Mapping[str, Any], strategy: tf.distribute.Strategy) -> str | None:
    """Why the one `minimize` of a step cannot wait with its update, or None."""
    [call] = notes.calls

    def copies(variable: Any) -> list[int]:
        return [id(copy.handle) for copy in strategy.experimental_local_results(as_tf(variable))]

    # what other replicas read is read in their steps
    trained = {copies(v)[0]: path_of(v) for v in (*call.variables, *_moved_by(call.optimizer))}
    kept = {handle for v in _kept(attributes) for handle in copies(v)}
    names = {id(v.handle): v.name.split(":")[0] for v in notes.graph.variables}
    for number, operation, handle, changes in effects.uses(notes.graph):
        if handle in trained and number >= call.operations:
            return f"looks at {trained[handle]} after minimize, at {line_of(operation)}"
        if changes and handle in names and handle not in kept:
            return f"changes {names[handle]}, at {line_of(operation)}"
    return None


def _moved_by(optimizer: Any) -> Iterator[Any]:
    """The variables of an optimizer that an update changes: all but a learning rate that is set from outside."""
    rates = [one.learning_rate for one in optimizers.members(optimizer)]
    yield from (v for v in optimizer.variables if all(v is not rate for rate in rates))


def _kept(attributes: Mapping[str, Any]) -> Iterator[Any]:
    """The variables of metrics, seeds, and what layers keep without training it, such as batch statistics."""
    for _, thing in named_objects(attributes):
        if isinstance(thing, keras.Metric):
            yield from thing.variables
        elif isinstance(thing, keras.random.SeedGenerator):
            yield thing.state
        elif isinstance(thing, keras.Layer):
            frozen = {id(v) for layer in inside(thing) if not layer.trainable for v in layer.variables}
            yield from (v for v in thing.variables if not as_tf(v).trainable and id(v) not in frozen)
