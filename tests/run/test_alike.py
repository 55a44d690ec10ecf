"""What replicas assign differently is seen after the first execution: an error if it is trained, else a warning."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import looper
from tests.support import models

X, Y = models.data(examples=32)
TWO = {"strategy": "mirrored", "devices": 2}


class Queue(looper.Trainer):
    """Keeps what the last batch gave."""

    gathers = False

    def build(self):
        self.model, self.optimizer = models.dense(0.0, norm=False), keras.optimizers.SGD(0.1)
        self.loss = models.cross_entropy()
        self.queue = tf.Variable(tf.zeros([8]), trainable=False)
        self.count = tf.Variable(0, trainable=False)
        self.seed, self.mean = keras.random.SeedGenerator(0), keras.metrics.Mean("kept")

    def compute_loss(self, batch, training):
        outputs = self.model(batch[0], training=training)
        if training:
            rows = outputs[:, 0] + 0.0 * keras.random.normal([1], seed=self.seed)
            self.mean.update_state(rows)
            self.queue.assign(tf.concat([self.all_gather(rows)] if self.gathers else [rows, rows], 0)[:8])
            self.count.assign_add(1)
        return self.loss(batch[1], outputs)


class Gathered(Queue):
    gathers = True


class Moves(Queue):
    """Changes a weight by what its replica sees."""

    gathers = True

    def train_step(self, batch):
        with tf.GradientTape() as tape:
            loss = self.compute_loss(batch, True)
        self.minimize(loss, tape)
        kernel = self.model.layers[0].kernel
        kernel.assign_add(0.1 * tf.ones_like(kernel) * batch[0][0, 0])
        return {"loss": loss}


def fit(kind, **options):
    trainer = kind(**options)
    trainer.fit((X, Y), steps=3, batch_size=8, shuffle=False, progress=False)
    return trainer


@pytest.mark.parametrize("execution", ["graph", "xla_step", "eager"])
def test_a_variable_that_differs_is_told_once_by_its_name(execution, recwarn, tmp_path):
    trainer = fit(Queue, execution=execution, workdir=tmp_path, **TWO)
    one, other = (copy.numpy() for copy in trainer.strategy.experimental_local_results(trainer.queue))
    assert not np.array_equal(one, other)
    [said] = [str(w.message) for w in recwarn if "has other values on each replica" in str(w.message)]
    assert said.startswith("queue has other values") and "self.all_gather(x)" in said


def test_a_trained_one_is_an_error_before_the_second_step():
    trainer = Moves(execution="graph", **TWO)
    with pytest.raises(looper.InputError, match=r"kernel is trained, and has other values on each replica: a step ass"):
        trainer.fit((X, Y), steps=3, batch_size=8, progress=False)
    assert trainer.step <= 1


@pytest.mark.parametrize(("kind", "options"), [(Gathered, TWO), (Queue, {"strategy": "one_device"})])
def test_what_is_alike_is_not_told(kind, options, recwarn):
    """Seeds and metrics are each replica's own."""
    fit(kind, execution="graph", **options)
    assert not [w for w in recwarn if "replica" in str(w.message)]


class NotFinite(Gathered):
    """The weights are of no use, on both replicas."""

    def compute_loss(self, batch, training):
        return super().compute_loss(batch, training) * np.nan

    def build(self):
        super().build()
        self.best = tf.Variable(np.nan, trainable=False)


def test_what_is_not_finite_alike_is_what_the_guard_is_for():
    with pytest.raises(looper.NonFiniteLossError):
        fit(NotFinite, execution="graph", **TWO)
