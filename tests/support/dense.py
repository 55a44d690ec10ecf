"""A small dense network on 48 examples of three classes."""

import keras
import numpy as np

import looper
from tests.support import models

X, Y = models.data(examples=48)


def trainer(workdir=None, model=models.dense, optimizer=lambda: keras.optimizers.SGD(0.05), **options):
    return looper.Trainer(model=model, optimizer=optimizer, loss=models.cross_entropy, workdir=workdir, **options)


def fit(mine, **options):
    return mine.fit((X, Y), **{"batch_size": 8, "progress": False, **options})


def weights(mine):
    return [w.numpy() for w in mine.model.weights]


def assert_equal(a, b):
    for one, other in zip(a, b, strict=True):
        np.testing.assert_array_equal(one, other)
