"""What the hand-written peers have in common: the parts of a step, and the step."""

import keras
import tensorflow as tf

from benchmarks.peers import keras_models
from benchmarks.peers.line import Line, Settings, settings


class HandWritten:
    """A model with all that a careful user makes for it: an optimizer, a loss, a metric for it and one for accuracy.

    Args:
        given: what to train, and how much of it.
    """

    def __init__(self, given: Settings) -> None:
        self.given = given
        keras.mixed_precision.set_global_policy(given.precision)
        self.model = keras_models.model(given.problem, given.dropout)
        self.optimizer = keras_models.optimizer(given.problem)
        self.optimizer.build(self.model.trainable_variables)
        self.loss = keras_models.loss()
        self.mean_loss, self.accuracy = tf.keras.metrics.Mean(), keras_models.accuracy()

    def train(self, x: tf.Tensor, y: tf.Tensor) -> None:
        """One step."""
        with tf.GradientTape() as tape:
            outputs = self.model(x, training=True)
            loss = self.loss(y, outputs)
        variables = self.model.trainable_variables
        self.optimizer.apply(tape.gradient(loss, variables), variables)
        self.mean_loss.update_state(loss)
        self.accuracy.update_state(y, outputs)

    def burst(self) -> None:
        """The steps of a burst."""
        raise NotImplementedError

    def read(self) -> float:
        """The mean loss since the last time; begins the metrics anew."""
        loss = float(self.mean_loss.result())
        self.mean_loss.reset_state()
        self.accuracy.reset_state()
        return loss


def serve(kind: type[HandWritten]) -> None:
    """Trains bursts for as long as it is asked to."""
    given = settings()
    line = Line(keras_models.versions(), keras_models.device())
    peer = kind(given)
    peer.burst()
    while line.burst_done(peer.read()):
        peer.burst()
    line.close()
