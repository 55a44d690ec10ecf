"""The components of a recipe (model, optimizer, metrics): how they are made, built, called and checked."""

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import keras
import tensorflow as tf

from looper.base.errors import InputError, first_line, nearest
from looper.base.names import as_tf
from looper.recipe import outputs
from looper.recipe.freezing import acts_as_inference, set_flags
from looper.recipe.layers import inside
from looper.recipe.optimizers import learning_rates
from looper.recipe.precision import LossScale

NAMES = ("model", "optimizer", "loss", "loss_weights", "metrics", "weighted_metrics")


def make(name: str, component: Any) -> Any:
    """A component given to the Trainer, made now if it is a class or a function of no arguments.

    Example:
        >>> float(make("optimizer", lambda: keras.optimizers.SGD(0.5)).learning_rate)
        0.5
        >>> make("loss", "mse")
        'mse'
    """
    if name == "optimizer" and isinstance(component, str):
        return _optimizer(component)
    taken_as_is = str | keras.Layer | keras.Loss | keras.optimizers.Optimizer | Sequence | Mapping
    if component is None or isinstance(component, taken_as_is) or not callable(component):
        return component
    try:
        parameters = inspect.signature(component).parameters.values()
    except (TypeError, ValueError):  # a builtin that does not tell
        return component if name == "loss" else component()
    variadic = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    needs_arguments = any(p.default is p.empty and p.kind not in variadic for p in parameters)
    return component if needs_arguments else component()


def _optimizer(name: str) -> Any:
    try:
        return keras.optimizers.get(name)
    except ValueError:
        kinds = {key: value for key, value in vars(keras.optimizers).items() if isinstance(value, type)}
        known = [key.lower() for key in kinds if "Optimizer" not in key]
        raise InputError(
            f"optimizer={name!r}: Keras knows no optimizer of this name; {nearest(name, known)}."
        ) from None


def check_model_made_here(model: Any, strategy: tf.distribute.Strategy, precision: str) -> None:
    """Raises `InputError` for a model that was made before the trainer, without its strategy or precision."""
    if not isinstance(model, keras.Layer):
        return
    replicas = strategy.num_replicas_in_sync
    if model.variables:
        copies = strategy.experimental_local_results(as_tf(model.variables[0]))
        if len(copies) != replicas:
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


def metrics_of(thing: Any) -> list[keras.Metric]:
    """The Keras metric that a thing is, or those that it holds."""
    if isinstance(thing, keras.Metric):
        return [thing]
    if isinstance(thing, keras.Model) and thing.compiled:  # those of `compile` are for Keras' own fit
        return [metric for layer in thing.layers for metric in metrics_of(layer)]
    return list(thing.metrics) if isinstance(thing, keras.Layer) else []


def call_model(model: Any, x: Any, training: bool) -> Any:
    """The model's outputs. Raises `InputError`, with what the batch was, if the model fails on it."""
    if model is None or not callable(model):
        raise InputError(
            f"the model is {model!r}: set self.model in build, give model=, or override compute_loss (and eval_step, "
            "where train_step is your own)."
        )
    try:
        return model(x, training=training)
    except InputError:  # which says already what is wrong
        raise
    except (ValueError, TypeError, tf.errors.InvalidArgumentError) as error:
        raise InputError(_model_failed(x, error)) from error


def _model_failed(x: Any, error: Exception) -> str:
    shapes = tf.nest.map_structure(lambda t: f"{t.dtype.name}{list(t.shape)}", x)
    return f"the model failed on a batch x of {shapes}: {first_line(error)}"


def build_model(model: Any, element_spec: Any) -> None:
    """Makes the variables of a Keras model that has none yet, by a call on zeros. Call it in the trainer's scope.

    Args:
        model: a Keras model or layer; anything else is left alone.
        element_spec: of a batch; of a tuple, the first is the model's input.
    """
    if isinstance(model, keras.Layer) and not model.built:
        spec = element_spec[0] if isinstance(element_spec, tuple | list) else element_spec
        # a variable that Keras 3.15 makes in a frozen layer may be one that no tape ever watches
        layers = [(layer, layer.trainable, acts_as_inference(layer)) for layer in inside(model)]
        variables = [(variable, variable.trainable) for variable in model.variables]
        set_flags([(layer, True, as_inference) for layer, _, as_inference in layers])
        try:
            call_model(model, tf.nest.map_structure(_zeros, spec), training=False)
        finally:
            set_flags(layers, variables)


def _zeros(spec: Any) -> Any:
    zeros = tf.zeros([size or 1 for size in spec.shape], spec.dtype)
    if isinstance(spec, tf.RaggedTensorSpec):
        return tf.RaggedTensor.from_tensor(zeros, ragged_rank=spec.ragged_rank, row_splits_dtype=spec.row_splits_dtype)
    return tf.sparse.from_dense(zeros) if isinstance(spec, tf.SparseTensorSpec) else zeros


def output_specs(model: Any, element_spec: Any) -> Any:
    """The shapes and dtypes of a Keras model's outputs for batches of this spec; None for another kind of model.

    Raises:
        InputError: if the model does not take such batches.
    """
    if not isinstance(model, keras.Model):
        return None
    spec = element_spec[0] if isinstance(element_spec, tuple | list) else element_spec
    try:
        if getattr(model, "outputs", None) is not None:
            return model.compute_output_spec(
                tf.nest.map_structure(lambda s: keras.KerasTensor(s.shape, s.dtype.name), spec)
            )
        call = tf.function(lambda x: model(x, training=False), autograph=False)  # whatever its operations are
        return call.get_concrete_function(spec).structured_outputs
    except (ValueError, TypeError) as error:
        raise InputError(_model_failed(spec, error)) from error


def metrics_for(model: Any, element_spec: Any, *given: Any) -> list[Any]:
    """Metrics, and weighted ones, as objects: of what is given as names and functions, for batches of this spec.

    Without a spec, names that need shapes are an error: see `outputs.resolve_metrics`.
    """
    y, predicted = None, None
    if element_spec is not None:
        y = element_spec[1] if isinstance(element_spec, tuple | list) and len(element_spec) > 1 else None
        specs = output_specs(model, element_spec)
        predicted = None if specs is None else outputs.named(specs, getattr(model, "output_names", None))
    return [outputs.resolve_metrics(each, y, predicted) for each in given]


def output_rank(model: Any, element_spec: Any) -> int | None:
    """How many axes the outputs of a Keras model have, the batch's included; None if that is not known."""
    specs = tf.nest.flatten(output_specs(model, element_spec))
    return len(specs[0].shape) if len(specs) == 1 and specs[0] is not None else None


def class_weighted(batch: Any, weights: Mapping[int, float], output_rank: int | None = None) -> Any:
    """A batch `(x, y)` or `(x, y, sample_weight)` with each example weighted by its class.

    Class numbers are targets of lower rank than the outputs, such as integer masks. Otherwise classes are read off `y`
    as Keras does: its largest entry along the last axis, or its only one. Classes that are not in `weights` count 1.
    Sample weights multiply.

    Raises:
        InputError: if the batch has no targets, or several.
    """
    x, y, sample_weight = (*batch, None)[:3] if isinstance(batch, tuple | list) and len(batch) in (2, 3) else [None] * 3
    if not isinstance(y, tf.Tensor) or not (y.dtype.is_floating or y.dtype.is_integer or y.dtype.is_bool):
        raise InputError("class_weight needs batches (x, y), y an array of class numbers or one-hot targets.")
    numbers = output_rank is not None and y.shape.rank < output_rank
    if y.shape.rank > 1 and not numbers:
        y = tf.argmax(y, -1) if y.shape[-1] != 1 else tf.squeeze(y, -1)
    classes = tf.cast(tf.round(y) if y.dtype.is_floating else y, tf.int64)
    matches = tf.equal(classes[..., None], tf.constant(list(weights), tf.int64))
    values = tf.constant(list(weights.values()), keras.config.floatx())
    known = tf.reduce_sum(tf.where(matches, values, 0.0), -1)
    found = tf.where(tf.reduce_any(matches, -1), known, 1.0)
    if sample_weight is not None:
        sample_weight = tf.cast(sample_weight, found.dtype)
        while found.shape.rank < sample_weight.shape.rank:
            found = found[..., None]
        while sample_weight.shape.rank < found.shape.rank:
            sample_weight = sample_weight[..., None]
        found = found * sample_weight
    return x, batch[1], found


def make_loss_scale(optimizers: Sequence[Any], precision: str) -> LossScale | None:
    """The dynamic loss scale of mixed_float16, or of the first `LossScaleOptimizer`, whose settings it takes over."""
    for optimizer in optimizers:
        if isinstance(optimizer, keras.optimizers.LossScaleOptimizer):
            return LossScale(optimizer.initial_scale, optimizer.dynamic_growth_steps)
    return LossScale() if precision == "mixed_float16" else None


def settings(optimizers: Mapping[str, Any], loss_scale: LossScale | None) -> dict[str, Any]:
    """The settings that are logged beside losses and metrics: learning rates and, where there is one, the loss scale.

    Args:
        optimizers: by the names of their attributes, which stand in the names of the rates if there are several.
        loss_scale: see above.

    Example:
        >>> optimizers = {name: keras.optimizers.SGD(0.5) for name in ("makers", "judges")}
        >>> list(settings(optimizers, None))
        ['learning_rate/makers', 'learning_rate/judges']
    """
    found: dict[str, Any] = {}
    for name, optimizer in optimizers.items():
        for log, rate in learning_rates(optimizer).items():
            found[log if len(optimizers) == 1 else log.replace("learning_rate", f"learning_rate/{name}", 1)] = rate
    if loss_scale is not None:
        found["loss_scale"] = loss_scale.scale
    return found
