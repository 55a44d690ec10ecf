"""looper, as a user has it: bar, TensorBoard, metrics.jsonl and checkpoints on, the latter one in five minutes.

It is given arrays, as the JAX peers are, unless the data is to be a dataset. The other ones on TensorFlow read the
same arrays through `tf.data`.
"""

import tempfile
from typing import Any

import tensorflow as tf

import looper
from benchmarks.peers import keras_models
from benchmarks.peers.line import Line, Terminal, settings
from benchmarks.problems import Problem


def looper_trainer(problem: Problem, dropout: float = 0.5, **options: Any) -> looper.Trainer:
    """The trainer of one of the problems, with the accuracy as its metric and the options that are given."""
    return looper.Trainer(
        model=lambda: keras_models.model(problem, dropout),
        optimizer=lambda: keras_models.optimizer(problem),
        loss=keras_models.loss(),
        metrics=lambda: [keras_models.accuracy()],
        **options,
    )


class Bursts(looper.callbacks.Callback):
    """Waits for a command after each burst. The loss of a burst is the mean of its logs.

    Args:
        line: to wait on.
        steps: of a burst.
    """

    def __init__(self, line: Line, steps: int) -> None:
        self.line, self.steps = line, steps
        self.losses: list[float] = []

    def on_step(self, step, logs):
        self.losses.append(logs["loss"])
        if step % self.steps == 0:
            loss, self.losses = sum(self.losses) / len(self.losses), []
            if not self.line.burst_done(loss):
                self.run.stop("asked to")


def main() -> None:
    given = settings()
    line = Line(keras_models.versions(), keras_models.device())
    with tempfile.TemporaryDirectory() as own:
        trainer = looper_trainer(
            given.problem,
            given.dropout,
            execution=given.execution,
            precision=given.precision,
            workdir=given.workdir or own,
            strategy=given.strategy,
            devices=given.replicas if given.strategy == "mirrored" else None,
        )
        if given.data == "arrays":
            data, batching = keras_models.arrays(given.problem), {"batch_size": given.problem.batch, "shuffle": False}
        else:
            data, batching = keras_models.dataset(given.problem).prefetch(tf.data.AUTOTUNE), {}
        trainer.fit(
            data,
            **batching,
            steps=given.steps_per_burst * given.bursts,  # ended by a command
            log_every=looper.Every(steps=given.steps_per_log),
            callbacks=[Bursts(line, given.steps_per_burst), looper.callbacks.ProgressBar(stream=Terminal())],
        )
    line.close()


if __name__ == "__main__":
    main()
