"""From what a loss returns to terms: values, their weights, and what the weighted sum is to be divided by.

A `Term` is one quantity whose global mean is wanted, on any number of replicas and micro-batches:

    mean = sum over replicas of sum(values * weights)  /  sum over replicas of divisor

Keras' reductions differ in the divisor only: the number of elements for means (sample weights multiply, they do
not divide), nothing for sums, the weights' sum for "mean_with_sample_weight", the number of valid elements under
a mask.
"""

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

import keras
import tensorflow as tf

from looper.base.errors import InputError, first_line

EXAMPLES = "examples"
SUM = "sum"


class Term(NamedTuple):
    """One weighted mean, as this replica sees it.

    Attributes:
        values: float tensor of any shape; gradients flow through it.
        weights: tensor that broadcasts to `values`; a constant, no gradient flows through it.
        divisor: scalar, this replica's share of what the global sum is divided by; None for a plain sum.
        group: `EXAMPLES` if the divisor is the number of examples, `SUM` for a plain sum, None if the divisor is
            this term's own.
        mean: whether it is a scalar that the recipe says is a mean over this replica's examples.
    """

    values: tf.Tensor
    weights: tf.Tensor
    divisor: tf.Tensor | None
    group: str | None
    mean: bool = False

    @property
    def total(self) -> tf.Tensor:
        """Scalar, this replica's weighted sum; 0 (not NaN) where all weights are 0."""
        values = tf.cast(self.values, _sum_dtype(self.values))
        weights = tf.cast(self.weights, values.dtype)
        return tf.reduce_sum(tf.math.multiply_no_nan(values, tf.broadcast_to(weights, tf.shape(values))))


def by_divisor(terms: Sequence[Term]) -> list[list[Term]]:
    """Puts the terms that have the same divisor together; the order depends on the terms' kinds and order only."""
    shared = [[t for t in terms if t.group == group] for group in (EXAMPLES, SUM)]
    return [group for group in shared if group] + [[t] for t in terms if t.group is None]


def weightless_if_idle(terms: Sequence[Term], examples: tf.Tensor) -> tuple[Term, ...]:
    """The terms of a replica; without any weight if none of its examples count, as they do on another replica.

    Example:
        >>> [term] = weightless_if_idle(as_terms("loss", (tf.constant(3.0), tf.constant(1.0)), 0), 0)
        >>> float(term.total), float(term.divisor)
        (0.0, 0.0)
    """

    def masked(number: tf.Tensor | None) -> tf.Tensor | None:
        return None if number is None else tf.where(examples > 0, number, tf.zeros_like(number))

    return tuple(term._replace(weights=masked(term.weights), divisor=masked(term.divisor)) for term in terms)


class Loss:
    """A sum of terms with different divisors, such as a data loss plus the model's regularization.

    What the default `compute_loss` returns. It can be added to and multiplied, so that a recipe can write
    `super().compute_loss(batch, training) + 0.1 * penalty`, where `penalty` is a scalar (the mean over this
    replica's examples), a tensor (the mean over its elements) or a `(values, weights)` pair.

    Attributes:
        terms: what is summed.
        examples: int scalar, the number of examples of this replica's batch.
        logs: what of it to log beside it, by name, such as the losses of a model's outputs.
        partial: whether some outputs have no loss on purpose: variables that no gradient reaches are left alone then.
    """

    def __init__(
        self,
        terms: tuple[Term, ...],
        examples: tf.Tensor,
        logs: Mapping[str, "Loss"] = MappingProxyType({}),
        partial: bool = False,
    ) -> None:
        self.terms, self.examples = terms, examples
        self.logs, self.partial = logs, partial

    def __add__(self, other: object) -> "Loss":
        terms = self.terms + self._read(other)
        if isinstance(other, Loss):
            return Loss(terms, self.examples, {**self.logs, **other.logs}, self.partial or other.partial)
        return Loss(terms, self.examples, self.logs, self.partial)

    __radd__ = __add__

    def _read(self, other: object) -> tuple[Term, ...]:
        terms = as_terms("loss", other, self.examples)
        # of another batch: it may have another number of examples
        return with_own_divisors(terms) if isinstance(other, Loss) and other.examples is not self.examples else terms

    def __mul__(self, factor: float | tf.Tensor) -> "Loss":
        scaled = (t._replace(values=t.values * tf.cast(factor, t.values.dtype)) for t in self.terms)
        return Loss(tuple(scaled), self.examples, self.logs, self.partial)

    __rmul__ = __mul__

    def __truediv__(self, divisor: float | tf.Tensor) -> "Loss":
        return self * (1.0 / divisor)

    def __neg__(self) -> "Loss":
        return self * -1.0

    def __sub__(self, other: object) -> "Loss":
        return self + -as_loss("loss", other, self.examples)

    def __rsub__(self, other: object) -> "Loss":
        return -self + other


def as_terms(name: str, value: object, examples: tf.Tensor) -> tuple[Term, ...]:
    """Reads what a recipe returned as its loss or as a log.

    Args:
        name: what to call it in an error.
        value: a tensor (mean over all its elements), a scalar (mean over this replica's examples), a pair
            `(values, weights)` (weighted mean), a `Loss`, or a list of these: each a mean of its own, added up.
        examples: int scalar, the number of examples of this replica's batch.

    Raises:
        InputError: if it is none of these, or the weights do not fit the values.

    Example:
        >>> [term] = as_terms("loss", tf.constant([1.0, 3.0]), tf.constant(2))
        >>> float(term.total / term.divisor)
        2.0
    """
    if isinstance(value, Loss):
        return value.terms
    if isinstance(value, list) and value:
        each = [as_terms(f"{name}/{i}", one, examples) for i, one in enumerate(value)]
        return with_own_divisors([term for terms in each for term in terms])
    expected = "expected a tensor, a scalar (the mean over the examples), a pair (values, weights) or a list of these"
    if isinstance(value, tuple):
        if len(value) != 2:
            raise InputError(f"{name} is a tuple of {len(value)} things; {expected}.")
        values, weights = (_as_float(name, each, expected) for each in value)
        try:
            shape = tf.broadcast_static_shape(values.shape, weights.shape)
        except ValueError:
            shape = None
        if shape is None or shape.rank != values.shape.rank:
            raise InputError(
                f"{name}: weights of shape {weights.shape} do not broadcast to values of shape {values.shape}."
            )
        weights = tf.broadcast_to(tf.cast(weights, _sum_dtype(values)), tf.shape(values))
        weights = tf.stop_gradient(weights)
        return (Term(values, weights, tf.reduce_sum(weights), None),)
    values = _as_float(name, value, expected)
    dtype = _sum_dtype(values)
    if values.shape.rank == 0:
        weight = tf.cast(examples, dtype)
        return (Term(values, weight, weight, EXAMPLES, mean=True),)
    return (Term(values, tf.ones((), dtype), tf.cast(tf.size(values), dtype), None),)


def values_of(loss: object) -> list[tf.Tensor]:
    """The tensors that gradients of a loss flow through, whatever form `as_terms` takes it in.

    Example:
        >>> [x.numpy().tolist() for x in values_of((tf.constant([1.0, 2.0]), tf.constant([1.0, 0.0])))]
        [[1.0, 2.0]]
    """
    return [term.values for term in as_terms("loss", loss, tf.constant(1))]


def as_loss(name: str, value: object, examples: tf.Tensor) -> Loss:
    """What a recipe returned as its loss, as a `Loss`. Arguments and errors as for `as_terms`."""
    return value if isinstance(value, Loss) else Loss(as_terms(name, value, examples), examples)


def with_own_divisors(terms: Sequence[Term]) -> tuple[Term, ...]:
    """Terms that may be about different numbers of examples: none shares its divisor with another one."""
    return tuple(term._replace(group=None) if term.group == EXAMPLES else term for term in terms)


def share(value: object, examples: tf.Tensor) -> Loss:
    """A scalar that does not depend on the examples, such as a model's regularization, by their share of all.

    Example:
        >>> share(tf.constant(2.0), tf.constant(8)).terms[0].mean
        False
    """
    return Loss(tuple(term._replace(mean=False) for term in as_terms("loss", value, examples)), examples)


def _sum_dtype(values: tf.Tensor) -> tf.DType:
    return tf.float32 if values.dtype.size < 4 else values.dtype  # float16 cannot hold the sum of a batch


def _as_float(name: str, value: object, expected: str) -> tf.Tensor:
    try:
        tensor = tf.convert_to_tensor(value)
    except (TypeError, ValueError):
        raise InputError(f"{name} is {value!r}; {expected}.") from None
    if tensor.dtype.is_integer or tensor.dtype.is_bool:
        tensor = tf.cast(tensor, keras.config.floatx())
    if not tensor.dtype.is_floating:
        raise InputError(f"{name} is a tensor of dtype {tensor.dtype.name}; {expected}.")
    return tensor


def resolve(loss: Any) -> Any:
    """Keras loss objects for what a recipe gives; a dict or list of losses keeps its structure.

    Args:
        loss: a loss object, a function `f(y_true, y_pred)`, Keras' name, None, or a dict or list of these.

    Returns:
        Loss objects; "crossentropy" stays a name, because it depends on the targets' shapes (see `for_shapes`).

    Raises:
        InputError: if it is something else, or a name that Keras does not know.

    Example:
        >>> resolve("mse").reduction
        'sum_over_batch_size'
    """
    if loss is None or isinstance(loss, keras.losses.Loss) or _is_crossentropy(loss):
        return loss
    if isinstance(loss, Mapping):
        return {name: resolve(item) for name, item in loss.items()}
    if isinstance(loss, list | tuple):
        return [resolve(item) for item in loss]
    if isinstance(loss, str):
        try:
            loss = keras.losses.get(loss)
        except ValueError:
            raise InputError(f"loss={loss!r}: Keras knows no loss of this name.") from None
        if isinstance(loss, keras.losses.Loss):
            return loss
    if not callable(loss) or isinstance(loss, type):
        raise InputError(f"loss={loss!r}: expected a Keras loss, a function of (y_true, y_pred) or a name.")
    return FunctionLoss(loss)


def for_shapes(loss: Any, y: Any, outputs: Any) -> keras.losses.Loss:
    """The loss itself, or for "crossentropy" the one that fits the targets, as in Keras' `compile`."""
    if not _is_crossentropy(loss):
        return loss
    return resolve(
        {"Binary": "binary", "SparseCategorical": "sparse_categorical"}.get(kind_of_targets(y, outputs), "categorical")
        + "_crossentropy"
    )


def _is_crossentropy(loss: Any) -> bool:
    return isinstance(loss, str) and loss.lower() in ("crossentropy", "ce")


def kind_of_targets(y: Any, outputs: Any) -> str:
    """Whether targets are "Binary", "SparseCategorical" or "Categorical", by Keras' rule: from the shapes alone.

    Example:
        >>> kind_of_targets(tf.zeros([8]), tf.zeros([8, 10]))
        'SparseCategorical'
    """
    if outputs.shape[-1] == 1:
        return "Binary"
    sparse = len(y.shape) < len(outputs.shape) or (y.shape[-1] == 1 and outputs.shape[-1] > 1)
    return "SparseCategorical" if sparse else "Categorical"


class FunctionLoss(keras.losses.Loss):
    """A function `f(y_true, y_pred)` that returns one value per example (or more), as a Keras loss: their mean."""

    def __init__(self, function: Callable[[Any, Any], Any]) -> None:
        name = getattr(function, "__name__", "loss")
        super().__init__(name=name if name.isidentifier() else "loss")  # TensorFlow allows no scope "<lambda>"
        self.function = function

    def call(self, y_true: tf.Tensor, y_pred: tf.Tensor) -> tf.Tensor:
        if isinstance(y_true, tf.Tensor) and isinstance(y_pred, tf.Tensor):
            y_true, y_pred = _same_rank(y_true, y_pred)
        return self.function(y_true, y_pred)


def _same_rank(a: tf.Tensor, b: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Adds a last axis of one element to, or takes it from, one of two tensors, as Keras does for its own functions.

    Targets of shape (n,) are then compared with outputs of shape (n, 1) one by one.
    """
    if a.shape.rank > b.shape.rank:
        return tuple(reversed(_same_rank(b, a)))
    if b.shape.rank == a.shape.rank + 1 and b.shape[-1] == 1:
        return (a[:, None], b) if a.shape.rank == 1 else (a, tf.squeeze(b, -1))
    return a, b


def keras_term(loss: keras.losses.Loss, y: Any, outputs: Any, sample_weight: Any, examples: tf.Tensor) -> Term:
    """The term of a Keras loss, with its own reduction.

    Args:
        loss: a Keras loss object; it is not changed.
        y: targets, as the loss takes them.
        outputs: the model's outputs, as the loss takes them.
        sample_weight: a weight per example (or per example and time step), or None.
        examples: int scalar, the number of examples of this replica's batch.

    Raises:
        InputError: if the loss cannot compare these targets with these outputs.
    """
    ragged = isinstance(outputs, tf.RaggedTensor)
    y, outputs, sample_weight = flat_ragged(y, outputs, sample_weight)
    # A shallow copy by hand: copy.copy serializes Keras objects, which fails for classes that are not registered.
    elementwise = object.__new__(type(loss))
    vars(elementwise).update(vars(loss), reduction=None)  # values times weights and mask, not yet reduced
    masks = [_mask(outputs)]

    def call(*args: Any) -> Any:
        values = loss.call(*args)
        masks.append(_mask(values))  # of a loss that ignores some classes
        return values

    elementwise.call = call
    try:
        values = tf.convert_to_tensor(elementwise(y, outputs, sample_weight))
    except (ValueError, TypeError, tf.errors.InvalidArgumentError) as error:
        weighted = "" if sample_weight is None else f" and sample weights of shape {_shapes(sample_weight)}"
        raise InputError(
            f"the loss {loss.name!r} cannot compare targets of shape {_shapes(y)}{weighted} with model outputs of "
            f"shape {_shapes(outputs)}: {first_line(error)}"
        ) from None
    batch = y.shape[0] if isinstance(y, tf.Tensor) and y.shape.rank else None
    if values.shape.rank and batch is not None and values.shape[0] not in (None, batch):
        raise InputError(
            f"the loss {loss.name!r} returned values of shape {values.shape} for a batch of {batch} examples; "
            "expected one value per example (or more axes after the first)."
        )
    values = tf.cast(values, _sum_dtype(values))
    one, dtype = tf.ones((), values.dtype), values.dtype
    if values.shape.rank == 0:
        # a loss that reduces by itself: its scalar is the mean over this replica's examples
        return Term(values, tf.cast(examples, dtype), tf.cast(examples, dtype), EXAMPLES)
    if loss.reduction == "sum":
        return Term(values, one, None, SUM)
    found = [m for m in masks if m is not None]
    mask = None if not found else found[0] if len(found) == 1 else found[0] & found[1]
    if loss.reduction == "mean_with_sample_weight" and (sample_weight is not None or mask is not None):
        weights = one if sample_weight is None else tf.cast(sample_weight, dtype)
        weights = weights if mask is None else weights * tf.cast(mask, dtype)
        return Term(values, one, tf.reduce_sum(weights), None)
    if mask is not None:
        mask = tf.cast(mask, dtype)
        mask = tf.reshape(
            mask, tf.concat([tf.shape(mask), tf.ones([values.shape.rank - mask.shape.rank], tf.int32)], 0)
        )
        valid = tf.reduce_sum(tf.broadcast_to(mask, tf.shape(values)))
        return Term(values, one, valid, None)
    if ragged:
        return Term(values, one, tf.cast(tf.size(values), dtype), None)
    count = tf.cast(examples, dtype)
    # every example has the same number of elements, so the divisor is the number of examples
    per_example = tf.math.divide_no_nan(count, tf.cast(tf.size(values), dtype))
    return Term(values, per_example, count, EXAMPLES)


def _mask(tensor: Any) -> tf.Tensor | None:
    """The mask that travels with outputs or loss values.

    It is an attribute (keras.src.backend.get_keras_mask in Keras 3.15 reads the same one); there is no public name.
    """
    return getattr(tensor, "_keras_mask", None)


def flat_ragged(y: Any, outputs: Any, sample_weight: Any) -> tuple[Any, Any, Any]:
    """Ragged outputs, their targets and weights as the rows of all examples, one after another; others unchanged.

    A mean over them is then the mean over all valid elements, as under a mask. A weight per example counts for each
    of its rows. Keras' own losses do not take ragged tensors.

    Example:
        >>> rows = tf.ragged.constant([[1.0, 2.0], [3.0]])
        >>> [x.numpy().tolist() for x in flat_ragged(rows, rows, tf.constant([1.0, 0.5]))]
        [[1.0, 2.0, 3.0], [1.0, 2.0, 3.0], [1.0, 1.0, 0.5]]
    """
    if not isinstance(outputs, tf.RaggedTensor):
        return y, outputs, sample_weight
    if isinstance(sample_weight, tf.RaggedTensor):
        sample_weight = sample_weight.flat_values
    elif sample_weight is not None:
        sample_weight = tf.gather(sample_weight, outputs.value_rowids())
    return y.flat_values if isinstance(y, tf.RaggedTensor) else y, outputs.flat_values, sample_weight


def _shapes(structure: Any) -> str:
    return str(tf.nest.map_structure(lambda x: tuple(getattr(x, "shape", ())), structure))
