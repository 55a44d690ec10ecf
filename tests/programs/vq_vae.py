"""A VQ-VAE: a codebook, gradients straight through it, and a commitment loss."""

import keras
import tensorflow as tf

import looper
from tests.programs.shared import L, dense, normal


def data():
    return normal(6)


def networks():
    codebook = L.Embedding(5, 3)
    codebook.build()
    return dense(6, 3), codebook, dense(3, 6)


class Recipe(looper.Trainer):
    def build(self):
        self.encoder, self.codebook, self.decoder = networks()
        self.optimizer = keras.optimizers.SGD(0.1)

    def compute_loss(self, batch, training):
        z = self.encoder(batch, training=training)
        distances = tf.reduce_sum(tf.square(z[:, None] - self.codebook.embeddings), 2)
        code = self.codebook(tf.argmin(distances, 1))
        rebuilt = self.decoder(z + tf.stop_gradient(code - z), training=training)
        loss = tf.reduce_mean(tf.square(rebuilt - batch), 1)
        loss += tf.reduce_mean(tf.square(tf.stop_gradient(z) - code), 1)
        return loss + 0.25 * tf.reduce_mean(tf.square(z - tf.stop_gradient(code)), 1)


class PLANTED(Recipe):
    """A reward for using all codes, which a replica computes of its own examples."""

    def compute_loss(self, batch, training):
        z = self.encoder(batch, training=training)
        distances = tf.reduce_sum(tf.square(z[:, None] - self.codebook.embeddings), 2)
        share = tf.reduce_mean(tf.nn.softmax(-distances), 0)
        return super().compute_loss(batch, training) + tf.reduce_sum(share * tf.math.log(share))


def by_hand(batches):
    encoder, codebook, decoder = networks()
    variables = [*encoder.trainable_variables, *codebook.trainable_variables, *decoder.trainable_variables]
    optimizer = keras.optimizers.SGD(0.1)

    @tf.function
    def step(x):
        with tf.GradientTape() as tape:
            z = encoder(x, training=True)
            distances = tf.reduce_sum(tf.square(z[:, None] - codebook.embeddings), 2)
            code = codebook(tf.argmin(distances, 1))
            loss = tf.reduce_mean(tf.square(decoder(z + tf.stop_gradient(code - z), training=True) - x))
            loss += tf.reduce_mean(tf.square(tf.stop_gradient(z) - code))
            loss += 0.25 * tf.reduce_mean(tf.square(z - tf.stop_gradient(code)))
        optimizer.apply(tape.gradient(loss, variables), variables)
        return loss

    for batch in batches:
        step(batch)
    return {"encoder": encoder, "codebook": codebook, "decoder": decoder}
