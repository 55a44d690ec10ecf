"""Small models and data that several tests share."""

import keras
import numpy as np

L = keras.layers


def dense(dropout: float = 0.0, norm: bool = True) -> keras.Model:
    layers = [keras.Input((6,)), L.Dense(16, activation="relu")]
    layers += [L.BatchNormalization()] if norm else []
    layers += [L.Dropout(dropout)] if dropout else []
    return keras.Sequential([*layers, L.Dense(3)])


def convolutional() -> keras.Model:
    return keras.Sequential(
        [
            keras.Input((6, 6, 1)),
            L.Conv2D(8, 3, use_bias=False),  # under batch normalization a bias is rounding noise
            L.BatchNormalization(),
            L.ReLU(),
            L.Flatten(),
            L.Dropout(0.4),
            L.Dense(3),
        ]
    )


def two_inputs() -> keras.Model:
    a, b = keras.Input((4,), name="a"), keras.Input((2,), name="b")
    joined = L.Concatenate()([L.Dense(8, activation="tanh")(a), b])
    return keras.Model({"a": a, "b": b}, L.Dense(3)(L.Dropout(0.2)(joined)))


def data(shape: tuple[int, ...] = (6,), examples: int = 50, dtype: str = "float32") -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(7)
    return random.normal(size=(examples, *shape)).astype(dtype), random.integers(0, 3, examples).astype("int32")


def two_inputs_data(examples: int = 50) -> tuple[dict[str, np.ndarray], np.ndarray]:
    a, y = data((4,), examples)
    return {"a": a, "b": a[:, :2] * 0.5}, y


def cross_entropy() -> keras.losses.Loss:
    return keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def norm_difference(a: np.ndarray, b: np.ndarray) -> float:
    """The norm of the difference over the norm: tolerances are for the norm of a whole tensor."""
    return float(np.linalg.norm(a - b) / max(np.linalg.norm(b), 1e-12))
