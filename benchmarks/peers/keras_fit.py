"""Keras' `fit` as people call it: one step an execution, with the progress bar and TensorBoard."""

import tempfile

import keras
import tensorflow as tf

from benchmarks.peers import keras_models
from benchmarks.peers.hand_replicas import make_strategy
from benchmarks.peers.line import Line, Settings, settings


class Bursts(keras.callbacks.Callback):
    """Waits for a command after each epoch, which is a burst."""

    def __init__(self, line: Line) -> None:
        super().__init__()
        self.line = line

    def on_epoch_end(self, epoch, logs=None):
        if not self.line.burst_done(logs["loss"]):
            self.model.stop_training = True


def compiled(given: Settings, steps_per_execution: int) -> keras.Model:
    """The model, compiled."""
    keras.mixed_precision.set_global_policy(given.precision)
    with make_strategy(given).scope():
        model = keras_models.model(given.problem, given.dropout)
        model.compile(
            optimizer=keras_models.optimizer(given.problem),
            loss=keras_models.loss(),
            metrics=[keras_models.accuracy()],
            steps_per_execution=steps_per_execution,
        )
    return model


def fit(model: keras.Model, given: Settings, callbacks: list[keras.callbacks.Callback], epochs: int = 10**6) -> None:
    """Trains epochs of a burst each, with a bar and TensorBoard, until a callback ends it."""
    with tempfile.TemporaryDirectory() as folder:
        model.fit(
            keras_models.dataset(given.problem).prefetch(tf.data.AUTOTUNE),
            steps_per_epoch=given.steps_per_burst,
            epochs=epochs,
            callbacks=[keras.callbacks.TensorBoard(folder, update_freq=given.steps_per_log), *callbacks],
        )


def main() -> None:
    given = settings()
    line = Line(keras_models.versions(), keras_models.device())
    fit(compiled(given, steps_per_execution=1), given, [Bursts(line)])
    line.close()


if __name__ == "__main__":
    main()
