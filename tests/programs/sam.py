"""SAM: the update is the gradient at the weights that a step uphill has made worst."""

import keras
import tensorflow as tf

import looper
from tests.programs.shared import cross_entropy, dense, normal, whole


def data():
    return normal(6), whole(3)


class Recipe(looper.Trainer):
    def build(self):
        self.model, self.optimizer = dense(6, 3), keras.optimizers.SGD(0.1)

    def train_step(self, batch):
        variables = self.model.trainable_variables
        with tf.GradientTape() as tape:
            loss = cross_entropy(batch[1], self.model(batch[0], training=True))
        gradients = self.gradients(loss, tape)
        norm, before = tf.linalg.global_norm(gradients), [tf.identity(v) for v in variables]
        for v, gradient in zip(variables, gradients, strict=True):
            v.assign_add(0.1 * gradient / norm)
        with tf.GradientTape() as tape:
            worst = cross_entropy(batch[1], self.model(batch[0], training=True))
        gradients = self.gradients(worst, tape)
        for v, value in zip(variables, before, strict=True):
            v.assign(value)
        self.apply_gradients(zip(gradients, variables, strict=True))
        return {"loss": loss, "worst": worst}


class PLANTED(Recipe):
    """The gradients are those of a replica's examples."""

    def gradients(self, loss, tape, variables=None):
        return tape.gradient(loss, self.model.trainable_variables)


def by_hand(batches):
    model, optimizer = dense(6, 3), keras.optimizers.SGD(0.1)

    @tf.function
    def step(x, y):
        variables = model.trainable_variables
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean(cross_entropy(y, model(x, training=True)))
        gradients = tape.gradient(loss, variables)
        norm, before = tf.linalg.global_norm(gradients), [tf.identity(v) for v in variables]
        for v, gradient in zip(variables, gradients, strict=True):
            v.assign_add(0.1 * gradient / norm)
        with tf.GradientTape() as tape:
            worst = tf.reduce_mean(cross_entropy(y, model(x, training=True)))
        gradients = tape.gradient(worst, variables)
        for v, value in zip(variables, before, strict=True):
            v.assign(value)
        optimizer.apply(gradients, variables)
        return {"loss": loss, "worst": worst}

    for batch in batches:
        step(*batch)
    return {"model": model}
