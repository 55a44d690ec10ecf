"""Which variables the operations of a traced step read, and which they change; metrics that none changes."""

from collections.abc import Collection, Iterable, Iterator
from typing import Any

import keras
import tensorflow as tf

from looper.base import xla
from looper.base.names import as_tf

READS = frozenset({"ReadVariableOp", "ResourceGather", "ResourceGatherNd", "ResourceStridedSlice"})
"""Operations that take a variable and only read it."""

PUT_BACK = "looper_puts_back"
"""In the names of operations that undo what a step has changed: they are no change."""

SHAPES = frozenset({"VariableShape", "VarIsInitializedOp"})
"""Operations that take a variable and do not look at its value."""


def not_updated(
    metrics: Iterable[keras.Metric], graph: tf.Graph, strategy: tf.distribute.Strategy, first: int = 0
) -> list[keras.Metric]:
    """The metrics that a traced function does not change; none where it calls Python, which may.

    Args:
        metrics: those to look for; what has no variable is not told of.
        graph: of the function.
        strategy: whose replicas hold the variables.
        first: the number of the first operation that counts.

    Example:
        >>> used, forgotten = keras.metrics.Mean("used"), keras.metrics.Mean("forgotten")
        >>> graph = tf.function(lambda: used.update_state(1.0)).get_concrete_function().graph
        >>> [metric.name for metric in not_updated([used, forgotten], graph, tf.distribute.get_strategy())]
        ['forgotten']
    """
    copies = strategy.experimental_local_results
    handles = {m: {id(copy.handle) for v in m.variables for copy in copies(as_tf(v))} for m in metrics}
    if not handles or not xla.PYTHON.isdisjoint(xla.operations(graph)):
        return []
    of = frozenset().union(*handles.values())
    changed = {handle for *_, handle, changes in uses(graph, first, of) if changes}
    return [metric for metric, own in handles.items() if own and changed.isdisjoint(own)]


def uses(
    graph: tf.Graph, first: int = 0, of: Collection[int] | None = None
) -> Iterator[tuple[int, tf.Operation, int, bool]]:
    """Each use of a variable by an operation of a traced function.

    Args:
        graph: of the function.
        first: the number of the first operation that counts.
        of: the `id`s of the handles of the variables that count; default: all.

    Yields:
        The operation's number, the operation, the `id` of the variable's handle, and whether it may change the
        variable. What only asks for a shape is no use.

    Example:
        >>> total = tf.Variable(0.0)
        >>> graph = tf.function(lambda: total.assign_add(1.0)).get_concrete_function().graph
        >>> [(operation.type, changes) for _, operation, _, changes in uses(graph)]
        [('AssignAddVariableOp', True), ('ReadVariableOp', False)]
    """
    outer = {id(inner): id(captured) for captured, inner in graph.captures}
    bodies = _Bodies(graph)
    for number, operation in enumerate(graph.get_operations()):
        if number < first or operation.type in SHAPES:
            continue
        for place, tensor in enumerate(operation.inputs):
            if tensor.dtype == tf.resource:
                handle = outer.get(id(tensor), id(tensor))
                if of is None or handle in of:
                    yield number, operation, handle, bodies.changes(operation.node_def, place)


class _Bodies:
    """The functions that a graph's operations call; each is looked through once."""

    def __init__(self, graph: tf.Graph) -> None:
        self._functions = {body.signature.name: body for body in graph.as_graph_def().library.function}
        self._uses: dict[str, dict[str, list[tuple[Any, int]]]] = {}
        self._known: dict[tuple[str, int], bool] = {}

    def changes(self, node: Any, place: int) -> bool:
        """Whether an operation, a `NodeDef`, may change the variable that is its input at this place."""
        if node.op in READS or node.op in SHAPES or PUT_BACK in node.name:
            return False
        called = [attribute.func.name for attribute in node.attr.values() if attribute.HasField("func")]
        called += [each.name for attribute in node.attr.values() for each in attribute.list.func]
        place -= node.op.removeprefix("Stateless") in ("If", "Case")  # their first input is which to call
        return not called or any(self._changes_argument(name, place) for name in called)

    def _changes_argument(self, name: str, place: int) -> bool:
        if (name, place) not in self._known:
            argument = self._functions[name].signature.input_arg[place].name
            found = self._uses_in(name).get(argument, ())
            self._known[name, place] = any(self.changes(node, i) for node, i in found)
        return self._known[name, place]

    def _uses_in(self, name: str) -> dict[str, list[tuple[Any, int]]]:
        if name not in self._uses:
            found = self._uses[name] = {}
            for node in self._functions[name].node_def:
                for i, source in enumerate(node.input):
                    found.setdefault(source, []).append((node, i))
        return self._uses[name]
