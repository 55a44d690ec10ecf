"""Four models that nobody looked at while the thresholds of `looper.step.autotune` were set."""

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
from keras import layers

EXAMPLES = 4096


def _random() -> np.random.Generator:
    return np.random.default_rng(0)


def _lstm() -> tuple[keras.Model, Any, Any, str]:
    """Tags each token of a sequence."""
    tokens = _random().integers(0, 500, (EXAMPLES, 20), "int32")
    inputs = keras.Input((20,), dtype="int32")
    hidden = layers.LSTM(32, return_sequences=True)(layers.Embedding(500, 32)(inputs))
    model = keras.Model(inputs, layers.Dense(5)(hidden))
    return model, tokens, tokens % 5, "sparse"


def _recommender() -> tuple[keras.Model, Any, Any, str]:
    """Ratings as products of the rows of two tables."""
    users, items = _random().integers(0, 5000, (2, EXAMPLES, 1), "int32")
    of_user, of_item = keras.Input((1,), dtype="int32"), keras.Input((1,), dtype="int32")
    rows = [
        layers.Flatten()(layers.Embedding(5000, 32)(of_user)),
        layers.Flatten()(layers.Embedding(5000, 32)(of_item)),
    ]
    hidden = layers.Dense(64, activation="relu")(layers.Concatenate()(rows))
    model = keras.Model([of_user, of_item], layers.Dense(1)(hidden))
    return model, (users, items), ((users + items) % 5).astype("float32"), "squared"


def _autoencoder() -> tuple[keras.Model, Any, Any, str]:
    """Digits through 32 numbers and back."""
    pictures = _random().random((EXAMPLES, 784), "float32")
    widths = (256, 64, 32, 64, 256)
    hidden = [layers.Dense(width, activation="relu") for width in widths]
    return keras.Sequential([keras.Input((784,)), *hidden, layers.Dense(784)]), pictures, pictures, "squared"


def _series() -> tuple[keras.Model, Any, Any, str]:
    """Classes of time series, by convolutions over time."""
    series = _random().normal(size=(EXAMPLES, 128, 3)).astype("float32")
    model = keras.Sequential(
        [
            keras.Input((128, 3)),
            layers.Conv1D(32, 5, activation="relu"),
            layers.MaxPooling1D(2),
            layers.Conv1D(64, 5, activation="relu"),
            layers.GlobalAveragePooling1D(),
            layers.Dense(6),
        ]
    )
    return model, series, (series[:, 0, 0] > 0).astype("int32"), "sparse"


MODELS: dict[str, Callable[[], tuple[keras.Model, Any, Any, str]]] = {
    "lstm": _lstm,
    "recommender": _recommender,
    "autoencoder": _autoencoder,
    "conv1d": _series,
}
"""From a name to what makes the model, its inputs, its targets, and the kind of its loss."""

BATCH = 32


def loss(kind: str) -> keras.losses.Loss:
    """The loss of a kind: "sparse" are classes of logits, "squared" are numbers."""
    if kind == "sparse":
        return keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    return keras.losses.MeanSquaredError()
