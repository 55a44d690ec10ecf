"""A GAN with a gradient penalty: three updates of the critic and one of the generator in each step."""

import keras
import tensorflow as tf

import looper
from tests.programs.shared import dense, normal


def data():
    """Real examples; for each update latents; for each of the critic's where between real and false it is judged."""
    return normal(6), normal(4, 4, seed=1), abs(normal(3, 1, seed=2)) % 1


def networks():
    return dense(6, 1), dense(4, 6)


class Recipe(looper.Trainer):
    def build(self):
        self.critic, self.generator = networks()
        self.critic_optimizer, self.generator_optimizer = keras.optimizers.SGD(0.02), keras.optimizers.SGD(0.05)

    def train_step(self, batch):
        real, z, mix = batch
        for i in range(3):
            with tf.GradientTape() as tape:
                false = self.generator(z[:, i], training=True)
                between = mix[:, i] * real + (1.0 - mix[:, i]) * false
                with tf.GradientTape() as inner:
                    inner.watch(between)
                    score = self.critic(between, training=True)
                slope = tf.norm(inner.gradient(score, between), axis=1)
                judged = self.critic(false, training=True)[:, 0] - self.critic(real, training=True)[:, 0]
                judged += 10.0 * tf.square(slope - 1.0)
            self.minimize(judged, tape, self.critic_optimizer, self.critic.trainable_variables)
        with tf.GradientTape() as tape:
            made = -self.critic(self.generator(z[:, 3], training=True), training=True)
        self.minimize(made, tape, self.generator_optimizer, self.generator.trainable_variables)
        return {"judged": judged, "made": made}


class PLANTED(Recipe):
    """The real examples stand around the mean of a replica's."""

    def train_step(self, batch):
        real, z, mix = batch
        return super().train_step((real - tf.reduce_mean(real, 0), z, mix))


def by_hand(batches):
    critic, generator = networks()
    critic_optimizer, generator_optimizer = keras.optimizers.SGD(0.02), keras.optimizers.SGD(0.05)

    @tf.function
    def step(real, z, mix):
        for i in range(3):
            with tf.GradientTape() as tape:
                false = generator(z[:, i], training=True)
                between = mix[:, i] * real + (1.0 - mix[:, i]) * false
                with tf.GradientTape() as inner:
                    inner.watch(between)
                    score = critic(between, training=True)
                slope = tf.norm(inner.gradient(score, between), axis=1)
                judged = tf.reduce_mean(critic(false, training=True)) - tf.reduce_mean(critic(real, training=True))
                judged += 10.0 * tf.reduce_mean(tf.square(slope - 1.0))
            gradients = tape.gradient(judged, critic.trainable_variables)
            critic_optimizer.apply(gradients, critic.trainable_variables)
        with tf.GradientTape() as tape:
            made = -tf.reduce_mean(critic(generator(z[:, 3], training=True), training=True))
        gradients = tape.gradient(made, generator.trainable_variables)
        generator_optimizer.apply(gradients, generator.trainable_variables)
        return {"judged": judged, "made": made}

    for batch in batches:
        step(*batch)
    return {"critic": critic, "generator": generator}
