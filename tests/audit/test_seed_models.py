"""The models of four questions about the `training` flag: each trains in training, and is frozen in evaluation.

The models are as they were asked about, with `keras.Input` in place of `input_shape`, and random data.
"""

import dataclasses
from collections.abc import Callable

import keras
import numpy as np
import pytest
import tensorflow as tf

import looper

L = keras.layers


# How does passing training=True affect the functional API?


def batch_normalization():
    return keras.Sequential(
        [keras.Input((10,)), L.Dense(64, activation="relu"), L.BatchNormalization(), L.Dense(10, activation="softmax")]
    )


def dropout():
    return keras.Sequential(
        [keras.Input((10,)), L.Dense(64, activation="relu"), L.Dropout(0.5), L.Dense(10, activation="softmax")]
    )


class ConditionalActivation(L.Layer):
    def call(self, inputs, training=None):
        return tf.nn.relu(inputs) if training else tf.nn.sigmoid(inputs)


def conditional_activation():
    return keras.Sequential([keras.Input((10,)), L.Dense(64), ConditionalActivation(), L.Dense(10)])


# Does omitting training=True cause issues?


def batch_normalization_first():
    layers = [L.BatchNormalization(), L.Conv2D(32, (3, 3), activation="relu"), L.Flatten()]
    return keras.Sequential([keras.Input((28, 28, 1)), *layers, L.Dense(10, activation="softmax")])


def dropout_on_images():
    layers = [L.Flatten(), L.Dense(128, activation="relu"), L.Dropout(0.5), L.Dense(10, activation="softmax")]
    return keras.Sequential([keras.Input((28, 28)), *layers])


class NormalizedInTraining(L.Layer):
    """A layer that changes its weight by itself, in training only (a bare tf.Variable is not found by Keras 3)."""

    def __init__(self, units):
        super().__init__()
        self.w = self.add_weight(shape=(units, units), initializer="random_normal")

    def call(self, inputs, training=None):
        if training:
            self.w.assign(tf.math.l2_normalize(self.w))
        return tf.matmul(inputs, self.w)


def training_logic():
    return keras.Sequential([keras.Input((64,)), NormalizedInTraining(64), L.Dense(10)])


# What effect does training=False have on transfer learning? (With a small base in place of the ResNet50.)


def small_base():
    x = inputs = keras.Input((8, 8, 3))
    for _ in range(4):
        x = L.ReLU()(L.BatchNormalization()(L.Conv2D(8, 3, padding="same", use_bias=False)(x)))
    return keras.Model(inputs, x)


def classifier_on(base):
    x = L.GlobalAveragePooling2D()(base.output)
    x = L.Dense(64, activation="relu")(x)
    return keras.Model(base.input, L.Dense(10, activation="softmax")(x))


def frozen_base():
    base = small_base()
    base.trainable = False
    return classifier_on(base)


def last_layers_unfrozen():
    base = small_base()
    for layer in base.layers[:-8]:
        layer.trainable = False
    for layer in base.layers[-8:]:
        layer.trainable = True
    return classifier_on(base)


class PassesTheFlag(L.Layer):
    """The question passes the flag on to a Dense; Keras 3 takes it only where `call` names it, as in a Sequential."""

    def __init__(self):
        super().__init__()
        self.dense = keras.Sequential([L.Dense(64, activation="relu"), L.Dropout(0.5)])

    def call(self, inputs, training=None):
        return self.dense(inputs, training=training)


def passes_the_flag():
    inputs = keras.Input((10,))
    return keras.Model(inputs, L.Dense(10)(PassesTheFlag()(inputs)))


# How can the training parameter of call be better understood?


class BadModel(keras.Model):
    """Its call does not take `training`: Keras' own fit trains it without dropout and statistics."""

    def __init__(self, units=32):
        super().__init__()
        self.dense = L.Dense(units)
        self.batch_norm = L.BatchNormalization()
        self.dropout = L.Dropout(0.5)

    def call(self, inputs):
        return self.dropout(self.batch_norm(self.dense(inputs)))


class GoodModel(BadModel):
    def call(self, inputs, training=False):
        x = self.dense(inputs)
        x = self.batch_norm(x, training=training)
        return self.dropout(x, training=training)


class ComplexModel(keras.Model):
    def __init__(self, units=64, num_layers=3):
        super().__init__()
        self.layers_list = []
        for _ in range(num_layers):
            self.layers_list += [L.Dense(units), L.BatchNormalization(), L.Dropout(0.2)]

    def call(self, inputs, training=False):
        x = inputs
        for layer in self.layers_list:
            takes_it = isinstance(layer, L.BatchNormalization | L.Dropout)
            x = layer(x, training=training) if takes_it else layer(x)
        return x


@dataclasses.dataclass(frozen=True)
class Case:
    """A model, what it takes and gives, and what training must do to it.

    Attributes:
        statistics: how many moving means and variances training moves, of all that the model has.
        masks: how many dropout layers draw masks.
        zeros: the rate of a dropout that is the last layer.
    """

    make: Callable[[], keras.Model]
    inputs: tuple[int, ...]
    outputs: int
    loss: str = "sparse_categorical_crossentropy"
    statistics: tuple[int, int] = (0, 0)
    masks: int = 0
    zeros: float = 0.0


CASES = [
    Case(batch_normalization, (10,), 10, statistics=(2, 2)),
    Case(dropout, (10,), 10, masks=1),
    Case(conditional_activation, (10,), 10, "mse"),
    Case(batch_normalization_first, (28, 28, 1), 10, statistics=(2, 2)),
    Case(dropout_on_images, (28, 28), 10, masks=1),
    Case(training_logic, (64,), 10, "mse"),
    Case(frozen_base, (8, 8, 3), 10, statistics=(0, 8)),
    Case(last_layers_unfrozen, (8, 8, 3), 10, statistics=(6, 8)),
    Case(passes_the_flag, (10,), 10, "mse", masks=1),
    Case(BadModel, (10,), 32, "mse", statistics=(2, 2), masks=1, zeros=0.5),
    Case(GoodModel, (10,), 32, "mse", statistics=(2, 2), masks=1, zeros=0.5),
    Case(ComplexModel, (10,), 64, "mse", statistics=(6, 6), masks=3, zeros=0.2),
]


class Recipe(looper.Trainer):
    """Logs how much of the outputs is exactly 0, which only a dropout as last layer makes."""

    def compute_loss(self, batch, training):
        x, y = batch
        outputs = self.model(x, training=training)
        return self.loss(y, outputs), {"zeros": tf.reduce_mean(tf.cast(outputs == 0, tf.float32))}


def values(model):
    return {v.path: v.numpy() for v in model.variables}


def changed(before, after, name):
    return sum(not np.array_equal(before[k], after[k]) for k in before if k.split("/")[-1].startswith(name))


def data(case):
    random = np.random.default_rng(0)
    x = random.normal(1, 2, (64, *case.inputs)).astype("float32")
    classes = random.integers(0, 10, 64)
    return x, random.normal(size=(64, case.outputs)).astype("float32") if case.loss == "mse" else classes


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.make.__name__)
def test_trains_in_training_and_is_frozen_in_evaluation(case):
    x, y = data(case)
    trainer = Recipe(model=case.make, optimizer=lambda: keras.optimizers.SGD(0.01), loss=case.loss)
    trainer.predict(x)  # a subclassed model is built by it
    model, start = trainer.model, values(trainer.model)
    losses = {}
    for training in (False, True):
        losses[training] = float(trainer.loss(y, model(x, training=training)))
        for variable in model.variables:
            variable.assign(start[variable.path])

    history = trainer.fit((x, y), steps=1, batch_size=64, shuffle=False, progress=False)
    after = values(model)
    np.testing.assert_allclose(history["loss"], [losses[True]], rtol=1e-4)  # float32, summed in another order
    if case.make is not frozen_base:  # nothing in it knows of the flag
        assert abs(losses[True] - losses[False]) > 1e-3 * losses[True]
    has = sum(name.split("/")[-1].startswith("moving_") for name in start)
    assert (changed(start, after, "moving_"), has) == case.statistics
    assert changed(start, after, "seed_generator_state") == case.masks
    if case.zeros:
        # 64 x outputs draws: the standard deviation is below 0.012
        assert abs(history["zeros"][0] - case.zeros) < 0.05

    evaluations = [trainer.evaluate((x, y), batch_size=20) for _ in range(2)]
    assert evaluations[0] == evaluations[1]
    if case.zeros:
        assert evaluations[0]["zeros"] == 0
    np.testing.assert_allclose(trainer.predict(x, batch_size=20), model(x, training=False), rtol=1e-4, atol=1e-5)
    for name, value in values(model).items():
        np.testing.assert_array_equal(value, after[name])


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.make.__name__)
def test_what_the_audit_says(case):
    """Every layer received True in training and False in evaluation, did what it should, and nothing is found."""
    trainer = Recipe(model=case.make, optimizer=lambda: keras.optimizers.SGD(0.01), loss=case.loss)
    x, y = data(case)
    report = trainer.audit((x[:8], y[:8]))
    assert not report.findings, f"{report}"
    for row in report.rows:
        assert [value for value, _ in row.training] == [True], f"{row}"
        assert [value for value, _ in row.evaluation] == [False], f"{row}"
    moved, kept = (sum(r.in_training == f"{verb} statistics" for r in report.rows) for verb in ("moved", "kept"))
    assert (2 * moved, 2 * (moved + kept)) == case.statistics
    assert sum(row.in_training.startswith("dropped ") for row in report.rows) == case.masks
    assert {row.in_evaluation for row in report.rows} <= {"", "kept statistics", "dropped nothing"}
    own = {row.kind: row.sensitive for row in report.rows if row.sensitive not in (None, "batch statistics", "dropout")}
    assert own == OF_THEIR_OWN.get(case.make, {})


OF_THEIR_OWN = {
    conditional_activation: {"ConditionalActivation": "its own code"},
    training_logic: {"NormalizedInTraining": "its own code"},
}
"""The layers that depend on the flag by their own code, which the audit finds by reading it."""
