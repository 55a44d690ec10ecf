"""Translation of padded sentences: each word of a batch counts the same, and padding does not."""

import keras
import numpy as np
import tensorflow as tf

import looper
from tests.programs.shared import L, cross_entropy, whole

WORDS, LENGTH = 12, 5


def data():
    """Sentences of one to five words, of which 1 begins each and 0 is padding, and their translations."""
    lengths = 1 + whole(LENGTH, 1, seed=1)
    given = np.where(np.arange(LENGTH) < lengths, 2 + whole(WORDS - 2, LENGTH, seed=2), 0).astype("int32")
    wanted = np.where(given > 0, WORDS + 1 - given, 0).astype("int32")
    return given, np.pad(wanted, [(0, 0), (1, 0)], constant_values=1)


def network():
    given, said = keras.Input((LENGTH,), dtype="int32"), keras.Input((LENGTH,), dtype="int32")
    read = L.Dense(8, "tanh")(L.Embedding(WORDS, 8, mask_zero=True)(given))
    asked = L.Dense(8, "tanh")(L.Embedding(WORDS, 8, mask_zero=True)(said))
    found = L.Attention()([asked, read])
    return keras.Model([given, said], L.Dense(WORDS)(L.Concatenate()([found, asked])))


class Recipe(looper.Trainer):
    def build(self):
        self.model, self.optimizer = network(), keras.optimizers.SGD(0.5)

    def compute_loss(self, batch, training):
        given, wanted = batch
        losses = cross_entropy(wanted[:, 1:], self.model([given, wanted[:, :-1]], training=training))
        return losses, tf.cast(wanted[:, 1:] != 0, losses.dtype)


class PLANTED(Recipe):
    """The mean over a replica's words."""

    def compute_loss(self, batch, training):
        losses, weights = super().compute_loss(batch, training)
        return tf.reduce_sum(losses * weights) / tf.reduce_sum(weights)


def by_hand(batches):
    model, optimizer = network(), keras.optimizers.SGD(0.5)

    @tf.function
    def step(given, wanted):
        with tf.GradientTape() as tape:
            losses = cross_entropy(wanted[:, 1:], model([given, wanted[:, :-1]], training=True))
            weights = tf.cast(wanted[:, 1:] != 0, losses.dtype)
            loss = tf.reduce_sum(losses * weights) / tf.reduce_sum(weights)
        optimizer.apply(tape.gradient(loss, model.trainable_variables), model.trainable_variables)
        return loss

    for batch in batches:
        step(*batch)
    return {"model": model}
