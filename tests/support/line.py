"""A model of one weight, which begins at 1: y = w x."""

import keras
import numpy as np

import looper

L = keras.layers


X = np.ones((16, 1), "float32")


def model(**options) -> keras.Model:
    return keras.Sequential([keras.Input((1,)), L.Dense(1, use_bias=False, kernel_initializer="ones", **options)])


def trainer(**changes) -> looper.Trainer:
    parts = {"model": model, "optimizer": lambda: keras.optimizers.SGD(0.1), "loss": "mse"}
    return looper.Trainer(**{**parts, **changes})


def weight(mine: looper.Trainer) -> float:
    return float(mine.model.weights[0].numpy()[0, 0])
