"""Distillation: a small model learns the labels and what a frozen teacher says."""

import keras
import tensorflow as tf

import looper
from tests.programs.shared import cross_entropy, dense, normal, whole


def data():
    return normal(6), whole(3)


def networks():
    model, teacher = dense(6, 3), dense(6, 3, hidden=16)
    teacher.trainable = False
    return model, teacher


class Recipe(looper.Trainer):
    def build(self):
        self.model, self.teacher = networks()
        self.optimizer = keras.optimizers.SGD(0.1)

    def compute_loss(self, batch, training):
        x, y = batch
        logits, told = self.model(x, training=training), self.teacher(x, training=False)
        soft = keras.losses.kl_divergence(tf.nn.softmax(told / 2.0), tf.nn.softmax(logits / 2.0))
        return 0.3 * cross_entropy(y, logits) + 0.7 * 4.0 * soft


class PLANTED(Recipe):
    """The labels count as much as the other loss does for a replica's examples."""

    def compute_loss(self, batch, training):
        hard = cross_entropy(batch[1], self.model(batch[0], training=training))
        soft = super().compute_loss(batch, training)
        return soft + hard * tf.stop_gradient(tf.reduce_mean(soft) / tf.reduce_mean(hard))


def by_hand(batches):
    model, teacher = networks()
    optimizer = keras.optimizers.SGD(0.1)

    @tf.function
    def step(x, y):
        told = teacher(x, training=False)
        with tf.GradientTape() as tape:
            logits = model(x, training=True)
            soft = keras.losses.kl_divergence(tf.nn.softmax(told / 2.0), tf.nn.softmax(logits / 2.0))
            loss = tf.reduce_mean(0.3 * cross_entropy(y, logits) + 0.7 * 4.0 * soft)
        optimizer.apply(tape.gradient(loss, model.trainable_variables), model.trainable_variables)
        return loss

    for batch in batches:
        step(*batch)
    return {"model": model, "teacher": teacher}
