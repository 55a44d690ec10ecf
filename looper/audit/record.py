"""Records, while a step is traced, every call of a layer: the flag that it was given, and the one that it received.

Inside a `Recorder`'s `with`, `keras.Layer.__call__` and the `call` of each layer (a module's `__call__`), the `assign`
methods of variables and `tf.GradientTape` are replaced by ones that take notes and do what they always do. After it
they are as they were; compiled steps hold nothing of it.
"""

import contextlib
import dataclasses
import functools
import inspect
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Literal

import keras
import tensorflow as tf
from tensorflow.python.framework import random_seed

from looper.audit.rules import default_leaks
from looper.audit.sensitivity import sensitivity
from looper.audit.tree import Tree
from looper.base.errors import InputError
from looper.base.lines import line_here
from looper.base.names import as_tf, is_layer_or_module
from looper.base.put_back import instead
from looper.recipe.freezing import acts_as_inference

ASSIGNING = (
    "assign", "assign_add", "assign_sub", "batch_scatter_update", "scatter_add", "scatter_div", "scatter_max",
    "scatter_min", "scatter_mul", "scatter_nd_add", "scatter_nd_max", "scatter_nd_min", "scatter_nd_sub",
    "scatter_nd_update", "scatter_sub", "scatter_update",
)  # fmt: skip


SAMPLERS = (
    "beta", "binomial", "categorical", "dropout", "gamma", "normal", "randint", "shuffle", "truncated_normal", "uniform"
)  # fmt: skip
"""Functions of `keras.random` that take a seed."""

_SEEDED = "set self.noise = keras.random.SeedGenerator(0) in build, and draw with seed=self.noise."


UNSPECIFIED = inspect.Parameter.empty
"""The flag of a call that gave none."""

_LOCK = threading.RLock()
"""Held while hooks are in place: they are the whole process'."""

Phase = Literal["training", "evaluation"]


@dataclasses.dataclass(eq=False)
class Call:
    """One call of a layer or module.

    Attributes:
        layer: what was called.
        path: its place among the trainer's attributes; for a layer found nowhere there, under its caller.
        parent: the call that it happened in, or None.
        phase: "training" or "evaluation".
        given: the `training` that the caller gave, or `UNSPECIFIED`.
        value: the `training` that `call` received; where `call` does not take it, the one that holds for what is
            called inside.
        origin: where the value comes from: "caller", "context" (an earlier or outer call), "default", or "frozen" (by
            `looper.freeze`).
        setter: for "context": the call that set the value there, or None if that was the parent.
        taped: whether a `tf.GradientTape` was recording.
        assigned: variables that were assigned to inside, not counting calls in it.
        shape: of the first input of a batch normalization, or None.
        outputs: the dtypes of outputs in float16, and the operations that made them: `("float16", "Softmax")`.
        measured: tensors, if measuring: the sums of what went "in" and "out"; of mode-sensitive layers also "changed",
            the share of elements that differ between input and output, "there", the number of those not 0 in the
            input, and "dropped", the share of these that became 0.
    """

    layer: Any
    path: str
    parent: "Call | None"
    phase: Phase
    given: Any
    value: Any = None
    origin: str = "default"
    setter: "Call | None" = None
    taped: bool = False
    assigned: list[Any] = dataclasses.field(default_factory=list)
    shape: tf.TensorShape | None = None
    outputs: list[tuple[str, str]] = dataclasses.field(default_factory=list)
    measured: dict[str, tf.Tensor] = dataclasses.field(default_factory=dict)

    def receive(self, value: Any, origin: str, setter: "Call | None" = None) -> None:
        """Takes note of the value that it received, and where it came from."""
        self.value, self.origin, self.setter = value, origin, setter

    def note_shape(self, shape: tf.TensorShape | None) -> None:
        """Takes note of the shape of its first input."""
        self.shape = shape

    def note_outputs(self, outputs: list[tuple[str, str]]) -> None:
        """Takes note of its outputs in float16."""
        self.outputs = outputs

    @property
    def outside(self) -> Iterator["Call"]:
        """The calls that it happened in, from its parent on."""
        call = self.parent
        while call is not None:
            yield call
            call = call.parent

    @property
    def expected(self) -> Any:
        """The value that the call would have if nobody had changed it on the way."""
        return self.phase == "training" if self.parent is None else self.parent.value


class _Thread(threading.local):
    """The calls that one thread is in; a mirrored strategy traces each replica in a thread of its own."""

    def __init__(self) -> None:
        self.stack: list[Call] = []
        self.entered: list[bool] = []  # for each of the stack, whether its `call` has begun
        self.tapes = 0
        self.context: tuple[Any, Call | None] = (None, None)  # Keras' call context: the value, and who set it
        self.symbolic = 0


class Recorder:
    """Takes notes of the first replica. Use it as a context manager around the tracing of one step.

    Attributes:
        calls: in the order in which they began.
        trained: the `id`s of the variables that were given to `minimize`, as `tf.Variable`s.
        assigned: variables that the step assigned to outside all layers, such as an optimizer does.
        missing: variables that no gradient reaches; only while measuring, otherwise they are an error.
        gradients: while measuring, the largest absolute value of each variable's gradient, by the variable's `id`.
        loss_dtypes: of the terms of the losses that gradients are taken of.

    Args:
        tree: the recipe's layers.
        phase: what the step is for.
        eager: whether the step is run, not traced.
        measuring: whether to add tensors to the step that measure what it does.
    """

    def __init__(self, tree: Tree, phase: Phase, *, eager: bool = False, measuring: bool = False) -> None:
        self.tree, self.phase, self.measuring = tree, phase, measuring
        self._eager, self._leaks = eager, default_leaks()
        self._thread = _Thread()
        self._undo = contextlib.ExitStack()
        self.begin()

    def begin(self) -> None:
        """Forgets what was recorded: TensorFlow traces again when the first trace has made variables."""
        self.calls: list[Call] = []
        self.trained: set[int] = set()
        self.assigned: list[Any] = []
        self.missing: list[Any] = []
        self.draws: dict[str, None] = {}  # lines that draw random numbers which no variable drives
        self.constants: dict[str, None] = {}  # lines that draw with a number as the seed
        self.gradients: dict[int, tf.Tensor] = {}
        self.loss_dtypes: set[str] = set()
        # the step's own: a `tf.function` inside it is traced in another one
        self._graph = None if tf.executing_eagerly() else tf.compat.v1.get_default_graph()

    def __enter__(self) -> "Recorder":
        with contextlib.ExitStack() as undo:
            undo.enter_context(_LOCK)
            _hook(undo, keras.Layer, "__call__", self._layer_call)
            _before(undo, tf.GradientTape, "__enter__", functools.partial(self._note_tape, 1))
            _before(undo, tf.GradientTape, "__exit__", functools.partial(self._note_tape, -1))
            _before(undo, keras.Variable, "assign", self._note_assigned)
            # Every function with random operations that keep their state to themselves (TensorFlow 2.21) asks it for
            # their seeds. No public name is called by all of them, and operations do not know the line in a function.
            _before(undo, random_seed, "get_seed", self._note_draw)
            for name in SAMPLERS:
                signature = inspect.signature(getattr(keras.random, name))
                _before(undo, keras.random, name, functools.partial(self._note_constant, signature))
            if self.tree.replicas > 1:
                _before(undo, keras.random.SeedGenerator, "__init__", self._check_generator_is_not_made)
                _before(undo, keras.random.SeedGenerator, "next", self._check_generator)
            for method in ASSIGNING:
                _before(undo, _variable_class(), method, self._note_assigned)
            kinds: set[type] = set()
            for place in self.tree.places.values():
                if isinstance(place.thing, keras.Layer):
                    self._wrap(place.thing, undo)
                elif type(place.thing) not in kinds and callable(place.thing):
                    kinds.add(type(place.thing))
                    _hook(undo, type(place.thing), "__call__", self._module_call)
            self._undo = undo.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._undo.close()
        self._graph = None

    # What the gradient pipeline tells.

    def note_loss(self, dtypes: set[str]) -> None:
        """Takes note of the dtypes of the terms of a loss that gradients are taken of."""
        self.loss_dtypes |= dtypes

    def note_missing(self, variables: list[Any]) -> bool:
        """Takes note of variables that no gradient reaches. Returns whether to go on without them."""
        self.missing += variables
        return self.measuring

    def note_gradients(self, variables: Any, gradients: Any) -> None:
        """Takes note of what is trained; of each gradient, an `IndexedSlices` or a tensor, the largest value."""
        for variable, gradient in zip(variables, gradients, strict=True):
            self.trained.add(id(as_tf(variable)))
            if self.measuring:
                values = gradient.values if isinstance(gradient, tf.IndexedSlices) else gradient
                self.gradients[id(as_tf(variable))] = tf.reduce_max(tf.abs(values))

    # How it is done.

    def _wrap(self, layer: keras.Layer, undo: contextlib.ExitStack) -> None:
        """Replaces the `call` of one layer: also what is called past `Layer.__call__`, as `TimeDistributed` does."""
        call: Any = functools.wraps(layer.call)(self._inner_call(layer, layer.call))
        call.looper_recorder = self
        undo.enter_context(instead(layer, "call", call))

    def _recording(self) -> bool:
        """Whether this is to take notes of: the trace of the first replica."""
        if self._thread.symbolic or (tf.executing_eagerly() and not self._eager):
            return False
        if self.tree.replicas > 1 and not tf.distribute.in_cross_replica_context():
            context = tf.distribute.get_replica_context()
            return tf.get_static_value(context.replica_id_in_sync_group) in (0, None)
        return True

    def _layer_call(self, original: Callable[..., Any]) -> Callable[..., Any]:
        thread = self._thread

        def call_layer(layer: keras.Layer, *args: Any, **kwargs: Any) -> Any:
            given = args if len(args) == 1 and isinstance(args[0], tf.Tensor) else tf.nest.flatten((args, kwargs))
            symbolic = any(isinstance(x, keras.KerasTensor) for x in given)
            if symbolic or not self._recording():
                thread.symbolic += symbolic
                try:
                    return original(layer, *args, **kwargs)
                finally:
                    thread.symbolic -= symbolic
            self._begin_call(layer, kwargs.get("training", UNSPECIFIED))
            try:
                return original(layer, *args, **kwargs)
            finally:
                self._close()

        return call_layer

    def _begin_call(self, layer: keras.Layer, given: Any) -> None:
        """A call through `Layer.__call__` begins: which flag it will get, by Keras' rules."""
        thread = self._thread
        if getattr(vars(layer).get("call"), "looper_recorder", None) is not self:
            self._wrap(layer, self._undo)
        if not thread.stack:
            thread.context = (None, None)
        call = self._open(layer, given)
        context, setter = thread.context
        if call.given is not UNSPECIFIED:
            call.receive(call.given, "caller")
        elif context is not None or setter is not None:
            call.receive(context, "context", setter)
        else:
            call.receive(_default(_parameters(layer.call)), "default")
        if call.origin == "caller" or (call.origin == "default" and call.value is not None and self._leaks):
            thread.context = (call.value, call)

    def _inner_call(self, layer: Any, original: Callable[..., Any]) -> Callable[..., Any]:
        """Stands in for the `call` of a layer or module, bound to it."""
        parameters = _parameters(original)

        def call_inside(*args: Any, **kwargs: Any) -> Any:
            thread = self._thread
            begun = bool(thread.stack) and thread.stack[-1].layer is layer and not thread.entered[-1]
            if not begun and not self._recording():
                return original(*args, **kwargs)
            call = self._enter(layer, parameters, args, kwargs, begun)
            try:
                outputs = original(*args, **kwargs)
                self._note_outputs(call, args, outputs)
                return outputs
            finally:
                if not begun:
                    self._close()

        return call_inside

    def _enter(self, layer: Any, parameters: Mapping[str, Any], args: tuple, kwargs: dict, begun: bool) -> Call:
        """A `call` begins, with these arguments; `begun` tells whether by way of `Layer.__call__`."""
        thread = self._thread
        flag = kwargs.get("training", UNSPECIFIED)
        if flag is UNSPECIFIED and "training" in parameters:
            position = list(parameters).index("training")
            flag = args[position] if len(args) > position else UNSPECIFIED
        if not begun:  # called directly
            call = self._open(layer, flag)
            call.receive(None, "default" if flag is UNSPECIFIED else "caller")
        else:
            call = thread.stack[-1]
        thread.entered[-1] = True
        takes = "training" in parameters or "training" in kwargs
        if takes and isinstance(layer, keras.Layer) and acts_as_inference(layer):
            call.receive(False, "frozen", call.setter)
        elif takes:
            call.receive(_default(parameters) if flag is UNSPECIFIED else flag, call.origin, call.setter)
        elif not begun:
            call.receive(call.expected, call.origin)
        if isinstance(layer, keras.layers.BatchNormalization):
            tensors = [x for x in tf.nest.flatten((args, kwargs)) if isinstance(x, tf.Tensor)]
            call.note_shape(tensors[0].shape if tensors else None)
        return call

    def _module_call(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def call_module(module: Any, *args: Any, **kwargs: Any) -> Any:
            if not is_layer_or_module(module) or not self._recording():
                return original(module, *args, **kwargs)
            return self._inner_call(module, functools.partial(original, module))(*args, **kwargs)

        return call_module

    def _open(self, layer: Any, given: Any) -> Call:
        thread = self._thread
        parent = thread.stack[-1] if thread.stack else None
        path = self.tree.path(layer)
        if path is None:
            name = getattr(layer, "name", type(layer).__name__)
            path = name if parent is None else f"{parent.path}/{name}"
        call = Call(layer, path, parent, self.phase, given, taped=thread.tapes > 0)
        self.calls.append(call)
        thread.stack.append(call)
        thread.entered.append(False)
        return call

    def _close(self) -> None:
        self._thread.stack.pop()
        self._thread.entered.pop()

    def _note_outputs(self, call: Call, args: tuple, outputs: Any) -> None:
        tensors = [x for x in tf.nest.flatten(outputs) if isinstance(x, tf.Tensor)]
        if not tf.executing_eagerly():
            call.note_outputs([(x.dtype.name, x.op.type) for x in tensors if x.dtype == tf.float16])
        if not self.measuring or (not self._eager and tf.compat.v1.get_default_graph() is not self._graph):
            return
        given = [x for x in tf.nest.flatten(args) if isinstance(x, tf.Tensor)]
        call.measured.update({"in": _sum(given), "out": _sum(tensors)})
        if not (len(given) == len(tensors) == 1 and sensitivity(call.layer)):
            return
        was, is_now = given[0], tensors[0]
        if was.dtype == is_now.dtype and was.shape.is_compatible_with(is_now.shape):
            call.measured["changed"] = tf.reduce_mean(tf.cast(was != is_now, tf.float32))
            there = tf.cast(was != 0, tf.float32)
            gone = there * tf.cast(is_now == 0, tf.float32)
            call.measured["there"] = tf.reduce_sum(there)
            call.measured["dropped"] = tf.math.divide_no_nan(tf.reduce_sum(gone), tf.reduce_sum(there))

    def _note_tape(self, change: int, *_: Any) -> None:
        self._thread.tapes += change

    def _note_draw(self, *_: Any, **__: Any) -> None:
        if self._recording():
            self.draws.setdefault(line_here())

    def _note_constant(self, signature: inspect.Signature, *args: Any, **kwargs: Any) -> None:
        """Notes where one of Keras' samplers is given a number as its seed, which draws the same again and again."""
        if self._recording():
            with contextlib.suppress(TypeError):  # the sampler itself says what is wrong
                if isinstance(signature.bind(*args, **kwargs).arguments.get("seed"), int):
                    self.constants.setdefault(line_here())

    def _check_generator_is_not_made(self, *_: Any, **__: Any) -> None:
        if tf.inside_function() and self._recording():
            raise InputError(
                f"{line_here()}: keras.random without a seed, or a SeedGenerator that is made here, needs a new "
                f"variable while the step is traced, which cannot be on {self.tree.replicas} replicas: {_SEEDED}"
            )

    def _check_generator(self, generator: Any, *_: Any, **__: Any) -> None:
        if self._recording() and not isinstance(generator.state.value, tf.distribute.DistributedValues):
            raise InputError(
                f"{line_here()}: it draws with a SeedGenerator that was made outside the strategy's scope, which "
                f"the {self.tree.replicas} replicas would share: {_SEEDED}"
            )

    def _note_assigned(self, variable: Any, *_: Any, **__: Any) -> None:
        if self._recording():
            found = self._thread.stack[-1].assigned if self._thread.stack else self.assigned
            if not any(variable is other for other in found):
                found.append(variable)


def _hook(undo: contextlib.ExitStack, thing: Any, name: str, make: Callable[[Callable], Callable]) -> None:
    """Replaces a method of a class, or a function of a module, by what `make` makes of it.

    That calls it directly: TensorFlow looks at the whole stack for every operation, so each frame costs.
    """
    original = getattr(thing, name)
    undo.enter_context(instead(thing, name, functools.wraps(original)(make(original))))


def _before(undo: contextlib.ExitStack, thing: Any, name: str, note: Callable[..., None]) -> None:
    """Lets a method or function tell `note` first what it is given."""

    def make(original: Callable[..., Any]) -> Callable[..., Any]:
        def noted(*args: Any, **kwargs: Any) -> Any:
            note(*args, **kwargs)
            return original(*args, **kwargs)

        return noted

    _hook(undo, thing, name, make)


@functools.cache
def _variable_class() -> type:
    """The class of a variable of one device. A thread has no strategy, which this one may be in."""
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(lambda: type(tf.Variable(0.0, trainable=False))).result()


def _parameters(call: Callable[..., Any]) -> Mapping[str, inspect.Parameter]:
    try:
        return inspect.signature(call).parameters
    except (TypeError, ValueError):
        return {}


def _sum(tensors: list[tf.Tensor]) -> tf.Tensor:
    numbers = [tf.reduce_sum(tf.cast(x, tf.float64)) for x in tensors if x.dtype.is_floating or x.dtype.is_integer]
    return tf.add_n(numbers) if numbers else tf.zeros((), tf.float64)


def _default(parameters: Mapping[str, inspect.Parameter]) -> Any:
    default = parameters["training"].default if "training" in parameters else UNSPECIFIED
    return None if default is UNSPECIFIED else default


@contextlib.contextmanager
def random_state_put_back() -> Iterator[None]:
    """Puts back what Python's, NumPy's and TensorFlow's eager random generators were at."""
    import random

    import numpy as np

    # TensorFlow 2.21 has no public way to read it: `tf.random.set_seed` starts it anew, and unseeded shuffles of
    # datasets draw their seeds from it. tests/test_private_names.py fails if the name changes.
    from tensorflow.python.eager import context

    eager = context.context()._rng
    before = random.getstate(), np.random.get_state(), None if eager is None else eager.getstate()
    try:
        yield
    finally:
        random.setstate(before[0])
        np.random.set_state(before[1])
        if eager is not None:
            eager.setstate(before[2])
