"""Recipes that several tests share."""

import keras
import tensorflow as tf

import looper
from tests.support import models


class Noisy(looper.Trainer):
    """Uses an operation that XLA has no kernel for."""

    def build(self):
        self.model, self.optimizer = models.dense(), keras.optimizers.SGD(0.1)

    def compute_loss(self, batch, training):
        x, y = batch
        x = x + tf.cast(tf.strings.length(tf.strings.as_string(y)) * 0, tf.float32)[:, None]
        return models.cross_entropy()(y, self.model(x, training=training))
