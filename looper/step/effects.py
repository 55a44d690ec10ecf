"""Which variables the operations of a traced step read, and which they change."""

from collections.abc import Collection, Iterator
from typing import Any

import tensorflow as tf

from looper.base import xla

READS = frozenset({"ReadVariableOp", "ResourceGather", "ResourceGatherNd", "ResourceStridedSlice"})
"""Operations that take a variable and only read it."""

SHAPES = frozenset({"VariableShape", "VarIsInitializedOp"})
"""Operations that take a variable and do not look at its value."""


PYTHON = frozenset({"PyFunc", "PyFuncStateless", "EagerPyFunc"})
"""Operations that call Python, which may change any variable."""


def calls_python(graph: tf.Graph) -> bool:
    """Whether a traced function calls Python while it runs.

    Example:
        >>> calls_python(tf.function(lambda: tf.constant(1)).get_concrete_function().graph)
        False
    """
    return not PYTHON.isdisjoint(xla.operations(graph))


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
        if node.op in READS or node.op in SHAPES:
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
