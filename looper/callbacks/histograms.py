"""Histograms of weights, gradients and activations in TensorBoard."""

from typing import Any

import keras
import numpy as np
import tensorflow as tf
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.plugins.histogram.summary_v2 import histogram_pb

from looper.base.batches import count_examples
from looper.base.errors import InputError
from looper.base.names import as_tf
from looper.base.schedule import Every
from looper.recipe import losses
from looper.run.callback import Callback, Logs, Run


class Histograms(Callback):
    """Writes histograms to TensorBoard: `weights/...`, `gradients/...`, `activations/...`, by the variable's path.

    `updates=True` writes as `updates/...` how much of its weights the step after changes, the norm of the update over
    that of the weights: about 1e-3 is usual, and far more or less tells of a learning rate that does not fit. That step
    is an execution of its own.

    Gradients and activations take one more forward (and backward) pass over `batch`, with `training=False`: nothing
    that is trained changes, and dropout draws nothing. They are those before clipping, on one replica.

    Args:
        every: when.
        weights: those of all the model's trainable variables.
        gradients: of the recipe's loss by these variables.
        activations: the outputs of each layer of a Sequential or Functional model.
        updates: the ratio of update to weights.
        batch: a batch as the data yields it, for gradients and activations.
        model: the attribute of the model, if it is not `self.model` and there are several.

    Raises:
        InputError: if there is no `batch` for gradients or activations; when `fit` begins, without a workdir or a
            model, or for activations of a subclassed model.

    Example:
        >>> Histograms(every=Every(epochs=5)).every
        Every(epochs=5)
    """

    def __init__(
        self,
        every: Every = Every(epochs=1),
        weights: bool = True,
        gradients: bool = False,
        activations: bool = False,
        batch: Any = None,
        model: str | None = None,
        updates: bool = False,
    ) -> None:
        if (gradients or activations) and batch is None:
            raise InputError("Histograms of gradients and activations need batch=, a batch as the data yields it.")
        self.every, self.model = every, model
        self.weights, self.gradients, self.activations = weights, gradients, activations
        self.updates = updates
        self._before: dict[str, tf.Tensor] = {}
        self._ratios: tuple[int, dict[str, tf.Tensor]] | None = None
        self._batch = None if batch is None else tf.nest.map_structure(tf.convert_to_tensor, batch)

    def on_fit_begin(self, run: Run) -> None:
        run.check_workdir("Histograms")
        self._model = run.one_of("model", self.model, "Histograms")
        if not isinstance(self._model, keras.Model):
            raise InputError(f"Histograms are of self.model: it is {type(self._model).__name__}, not a keras.Model.")
        if self.activations:
            self._layers = [layer for layer in self._model.layers if not isinstance(layer, keras.layers.InputLayer)]
            try:
                self._outputs = keras.Model(self._model.inputs, [layer.output for layer in self._layers])
            except (AttributeError, ValueError, TypeError):
                raise InputError("Histograms(activations=True) needs a Sequential or Functional model.") from None

    def on_execution(self, step: int) -> None:
        if self._before:
            before, self._before = self._before, {}
            now = {v.path: tf.convert_to_tensor(v) for v in self._model.trainable_variables}
            ratios = {name: _ratio(before[name], now[name]) for name in before.keys() & now.keys()}
            self._ratios = (step, ratios)  # which are read at the next boundary

    def on_boundary_end(self, step: int) -> None:
        self._write_ratios()

    def on_fit_end(self) -> None:
        self._write_ratios()

    def _write_ratios(self) -> None:
        if self._ratios is not None:
            (step, ratios), self._ratios = self._ratios, None
            values = [Summary.Value(tag=f"updates/{name}", simple_value=float(ratios[name])) for name in sorted(ratios)]
            self.run.events.add("train", step, Summary(value=values))

    def on_step(self, step: int, logs: Logs) -> None:
        variables = self._model.trainable_variables
        if self.weights:
            self._write(step, "weights", {v.path: v.numpy() for v in variables})
        if self.gradients:
            self._write(step, "gradients", self._gradients(variables))
        if self.updates:
            self._before = {v.path: tf.convert_to_tensor(v) for v in variables}
            self.one_by_one = range(step, step + 1)
        if self.activations:
            x = self._batch[0] if isinstance(self._batch, tuple | list) else self._batch
            outputs = self._outputs(x, training=False)
            self._write(step, "activations", dict(zip([layer.name for layer in self._layers], outputs, strict=True)))

    def _gradients(self, variables: list[keras.Variable]) -> dict[str, Any]:
        with tf.GradientTape() as tape:
            examples = count_examples(self._batch)
            terms = losses.as_terms("loss", self.run.compute_loss(self._batch), examples)
            loss = tf.add_n(
                [t.total / (1.0 if t.divisor is None else tf.cast(t.divisor, t.total.dtype)) for t in terms]
            )
        found = tape.gradient(loss, [as_tf(v) for v in variables])
        return {v.path: tf.convert_to_tensor(g) for v, g in zip(variables, found, strict=True) if g is not None}

    def _write(self, step: int, kind: str, values: dict[str, Any]) -> None:
        for name, value in values.items():
            self.run.events.add("train", step, histogram_pb(f"{kind}/{name}", np.asarray(value, np.float64)))


def _ratio(before: tf.Tensor, now: tf.Tensor) -> tf.Tensor:
    before, now = tf.cast(before, tf.float32), tf.cast(now, tf.float32)
    return tf.math.divide_no_nan(tf.norm(now - before), tf.norm(before))
