"""A small run that is stopped at some step, and what must be the same after it is continued."""

import os

import keras
import numpy as np
import tensorflow as tf

import looper
from looper.data.source import untuned
from tests.support import inside, models

EPOCHS = 12


SPEEDS = ("steps_per_second", "examples_per_second")


def arrays():
    return models.data(examples=50)


def dataset():
    x, y = models.data(examples=50)
    return untuned(tf.data.Dataset.from_tensor_slices((x, y)).shuffle(20, seed=5).batch(8))


def unknown_length():
    x, y = models.data(examples=60)
    kept = tf.data.Dataset.from_tensor_slices((x, y)).shuffle(60, seed=5).filter(lambda x, y: x[0] > -0.5)
    return untuned(kept.batch(8))


class Stop(looper.callbacks.Callback):
    """Stops the run in the given way once `step` steps are done."""

    def __init__(self, step, how):
        self.step, self.how = step, how

    def on_execution(self, step):
        if step >= self.step:
            if self.how == "exception":
                raise RuntimeError("stopped by the test")
            os.kill(os.getpid(), self.how)


def make_trainer(workdir, **options):
    def make_model():
        layers = [models.L.Dense(16, activation="relu"), models.L.BatchNormalization(), models.L.Dropout(0.5)]
        return keras.Sequential([keras.Input((6,)), *layers, models.L.Dense(3)])

    parts = {
        "model": make_model,
        "optimizer": lambda: keras.optimizers.AdamW(keras.optimizers.schedules.CosineDecay(0.05, 60)),
        "loss": models.cross_entropy,
        "metrics": lambda: [keras.metrics.SparseCategoricalAccuracy("accuracy")],
    }
    return looper.Trainer(**parts | options, workdir=workdir)


def train(workdir, make_data, callbacks=(), epochs=EPOCHS, **options):
    trainer = make_trainer(workdir, **options)
    data = make_data()
    stopping = looper.callbacks.EarlyStopping("eval/loss", patience=2, min_delta=0.05)
    trainer.fit(
        data,
        epochs=epochs,
        batch_size=8 if make_data is arrays else None,
        eval_data=models.data(examples=30),
        log_every=looper.Every(steps=5),
        save_every=looper.Every(steps=4),
        callbacks=[stopping, *callbacks],
        progress=False,
    )
    return trainer


def everything(trainer):
    values = inside.values(trainer)
    rows = [{k: v for k, v in row.items() if k not in SPEEDS} for row in trainer.history.rows]
    return values, rows, trainer.step, trainer.epoch


def assert_same(a, b):
    assert a[2:] == b[2:]
    assert a[1] == b[1]
    assert a[0].keys() == b[0].keys()
    for name, value in a[0].items():
        np.testing.assert_array_equal(value, b[0][name], err_msg=name)


class SaveAt(looper.callbacks.Callback):
    """Saves at `step`, and breaks off after the execution that goes beyond it."""

    every = looper.Every(steps=1)

    def __init__(self, step):
        self.step = step

    def on_step(self, step, logs):
        if step == self.step:
            self.run.save()

    def on_execution(self, step):
        if step > self.step:
            raise RuntimeError("stopped by the test")
