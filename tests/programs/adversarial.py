"""Adversarial training: half of the loss is that of inputs moved along the sign of their gradient."""

import keras
import tensorflow as tf

import looper
from tests.programs.shared import cross_entropy, dense, normal, whole


def data():
    return normal(6), whole(3)


class Recipe(looper.Trainer):
    def build(self):
        self.model, self.optimizer = dense(6, 3), keras.optimizers.SGD(0.1)

    def compute_loss(self, batch, training):
        x, y = batch
        with tf.GradientTape() as tape:
            tape.watch(x)
            clean = cross_entropy(y, self.model(x, training=training))
        moved = tf.stop_gradient(x + 0.1 * tf.sign(tape.gradient(clean, x)))
        attacked = cross_entropy(y, self.model(moved, training=training))
        return 0.5 * clean + 0.5 * attacked, {"attacked": attacked}


class PLANTED(Recipe):
    """Only examples count that are worse than the mean of a replica's."""

    def compute_loss(self, batch, training):
        loss, logs = super().compute_loss(batch, training)
        return tf.where(loss > tf.reduce_mean(loss), loss, 0.0), logs


def by_hand(batches):
    model, optimizer = dense(6, 3), keras.optimizers.SGD(0.1)

    @tf.function
    def step(x, y):
        with tf.GradientTape() as tape:
            with tf.GradientTape() as inner:
                inner.watch(x)
                clean = cross_entropy(y, model(x, training=True))
            moved = tf.stop_gradient(x + 0.1 * tf.sign(inner.gradient(clean, x)))
            attacked = cross_entropy(y, model(moved, training=True))
            loss = tf.reduce_mean(0.5 * clean + 0.5 * attacked)
        optimizer.apply(tape.gradient(loss, model.trainable_variables), model.trainable_variables)
        return loss, {"attacked": tf.reduce_mean(attacked)}

    for batch in batches:
        step(*batch)
    return {"model": model}
