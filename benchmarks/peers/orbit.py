"""Orbit: its Controller over a StandardTrainer that loops in the graph, with summaries for TensorBoard."""

import importlib.metadata
import tempfile

import orbit
import tensorflow as tf

from benchmarks.peers import keras_models
from benchmarks.peers.hand_written import HandWritten
from benchmarks.peers.line import Line, Settings, settings


class Trainer(orbit.StandardTrainer):
    """The hand-written step in Orbit's loop.

    Args:
        given: what to train.
    """

    def __init__(self, given: Settings) -> None:
        self.parts = HandWritten(given)
        self.global_step = tf.Variable(0, dtype=tf.int64)
        self.last_loss = tf.constant(0.0)
        super().__init__(train_dataset=keras_models.dataset(given.problem).prefetch(tf.data.AUTOTUNE))

    def train_step(self, iterator):
        self.parts.train(*next(iterator))
        self.global_step.assign_add(1)

    def train_loop_begin(self):
        self.parts.mean_loss.reset_state()
        self.parts.accuracy.reset_state()

    def train_loop_end(self):
        self.last_loss = self.parts.mean_loss.result()
        return {"loss": self.last_loss, "accuracy": self.parts.accuracy.result()}


def main() -> None:
    given = settings()
    versions = {"orbit (tf-models-official)": importlib.metadata.version("tf-models-official")}
    line = Line(keras_models.versions() | versions, keras_models.device())
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(given)
        controller = orbit.Controller(
            trainer=trainer,
            global_step=trainer.global_step,
            steps_per_loop=given.steps_per_call,
            summary_dir=folder,
            summary_interval=given.steps_per_call,
        )
        steps = given.steps_per_burst
        controller.train(steps, checkpoint_at_completion=False)
        while line.burst_done(float(trainer.last_loss)):
            steps += given.steps_per_burst
            controller.train(steps, checkpoint_at_completion=False)
    line.close()


if __name__ == "__main__":
    main()
