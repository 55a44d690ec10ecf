"""The parts of a recipe (model, optimizer, metrics): how they are made, built, called and checked."""

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import keras
import tensorflow as tf

from looper import gradients
from looper.errors import InputError, first_line
from looper.precision import LossScale
from looper.state import named_objects

NAMES = ("model", "optimizer", "loss", "metrics")


def make(name: str, part: Any) -> Any:
    """A part given to the Trainer, made now if it is a class or a function of no arguments.

    Example:
        >>> float(make("optimizer", lambda: keras.optimizers.SGD(0.5)).learning_rate)
        0.5
        >>> make("loss", "mse")
        'mse'
    """
    kept = str | keras.Layer | keras.Loss | keras.optimizers.Optimizer | Sequence
    if part is None or isinstance(part, kept) or not callable(part):
        return part
    try:
        parameters = inspect.signature(part).parameters.values()
    except (TypeError, ValueError):  # a builtin that does not tell
        return part if name == "loss" else part()
    variadic = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    needs_arguments = any(p.default is p.empty and p.kind not in variadic for p in parameters)
    return part if needs_arguments else part()


def check_model_made_here(model: Any, strategy: tf.distribute.Strategy, precision: str) -> None:
    """Raises `InputError` for a model that was made before the trainer, without its strategy or precision."""
    if not isinstance(model, keras.Layer):
        return
    replicas = strategy.num_replicas_in_sync
    if model.variables:
        parts = strategy.experimental_local_results(gradients.as_tf(model.variables[0]))
        if len(parts) != replicas:
            raise InputError(
                f"the model was made outside the strategy's scope, which has {replicas} replicas: give a function "
                "that makes it, model=lambda: ..., or make it in build()."
            )
    policy = model.dtype_policy.name
    if policy != precision:
        raise InputError(
            f"the model was made with the dtype policy {policy!r}, but precision={precision!r}: give a function that "
            f"makes it, model=lambda: ..., or precision={policy!r}."
        )


def check_metrics(metrics: Any) -> list[keras.Metric]:
    """The metrics as a list. Raises `InputError` if something in it is not a Keras metric."""
    metrics = [metrics] if isinstance(metrics, keras.Metric | str) else list(metrics or [])
    for metric in metrics:
        if not isinstance(metric, keras.Metric):
            raise InputError(
                f"metrics: {metric!r} is {type(metric).__name__}; expected Keras metrics, such as "
                "keras.metrics.SparseCategoricalAccuracy('accuracy')."
            )
    return metrics


def all_metrics(attributes: Mapping[str, Any]) -> list[keras.Metric]:
    """The Keras metrics among a trainer's attributes."""
    return [thing for _, thing in named_objects(attributes) if isinstance(thing, keras.Metric)]


def all_optimizers(attributes: Mapping[str, Any]) -> list[keras.optimizers.Optimizer]:
    """The Keras optimizers among a trainer's attributes."""
    return [thing for _, thing in named_objects(attributes) if isinstance(thing, keras.optimizers.Optimizer)]


def call_model(model: Any, x: Any, training: bool) -> Any:
    """The model's outputs. Raises `InputError`, with what the batch was, if the model fails on it."""
    if model is None or not callable(model):
        raise InputError(f"the model is {model!r}: set self.model in build, give model=, or override compute_loss.")
    try:
        return model(x, training=training)
    except (ValueError, TypeError, tf.errors.InvalidArgumentError) as error:
        shapes = tf.nest.map_structure(lambda t: f"{t.dtype.name}{list(t.shape)}", x)
        raise InputError(f"the model failed on a batch x of {shapes}: {first_line(error)}") from error


def build_model(model: Any, element_spec: Any) -> None:
    """Makes the variables of a Keras model that has none yet, by a call on zeros. Call it in the trainer's scope.

    Args:
        model: a Keras model; anything else is left alone.
        element_spec: of a batch; of a tuple, the first is the model's input.
    """
    if isinstance(model, keras.Model) and not model.built:
        spec = element_spec[0] if isinstance(element_spec, tuple | list) else element_spec
        call_model(model, tf.nest.map_structure(_zeros, spec), training=False)


def _zeros(spec: Any) -> Any:
    zeros = tf.zeros([size or 1 for size in spec.shape], spec.dtype)
    if isinstance(spec, tf.RaggedTensorSpec):
        return tf.RaggedTensor.from_tensor(zeros, ragged_rank=spec.ragged_rank, row_splits_dtype=spec.row_splits_dtype)
    return tf.sparse.from_dense(zeros) if isinstance(spec, tf.SparseTensorSpec) else zeros


def make_loss_scale(optimizers: Sequence[Any], precision: str) -> LossScale | None:
    """The dynamic loss scale of mixed_float16, or of the first `LossScaleOptimizer`, whose settings it takes over."""
    for optimizer in optimizers:
        if isinstance(optimizer, keras.optimizers.LossScaleOptimizer):
            return LossScale(optimizer.initial_scale, optimizer.dynamic_growth_steps)
    return LossScale() if precision == "mixed_float16" else None


def settings(optimizer: Any, loss_scale: LossScale | None) -> dict[str, Any]:
    """What is logged beside losses and metrics: the learning rate and the loss scale, where there is one."""
    found: dict[str, Any] = {}
    if optimizer is not None:
        found["learning_rate"] = gradients.inner(optimizer).learning_rate
    if loss_scale is not None:
        found["loss_scale"] = loss_scale.scale
    return found
