"""MoCo: a momentum encoder makes the keys, and a queue holds those of the last batches."""

import keras
import numpy as np
import tensorflow as tf

import looper
from tests.programs.shared import dense, normal


def data():
    """Two views of each example."""
    x, one, other = (normal(6, seed=seed) for seed in range(3))
    return x + 0.1 * one, x + 0.1 * other


def networks():
    model, slow = dense(6, 4), dense(6, 4)
    slow.set_weights(model.get_weights())
    slow.trainable = False
    return model, slow


def first_queue():
    keys = np.random.default_rng(3).normal(size=(16, 4))
    return tf.cast(keys / np.linalg.norm(keys, axis=1, keepdims=True), keras.config.floatx())


class Recipe(looper.Trainer):
    def build(self):
        (self.model, self.slow), self.optimizer = networks(), keras.optimizers.SGD(0.1)
        self.queue = tf.Variable(first_queue(), trainable=False)

    def train_step(self, batch):
        keys = tf.math.l2_normalize(self.slow(batch[1], training=False), 1)
        with tf.GradientTape() as tape:
            queries = tf.math.l2_normalize(self.model(batch[0], training=True), 1)
            right = tf.reduce_sum(queries * keys, 1, keepdims=True)
            logits = tf.concat([right, tf.matmul(queries, self.queue, transpose_b=True)], 1)
            loss = -tf.nn.log_softmax(logits / 0.2)[:, 0]
        self.minimize(loss, tape)
        self.queue.assign(tf.concat([self.all_gather(keys), self.queue], 0)[:16])
        return {"loss": loss}

    def after_update(self):
        for slow, weight in zip(self.slow.weights, self.model.weights, strict=True):
            slow.assign(0.9 * slow + 0.1 * weight)


class PLANTED(Recipe):
    """The keys' inputs stand around the mean of a replica's."""

    def train_step(self, batch):
        first, second = batch
        return super().train_step((first, second - tf.reduce_mean(second, 0)))


def by_hand(batches):
    model, slow_model = networks()
    queue = tf.Variable(first_queue(), trainable=False)
    optimizer = keras.optimizers.SGD(0.1)

    @tf.function
    def step(first, second):
        keys = tf.math.l2_normalize(slow_model(second, training=False), 1)
        with tf.GradientTape() as tape:
            queries = tf.math.l2_normalize(model(first, training=True), 1)
            right = tf.reduce_sum(queries * keys, 1, keepdims=True)
            logits = tf.concat([right, tf.matmul(queries, queue, transpose_b=True)], 1)
            loss = -tf.reduce_mean(tf.nn.log_softmax(logits / 0.2)[:, 0])
        optimizer.apply(tape.gradient(loss, model.trainable_variables), model.trainable_variables)
        queue.assign(tf.concat([keys, queue], 0)[:16])
        for slow, weight in zip(slow_model.weights, model.weights, strict=True):
            slow.assign(0.9 * slow + 0.1 * weight)
        return loss

    for batch in batches:
        step(*batch)
    return {"model": model, "slow": slow_model, "queue": queue}
