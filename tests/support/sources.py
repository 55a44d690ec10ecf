"""A small run over any source of data."""

import keras
import tensorflow as tf

import looper
from tests.support import models


def model():
    return keras.Sequential([keras.Input((6,)), models.L.Dense(8, activation="relu"), models.L.Dense(3)])


def make_trainer(workdir=None, make_model=model, **options):
    parts = {"optimizer": lambda: keras.optimizers.SGD(0.1), "loss": models.cross_entropy}
    return looper.Trainer(model=make_model, workdir=workdir, **parts, **options)


def train(data, *, workdir=None, epochs=3, make_model=model, callbacks=(), batch_size=None, more=None, **options):
    trainer = make_trainer(workdir, make_model, **options)
    trainer.fit(
        data,
        **({"epochs": epochs} | (more or {})),
        batch_size=batch_size,
        progress=False,
        log_every=looper.Every(steps=3),
        callbacks=callbacks,
    )
    return trainer


def batches(iterator):
    return [batch.numpy().tolist() for batch in iterator]


def late(tensor, seconds):
    """A tensor in a graph, after so many seconds."""
    end = tf.timestamp() + seconds
    with tf.control_dependencies([tf.while_loop(lambda: tf.timestamp() < end, lambda: (), ())]):
        return tf.identity(tensor)
