"""The raw loop: what a careful user writes by hand in a `tf.function`, without looper's fit and gradient pipeline."""

import time
from typing import Any

import keras
import tensorflow as tf

from looper.base.batches import count_examples
from looper.base.names import as_tf
from looper.commands.bench.messages import Channel
from looper.commands.bench.pace import Bursts, fitting
from looper.commands.bench.subject import COMPARED, Subject, overrides, report
from looper.data.feed import Feed
from looper.recipe import build, losses, optimizers, outputs, precision
from looper.saved.variables import trainable_variables
from looper.step.replicas import split_loss
from looper.step.rows import sum_repeated


class RawLoop:
    """Loops over the same batches in the graph: forward, `tape.gradient`, `optimizer.apply`, metrics.

    It shows, logs, evaluates and saves nothing. An own `compute_loss` is called as it is.
    """

    def __init__(self, subject: Subject) -> None:
        self._subject = subject
        self._policy = subject.trainer_options.precision

    def start(self) -> dict[str, Any]:
        """Runs the first steps. Returns what `subject.report` makes of them."""
        trainer = self._trainer = self._subject.trainer("graph")
        self._subject.check_plain(trainer, "the raw loop")
        data = self._subject.data(trainer)
        began = time.perf_counter()
        self._feed = Feed(self._subject.source(data))
        source = self._feed.source
        with precision.scope(self._policy):
            build.build_model(trainer.model, source.element_spec)
            given = trainer.metrics, trainer.weighted_metrics
            self._given = build.metrics_for(trainer.model, source.element_spec, *given)
            self._metrics = outputs.OutputMetrics(*self._given)
        self._trained = trainable_variables({k: v for k, v in vars(trainer).items() if not k.startswith("_")})
        self._variables = [as_tf(v) for v in self._trained]
        with precision.scope(self._policy):
            self._optimizer = self._built_optimizer()
            self._mean = keras.metrics.Mean()
            self._log_means: dict[str, keras.metrics.Mean] = {}
        self._done = None if source.endless or source.length is not None else tf.Variable(0)
        self._loop = tf.function(self._steps)
        found = [self._loss_of_one_step()]
        seconds = time.perf_counter() - began
        found += [self._loss_of_one_step() for _ in range(COMPARED - 1)]
        return report(trainer, seconds, found, source.length)

    def serve(self, channel: Channel, burst_seconds: float) -> None:
        """Runs a burst for each request, until there shall be no more."""
        steps = fitting(self._seconds, burst_seconds, self._feed.source.length)
        bursts, go_on = Bursts(channel, steps, self._feed.source.length), True
        while go_on:
            self._seconds(steps)
            go_on = bursts.reached(steps)

    def _built_optimizer(self) -> Any:
        options, optimizer = self._subject.trainer_options, self._trainer.optimizer
        if options.clip_norm is not None:
            optimizers.inner(optimizer).global_clipnorm = options.clip_norm
        if options.clip_value is not None:
            optimizers.inner(optimizer).clipvalue = options.clip_value
        scaled = isinstance(optimizer, keras.optimizers.LossScaleOptimizer)
        if self._policy == "mixed_float16" and not scaled:
            optimizer = keras.optimizers.LossScaleOptimizer(optimizer)
        optimizer.build(self._trained)
        return optimizer

    def _loss_of_one_step(self) -> float:
        self._mean.reset_state()
        self._run(1)
        return float(self._mean.result())

    def _seconds(self, steps: int) -> float:
        """Seconds for so many steps and a look at the loss after them."""
        began = time.perf_counter()
        self._run(steps)
        float(self._mean.result())
        return time.perf_counter() - began

    def _run(self, steps: int) -> None:
        with precision.scope(self._policy):
            while steps:
                count = steps if self._feed.left is None else min(steps, self._feed.left)
                ran = self._run_some(count)
                self._feed.advance(ran)
                if ran < count or self._feed.left == 0:
                    self._feed.next_pass()
                steps -= ran

    def _run_some(self, count: int) -> int:
        before = 0 if self._done is None else int(self._done)
        try:
            self._loop(self._feed.iterator, tf.constant(count))
        except tf.errors.OutOfRangeError:
            if self._done is None:
                raise
            return int(self._done) - before
        return count

    def _steps(self, iterator: Any, count: tf.Tensor) -> None:
        step = tf.autograph.experimental.do_not_convert(self._step)
        for _ in tf.range(count):
            step(next(iterator))

    def _step(self, batch: Any) -> None:
        if self._done is not None:
            self._done.assign_add(1)
        weights = self._subject.fit_options.class_weight
        batch = build.class_weighted(batch, weights) if weights else batch
        with tf.GradientTape() as tape:
            loss = self._loss(batch)
            scaled = self._optimizer.scale_loss(loss)
        found = tape.gradient(scaled, self._variables)
        self._optimizer.apply([None if g is None else sum_repeated(g) for g in found], self._trained)
        self._mean.update_state(loss)

    def _loss(self, batch: Any) -> tf.Tensor:
        trainer, examples = self._trainer, count_examples(batch)
        if overrides(trainer, "compute_loss"):
            loss, logs = split_loss(trainer.compute_loss(batch, training=True))
            for name, value in logs.items():
                if name not in self._log_means:
                    with tf.init_scope():
                        self._log_means[name] = keras.metrics.Mean()
                self._log_means[name].update_state(_mean(value, examples))
            return _mean(loss, examples)
        x, y, sample_weight = (*batch, None, None)[:3] if isinstance(batch, tuple | list) else (batch, None, None)
        predicted = trainer.model(x, training=True)
        if isinstance(predicted, tf.Tensor) and isinstance(trainer.loss, keras.Loss):
            loss = trainer.loss(y, predicted, sample_weight=sample_weight)
            for metric in self._given[0]:
                metric.update_state(y, predicted)
            for metric in self._given[1]:
                metric.update_state(y, predicted, sample_weight)
        else:
            named = outputs.named(predicted, getattr(trainer.model, "output_names", None))
            total = losses.Loss((), examples)
            if trainer.loss is not None:
                total = outputs.total_loss(trainer.loss, trainer.loss_weights, y, named, sample_weight, examples)
            loss = _mean(total, examples)
            if y is not None:
                self._metrics.update(y, named, sample_weight)
        return tf.add_n([loss, *(tf.cast(extra, loss.dtype) for extra in trainer.model.losses)])


def _mean(value: Any, examples: tf.Tensor) -> tf.Tensor:
    """A loss or a log as one number: the sum of its terms, each divided by its divisor."""
    terms = losses.as_terms("loss", value, examples)
    means = [t.total if t.divisor is None else t.total / tf.cast(t.divisor, t.total.dtype) for t in terms]
    return tf.add_n(means) if means else tf.constant(0.0, keras.config.floatx())
