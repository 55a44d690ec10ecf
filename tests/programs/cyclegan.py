"""CycleGAN: two generators and two judges, each with an optimizer of its own."""

import keras
import tensorflow as tf

import looper
from tests.programs.shared import dense, normal


def data():
    """Examples of two domains, which do not belong together."""
    return normal(6), 0.5 * normal(6, seed=1) + 1.0


def networks():
    return {"to_a": dense(6, 6), "to_b": dense(6, 6), "judge_a": dense(6, 1), "judge_b": dense(6, 1)}


class Recipe(looper.Trainer):
    def build(self):
        self.networks = networks()
        self.optimizers = {name: keras.optimizers.SGD(0.05) for name in self.networks}

    def train_step(self, batch):
        a, b = batch
        to_a, to_b, judge_a, judge_b = self.networks.values()
        with tf.GradientTape(persistent=True) as tape:
            false_a, false_b = to_a(b, training=True), to_b(a, training=True)
            cycle = 5.0 * tf.abs(to_a(false_b, training=True) - a) + 5.0 * tf.abs(to_b(false_a, training=True) - b)
            judged_a, judged_b = judge_a(false_a, training=True), judge_b(false_b, training=True)
            losses = {
                "to_a": tf.square(judged_a - 1.0) + cycle,
                "to_b": tf.square(judged_b - 1.0) + cycle,
                "judge_a": tf.square(judge_a(a, training=True) - 1.0) + tf.square(judged_a),
                "judge_b": tf.square(judge_b(b, training=True) - 1.0) + tf.square(judged_b),
            }
        for name, loss in losses.items():
            self.minimize(loss, tape, self.optimizers[name], self.networks[name].trainable_variables)
        return losses


class PLANTED(Recipe):
    """The examples of a domain are as far apart as a replica's are."""

    def train_step(self, batch):
        a, b = batch
        return super().train_step((a / tf.math.reduce_std(a), b / tf.math.reduce_std(b)))


def by_hand(batches):
    models = networks()
    optimizers = {name: keras.optimizers.SGD(0.05) for name in models}

    @tf.function
    def step(a, b):
        to_a, to_b, judge_a, judge_b = models.values()
        with tf.GradientTape(persistent=True) as tape:
            false_a, false_b = to_a(b, training=True), to_b(a, training=True)
            cycle = 5.0 * tf.reduce_mean(tf.abs(to_a(false_b, training=True) - a))
            cycle += 5.0 * tf.reduce_mean(tf.abs(to_b(false_a, training=True) - b))
            judged_a, judged_b = judge_a(false_a, training=True), judge_b(false_b, training=True)
            losses = {
                "to_a": tf.reduce_mean(tf.square(judged_a - 1.0)) + cycle,
                "to_b": tf.reduce_mean(tf.square(judged_b - 1.0)) + cycle,
                "judge_a": tf.reduce_mean(tf.square(judge_a(a, training=True) - 1.0) + tf.square(judged_a)),
                "judge_b": tf.reduce_mean(tf.square(judge_b(b, training=True) - 1.0) + tf.square(judged_b)),
            }
        for name, loss in losses.items():
            variables = models[name].trainable_variables
            optimizers[name].apply(tape.gradient(loss, variables), variables)
        return losses

    for batch in batches:
        step(*batch)
    return {"networks": models}
