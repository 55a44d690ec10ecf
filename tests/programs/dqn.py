"""DQN on recorded transitions: a target network follows the model, and is equal to it after every third step."""

import keras
import tensorflow as tf

import looper
from tests.programs.shared import dense, normal, whole


def data():
    """States, actions, rewards, the next states, and 1 where an episode went on."""
    return normal(6), whole(4), normal(seed=1), normal(6, seed=2), 1.0 * whole(2, seed=3)


def networks():
    model, target = dense(6, 4), dense(6, 4)
    target.set_weights(model.get_weights())
    target.trainable = False
    return model, target


class Recipe(looper.Trainer):
    def build(self):
        self.model, self.target = networks()
        self.optimizer = keras.optimizers.SGD(0.1)

    def compute_loss(self, batch, training):
        state, action, reward, following, goes_on = batch
        best = tf.reduce_max(self.target(following, training=False), 1)
        chosen = tf.gather(self.model(state, training=training), action, batch_dims=1)
        return keras.losses.huber(0.0, (reward + 0.9 * goes_on * best - chosen)[:, None])

    def after_update(self):
        now = (self.step + 1) % 3 == 0  # of the steps done, this one is the next
        for slow, weight in zip(self.target.weights, self.model.weights, strict=True):
            slow.assign(tf.where(now, weight, slow))


class PLANTED(Recipe):
    """Rewards stand around the mean of a replica's."""

    def compute_loss(self, batch, training):
        state, action, reward, following, goes_on = batch
        return super().compute_loss((state, action, reward - tf.reduce_mean(reward), following, goes_on), training)


def by_hand(batches):
    model, target = networks()
    optimizer = keras.optimizers.SGD(0.1)

    @tf.function
    def step(state, action, reward, following, goes_on):
        best = tf.reduce_max(target(following, training=False), 1)
        with tf.GradientTape() as tape:
            chosen = tf.gather(model(state, training=True), action, batch_dims=1)
            errors = keras.losses.huber(0.0, (reward + 0.9 * goes_on * best - chosen)[:, None])
            loss = tf.reduce_mean(errors)
        optimizer.apply(tape.gradient(loss, model.trainable_variables), model.trainable_variables)
        now = optimizer.iterations % 3 == 0
        for slow, weight in zip(target.weights, model.weights, strict=True):
            slow.assign(tf.where(now, weight, slow))
        return loss

    for batch in batches:
        step(*batch)
    return {"model": model, "target": target}
