"""PCGrad: of two tasks' gradients each loses what is against the other."""

import keras
import tensorflow as tf

import looper
from tests.programs.shared import L, cross_entropy, normal, whole


def data():
    """Inputs, a class and a number."""
    return normal(6), whole(3), normal(1, seed=1)


def network():
    inputs = keras.Input((6,))
    hidden = L.Dense(8, "tanh")(inputs)
    return keras.Model(inputs, [L.Dense(3)(hidden), L.Dense(1)(hidden)])


def without(one, other):
    """One gradient without what is against the other."""
    product = tf.add_n([tf.reduce_sum(a * b) for a, b in zip(one, other, strict=True)])
    share = tf.minimum(product, 0.0) / tf.square(tf.linalg.global_norm(other))
    return [a - share * b for a, b in zip(one, other, strict=True)]


class Recipe(looper.Trainer):
    def build(self):
        self.model, self.optimizer = network(), keras.optimizers.SGD(0.1)

    def train_step(self, batch):
        shared, *heads = (layer.trainable_variables for layer in self.model.layers[1:])
        with tf.GradientTape(persistent=True) as tape:
            logits, guess = self.model(batch[0], training=True)
            losses = cross_entropy(batch[1], logits), 3.0 * tf.square(guess - batch[2])
        one, other = (self.gradients(loss, tape, [*shared, *head]) for loss, head in zip(losses, heads, strict=True))
        found = zip(without(one[:2], other[:2]), without(other[:2], one[:2]), strict=True)
        gradients = [*(a + b for a, b in found), *one[2:], *other[2:]]
        self.apply_gradients(zip(gradients, [*shared, *heads[0], *heads[1]], strict=True))
        return {"class": losses[0], "number": losses[1]}


class PLANTED(Recipe):
    """The gradients are those of a replica's examples."""

    def gradients(self, loss, tape, variables=None):
        return tape.gradient(loss, variables)


def by_hand(batches):
    model, optimizer = network(), keras.optimizers.SGD(0.1)

    @tf.function
    def step(x, y, number):
        shared, *heads = (layer.trainable_variables for layer in model.layers[1:])
        with tf.GradientTape(persistent=True) as tape:
            logits, guess = model(x, training=True)
            losses = tf.reduce_mean(cross_entropy(y, logits)), 3.0 * tf.reduce_mean(tf.square(guess - number))
        one, other = (tape.gradient(loss, [*shared, *head]) for loss, head in zip(losses, heads, strict=True))
        found = zip(without(one[:2], other[:2]), without(other[:2], one[:2]), strict=True)
        gradients = [*(a + b for a, b in found), *one[2:], *other[2:]]
        optimizer.apply(gradients, [*shared, *heads[0], *heads[1]])
        return {"class": losses[0], "number": losses[1]}

    for batch in batches:
        step(*batch)
    return {"model": model}
