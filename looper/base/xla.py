"""Steps as XLA programs, with random numbers drawn at full speed."""

import collections
import contextlib
import functools
import inspect
import re
import threading
from collections.abc import Callable, Iterator
from typing import Any

import tensorflow as tf

from looper.base import xla_cache
from looper.base.errors import first_line
from looper.base.lines import line_of_error

_LOCK = threading.Lock()
"""Held while the samplers are replaced or put back: they are the whole process'."""

_TRACING: collections.Counter[int] = collections.Counter()
"""The threads that are inside `fast_random`, and how deep. Replicas are traced in threads that wait for each other."""

SAMPLERS = (
    (tf.random, "stateless_uniform", "alg"),
    (tf.random, "stateless_normal", "alg"),
    (tf.random, "stateless_truncated_normal", "alg"),
    (tf.nn.experimental, "stateless_dropout", "rng_alg"),
)
"""Public functions that Keras' layers draw with, and what they call their choice of an algorithm."""

UNSEEDED = frozenset(
    {"RandomUniform", "RandomUniformInt", "RandomStandardNormal", "TruncatedNormal", "Multinomial", "RandomShuffle"}
    | {"RandomGamma", "RandomPoissonV2", "ParameterizedTruncatedNormal"}
)
"""Operations of `tf.random` that XLA draws from a counter of the process, whatever their seed."""


def program(function: Callable[..., Any], signature: Any = None) -> Callable[..., Any]:
    """A function of tensors as one XLA program, compiled for each shape that it is given.

    Args:
        function: of tensors.
        signature: `tf.TensorSpec`s of its arguments, or None to take them from each call.

    Example:
        >>> float(program(lambda x: tf.reduce_sum(x * 2.0))(tf.ones([3])))
        6.0
    """

    @functools.partial(tf.function, jit_compile=True, autograph=False, input_signature=signature)
    def run(*arguments: Any) -> Any:
        with fast_random():
            return function(*arguments)

    return run


def traces() -> bool:
    """Whether this thread traces an XLA program, for any device.

    Example:
        >>> seen = []
        >>> _ = program(lambda x: seen.append(traces()) or x)(tf.constant(1.0))
        >>> seen, traces()
        ([True], False)
    """
    return threading.get_ident() in _TRACING and tf.inside_function()


@contextlib.contextmanager
def fast_random() -> Iterator[None]:
    """Inside it, what this thread traces draws random numbers with ThreeFry, unless it names another algorithm.

    For XLA programs on the CPU, where TensorFlow's own choice, Philox, is slow; outside of XLA the CPU
    has no ThreeFry. On a GPU the algorithm stays. Other threads and eager calls go on as they were. A thread that goes
    on with the trace of another one, as a mirrored strategy's does, enters it, too.
    """
    thread = threading.get_ident()
    with _LOCK:
        if not _TRACING:
            for module, name, option in SAMPLERS:
                setattr(module, name, _with_threefry(getattr(module, name), option))
        _TRACING[thread] += 1
    try:
        yield
    finally:
        with _LOCK:
            _TRACING[thread] -= 1
            if not _TRACING[thread]:
                del _TRACING[thread]
            if not _TRACING:
                for module, name, _ in SAMPLERS:
                    setattr(module, name, getattr(module, name).__wrapped__)


def traces_for_cpu() -> bool:
    """Whether what this thread computes now becomes part of an XLA program for the CPU.

    Example:
        >>> seen = []
        >>> _ = program(lambda x: seen.append(traces_for_cpu()) or x)(tf.constant(1.0))
        >>> seen, traces_for_cpu()
        ([True], False)
    """
    return traces() and not tf.config.list_logical_devices("GPU")


def _with_threefry(sampler: Callable[..., Any], option: str) -> Callable[..., Any]:
    signature = inspect.signature(sampler)

    @functools.wraps(sampler)
    def sample(*args: Any, **kwargs: Any) -> Any:
        if traces_for_cpu() and option not in signature.bind_partial(*args, **kwargs).arguments:
            kwargs[option] = "threefry"
        return sampler(*args, **kwargs)

    return sample


def why_not(error: tf.errors.OpError) -> str:
    """Why XLA could not compile or run something: the operations that it lacks, or the first line of its message.

    The recipe's line is that of the first of several.

    Example:
        >>> why_not(tf.errors.InvalidArgumentError(None, None, "... on XLA_CPU_JIT: AsString (No registered ..."))
        'XLA cannot compile the operation AsString'
    """
    if xla_cache.is_to_blame(error):
        return f"the cache of XLA programs failed, not XLA: {first_line(error)}; LOOPER_CACHE=off does without it"
    found = list(dict.fromkeys(re.findall(r"(\w+) \(No registered", str(error))))
    if found:
        line = line_of_error(error)
        at = "" if line is None else f" ({line})"
        return f"XLA cannot compile the operation{'s' * (len(found) > 1)} {', '.join(found)}{at}"
    return f"XLA failed: {first_line(error)}"


PYTHON = frozenset({"PyFunc", "PyFuncStateless", "EagerPyFunc"})
"""Operations that call Python, which may do anything."""


def operations(graph: tf.Graph) -> collections.Counter[str]:
    """How many operations of each type a graph has, those of the functions that it calls among them.

    Example:
        >>> double = tf.function(lambda x: x + x).get_concrete_function(tf.constant(1.0))
        >>> operations(double.graph)["AddV2"]
        1
    """
    content = graph.as_graph_def()
    nodes = [*content.node, *(node for function in content.library.function for node in function.node_def)]
    return collections.Counter(node.op for node in nodes)
