"""The networks in Keras, with their optimizers and data, for all peers that run on TensorFlow."""

import keras
import numpy as np
import tensorflow as tf
from keras import layers

from benchmarks.problems import EPSILON, SGD, Problem, Weights


def mlp(problem: Problem, dropout: float) -> keras.Model:
    return keras.Sequential(
        [
            keras.Input(problem.shape),
            layers.Dense(32, activation="relu"),
            layers.BatchNormalization(),
            layers.Dropout(dropout),
            layers.Dense(problem.classes),
        ]
    )


def deep_mlp(problem: Problem, dropout: float) -> keras.Model:
    model = keras.Sequential([keras.Input(problem.shape)])
    for _ in range(8):
        model.add(layers.Dense(64))
        model.add(layers.BatchNormalization())
        model.add(layers.ReLU())
    model.add(layers.Dense(problem.classes))
    return model


def cnn(problem: Problem, dropout: float) -> keras.Model:
    return keras.Sequential(
        [
            keras.Input(problem.shape),
            layers.Conv2D(32, 3, padding="same"),
            layers.BatchNormalization(),
            layers.ReLU(),
            layers.Conv2D(64, 3, strides=2, padding="same"),
            layers.BatchNormalization(),
            layers.ReLU(),
            layers.GlobalAveragePooling2D(),
            layers.Dense(problem.classes),
        ]
    )


class Block(layers.Layer):
    """A transformer's block of Keras' own layers."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.attention = layers.MultiHeadAttention(heads, width // heads)
        self.norm_1, self.norm_2 = layers.LayerNormalization(), layers.LayerNormalization()
        self.wide, self.narrow = layers.Dense(4 * width, activation="gelu"), layers.Dense(width)

    def call(self, x):
        y = self.norm_1(x)
        x = x + self.attention(y, y, use_causal_mask=True)
        return x + self.narrow(self.wide(self.norm_2(x)))


def gpt(problem: Problem, dropout: float) -> keras.Model:
    inputs = keras.Input(problem.shape, dtype="int32")
    x = layers.Embedding(problem.classes, 64)(inputs)
    for _ in range(2):
        x = Block(64, 4)(x)
    return keras.Model(inputs, layers.Dense(problem.classes)(layers.LayerNormalization()(x)))


class NanoBlock(layers.Layer):
    """nanoGPT's block: queries, keys and values from one matrix, no biases."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv, self.projection = layers.Dense(3 * width, use_bias=False), layers.Dense(width, use_bias=False)
        self.norm_1, self.norm_2 = layers.LayerNormalization(center=False), layers.LayerNormalization(center=False)
        self.wide = layers.Dense(4 * width, activation="gelu", use_bias=False)
        self.narrow = layers.Dense(width, use_bias=False)

    def call(self, x):
        x = x + self.projection(self.attend(self.qkv(self.norm_1(x))))
        return x + self.narrow(self.wide(self.norm_2(x)))

    def attend(self, qkv):
        batch, (length, triple) = tf.shape(qkv)[0], qkv.shape[1:]
        depth = triple // 3 // self.heads
        qkv = tf.reshape(qkv, (batch, length, 3, self.heads, depth))
        queries, keys, values = tf.unstack(tf.transpose(qkv, (2, 0, 3, 1, 4)))
        future = np.triu(np.full((length, length), -1e9, "float32"), 1)
        attention = tf.nn.softmax(tf.matmul(queries, keys, transpose_b=True) / depth**0.5 + future)
        return tf.reshape(tf.transpose(attention @ values, (0, 2, 1, 3)), (batch, length, self.heads * depth))


class Tokens(layers.Layer):
    """Tokens and their positions, embedded."""

    def __init__(self, vocabulary: int, length: int, width: int) -> None:
        super().__init__()
        self.token, self.position = layers.Embedding(vocabulary, width), layers.Embedding(length, width)

    def call(self, tokens):
        return self.token(tokens) + self.position(tf.range(tokens.shape[1]))


def nanogpt(problem: Problem, dropout: float) -> keras.Model:
    inputs = keras.Input(problem.shape, dtype="int32")
    x = Tokens(problem.classes, *problem.shape, 128)(inputs)
    for _ in range(4):
        x = NanoBlock(128, 4)(x)
    outputs = layers.Dense(problem.classes, use_bias=False)(layers.LayerNormalization(center=False)(x))
    return keras.Model(inputs, outputs)


def resnet50(problem: Problem, dropout: float) -> keras.Model:
    return keras.applications.ResNet50(
        weights=None, input_shape=problem.shape, classes=problem.classes, classifier_activation=None
    )


def model(problem: Problem, dropout: float) -> keras.Model:
    """The problem's network with its initial weights."""
    networks = {"mlp": mlp, "deep_mlp": deep_mlp, "cnn": cnn, "gpt": gpt, "nanogpt": nanogpt, "resnet50": resnet50}
    made = networks[problem.network](problem, dropout)
    weights = Weights()
    for variable in made.trainable_variables:
        if variable.name in ("kernel", "embeddings"):
            variable.assign(weights(*variable.shape))
        elif problem.network == "resnet50" and variable.path.endswith("_3_bn/gamma"):
            variable.assign(keras.ops.zeros_like(variable))
    return made


def optimizer(problem: Problem) -> keras.optimizers.Optimizer:
    """The problem's optimizer."""
    if problem.network in SGD:
        return keras.optimizers.SGD(SGD[problem.network], momentum=0.9)
    if problem.network == "deep_mlp":
        return keras.optimizers.Adam(1e-3, epsilon=EPSILON)
    return keras.optimizers.AdamW(1e-3, epsilon=EPSILON, global_clipnorm=1.0 if problem.network == "nanogpt" else None)


def loss() -> keras.losses.Loss:
    """The loss of all problems."""
    return keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def accuracy() -> keras.metrics.Metric:
    """The metric of all problems."""
    return keras.metrics.SparseCategoricalAccuracy("accuracy")


def arrays(problem: Problem) -> tuple[np.ndarray, np.ndarray]:
    """The problem's examples and targets."""
    x, y = (array.reshape(-1, *array.shape[2:]) for array in problem.data())
    return x, y


def dataset(problem: Problem) -> tf.data.Dataset:
    """The problem's batches, again and again."""
    return (
        tf.data.Dataset.from_tensor_slices(arrays(problem)).cache().repeat().batch(problem.batch, drop_remainder=True)
    )


def versions() -> dict[str, str]:
    """Of what these peers have in common."""
    return {"tensorflow": tf.__version__, "keras": keras.__version__}


def device() -> str:
    """The kind of device that TensorFlow puts a step on."""
    return "GPU" if tf.config.list_physical_devices("GPU") else "CPU"
