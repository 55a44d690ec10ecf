"""By hand, a loop of many steps in a call of a `tf.function`."""

import tensorflow as tf

from benchmarks.peers import keras_models
from benchmarks.peers.hand_written import HandWritten, serve
from benchmarks.peers.line import Settings


class HandLoop(HandWritten):
    """Compiled loops over an iterator."""

    def __init__(self, given: Settings) -> None:
        super().__init__(given)
        self.iterator = iter(keras_models.dataset(given.problem).prefetch(tf.data.AUTOTUNE))

    @tf.function
    def steps(self, iterator, count):
        for _ in tf.range(count):
            self.train(*next(iterator))

    def burst(self) -> None:
        for _ in range(self.given.calls):
            self.steps(self.iterator, tf.constant(self.given.steps_per_call))


if __name__ == "__main__":
    serve(HandLoop)
