"""By hand, one XLA program of many steps over a stack of batches."""

import tensorflow as tf

from benchmarks.peers import keras_models
from benchmarks.peers.hand_written import HandWritten, serve
from benchmarks.peers.line import Settings
from benchmarks.peers.threefry import draw_with_threefry


class HandXlaLoop(HandWritten):
    """A program that loops over the first axis of what `tf.data` stacks."""

    def __init__(self, given: Settings) -> None:
        draw_with_threefry()
        super().__init__(given)
        stacks = keras_models.dataset(given.problem).batch(given.steps_per_call, drop_remainder=True)
        self.iterator = iter(stacks.prefetch(tf.data.AUTOTUNE))

    @tf.function(jit_compile=True)
    def steps(self, x, y):
        for i in tf.range(len(x)):
            self.train(x[i], y[i])

    def burst(self) -> None:
        for _ in range(self.given.calls):
            self.steps(*next(self.iterator))


if __name__ == "__main__":
    serve(HandXlaLoop)
