"""By hand, each step an XLA program, in a loop of many steps in a call of a `tf.function`."""

import tensorflow as tf

from benchmarks.peers import keras_models
from benchmarks.peers.hand_written import HandWritten, serve
from benchmarks.peers.line import Settings
from benchmarks.peers.threefry import draw_with_threefry


class HandXlaStep(HandWritten):
    """Compiled loops over an iterator, whose body is compiled by XLA."""

    def __init__(self, given: Settings) -> None:
        draw_with_threefry()
        super().__init__(given)
        self.iterator = iter(keras_models.dataset(given.problem).prefetch(tf.data.AUTOTUNE))
        self.step = tf.function(self.train, jit_compile=True)

    @tf.function
    def steps(self, iterator, count):
        for _ in tf.range(count):
            self.step(*next(iterator))

    def burst(self) -> None:
        for _ in range(self.given.calls):
            self.steps(self.iterator, tf.constant(self.given.steps_per_call))


if __name__ == "__main__":
    serve(HandXlaStep)
