"""By hand, one step in a call of a `tf.function`."""

import tensorflow as tf

from benchmarks.peers import keras_models
from benchmarks.peers.hand_written import HandWritten, serve
from benchmarks.peers.line import Settings


class HandStep(HandWritten):
    """A loop in Python over compiled steps."""

    def __init__(self, given: Settings) -> None:
        super().__init__(given)
        self.iterator = iter(keras_models.dataset(given.problem).prefetch(tf.data.AUTOTUNE))
        self.step = tf.function(self.train)

    def burst(self) -> None:
        for _ in range(self.given.steps_per_burst):
            self.step(*next(self.iterator))


if __name__ == "__main__":
    serve(HandStep)
