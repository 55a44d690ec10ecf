"""A diffusion model that predicts the noise, with averaged weights of its own."""

import keras
import tensorflow as tf

import looper
from tests.programs.shared import dense, normal


def data():
    """Examples, the noise to add, and how much of it, from 0 to 1."""
    return normal(6), normal(6, seed=1), abs(normal(1, seed=2)) % 1


def networks():
    model, average = dense(7, 6, hidden=12), dense(7, 6, hidden=12)
    average.set_weights(model.get_weights())
    average.trainable = False
    return model, average


class Recipe(looper.Trainer):
    def build(self):
        self.model, self.average = networks()
        self.optimizer = keras.optimizers.SGD(0.1)

    def compute_loss(self, batch, training):
        x, noise, share = batch
        noisy = tf.sqrt(1.0 - share) * x + tf.sqrt(share) * noise
        return tf.square(self.model(tf.concat([noisy, share], 1), training=training) - noise)

    def after_update(self):
        for slow, weight in zip(self.average.weights, self.model.weights, strict=True):
            slow.assign(0.9 * slow + 0.1 * weight)


class PLANTED(Recipe):
    """The errors weigh by the mean error of a replica's examples."""

    def compute_loss(self, batch, training):
        squares = super().compute_loss(batch, training)
        return squares / tf.stop_gradient(tf.reduce_mean(squares))


def by_hand(batches):
    model, average = networks()
    optimizer = keras.optimizers.SGD(0.1)

    @tf.function
    def step(x, noise, share):
        noisy = tf.sqrt(1.0 - share) * x + tf.sqrt(share) * noise
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean(tf.square(model(tf.concat([noisy, share], 1), training=True) - noise))
        optimizer.apply(tape.gradient(loss, model.trainable_variables), model.trainable_variables)
        for slow, weight in zip(average.weights, model.weights, strict=True):
            slow.assign(0.9 * slow + 0.1 * weight)
        return loss

    for batch in batches:
        step(*batch)
    return {"model": model, "average": average}
