"""Semi-supervised training: labelled examples, and more without labels whose two views should look alike."""

import keras
import tensorflow as tf

import looper
from tests.programs.shared import cross_entropy, dense, normal, whole

SIZES = {"labelled": 5, "unlabelled": 9}


def data():
    """Labelled examples, and two views of each of twice as many others."""
    x = normal(6, seed=1)
    return {
        "labelled": (normal(6)[:20], whole(3)[:20]),
        "unlabelled": (x[:36] + 0.1 * normal(6, seed=2)[:36], x[:36] + 0.1 * normal(6, seed=3)[:36]),
    }


class Recipe(looper.Trainer):
    parts = ("labelled", "unlabelled")

    def build(self):
        self.model, self.optimizer = dense(6, 3), keras.optimizers.SGD(0.1)

    def compute_loss(self, batch, training):
        (x, y), (first, second) = batch["labelled"], batch["unlabelled"]
        supervised = cross_entropy(y, self.model(x, training=training))
        target = tf.stop_gradient(tf.nn.softmax(self.model(first, training=training)))
        distance = keras.losses.kl_divergence(target, tf.nn.softmax(self.model(second, training=training)))
        return [supervised, 0.5 * tf.reduce_max(target, 1) * distance]


class PLANTED(Recipe):
    """The examples without labels stand around the mean of a replica's."""

    def compute_loss(self, batch, training):
        first, second = batch["unlabelled"]
        centred = first - tf.reduce_mean(first, 0), second - tf.reduce_mean(first, 0)
        return super().compute_loss({**batch, "unlabelled": centred}, training)


def by_hand(batches):
    model, optimizer = dense(6, 3), keras.optimizers.SGD(0.1)

    @tf.function
    def step(x, y, first, second):
        with tf.GradientTape() as tape:
            supervised = tf.reduce_mean(cross_entropy(y, model(x, training=True)))
            target = tf.stop_gradient(tf.nn.softmax(model(first, training=True)))
            distance = keras.losses.kl_divergence(target, tf.nn.softmax(model(second, training=True)))
            loss = supervised + 0.5 * tf.reduce_mean(tf.reduce_max(target, 1) * distance)
        optimizer.apply(tape.gradient(loss, model.trainable_variables), model.trainable_variables)
        return loss

    for batch in batches:
        step(*batch["labelled"], *batch["unlabelled"])
    return {"model": model}
