"""Which variables the operations of a traced step read, and which they change."""

from collections.abc import Iterator, Mapping
from typing import Any

import tensorflow as tf

READS = frozenset({"ReadVariableOp", "ResourceGather", "ResourceGatherNd", "ResourceStridedSlice"})
"""Operations that take a variable and only read it."""

SHAPES = frozenset({"VariableShape", "VarIsInitializedOp"})
"""Operations that take a variable and do not look at its value."""


def uses(graph: tf.Graph, first: int = 0) -> Iterator[tuple[int, tf.Operation, int, bool]]:
    """Each use of a variable by an operation of a traced function.

    Args:
        graph: of the function.
        first: the number of the first operation that counts.

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
    bodies = {body.signature.name: body for body in graph.as_graph_def().library.function}
    for number, operation in enumerate(graph.get_operations()):
        if number < first or operation.type in SHAPES:
            continue
        for place, tensor in enumerate(operation.inputs):
            if tensor.dtype == tf.resource:
                handle = outer.get(id(tensor), id(tensor))
                yield number, operation, handle, _changes(operation.node_def, place, bodies)


def _changes(node: Any, place: int, bodies: Mapping[str, Any]) -> bool:
    """Whether an operation, a `NodeDef`, may change the variable that is its input at this place.

    `bodies` are the functions that a graph's operations call, `FunctionDef`s by name.
    """
    if node.op in READS or node.op in SHAPES:
        return False
    called = [attribute.func.name for attribute in node.attr.values() if attribute.HasField("func")]
    called += [each.name for attribute in node.attr.values() for each in attribute.list.func]
    place -= node.op.removeprefix("Stateless") in ("If", "Case")  # their first input is which to call
    return not called or any(_changes_argument(bodies[name], place, bodies) for name in called)


def _changes_argument(body: Any, place: int, bodies: Mapping[str, Any]) -> bool:
    argument = body.signature.input_arg[place].name
    uses = [(node, i) for node in body.node_def for i, name in enumerate(node.input) if name == argument]
    return any(_changes(node, i, bodies) for node, i in uses)
