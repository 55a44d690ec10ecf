"""What the `training` flag does in Keras 3.15, and what looper makes of such models.

Each promise is checked by its effects: dropout draws a mask (zeros), batch normalization moves its statistics, weights
have gradients. Not here, because looper never calls a model like that: `training` as a tensor.
"""

import keras
import numpy as np
import pytest
import tensorflow as tf

import looper
from tests.support import models

L = models.L
X = np.random.default_rng(0).normal(1, 2, (64, 6)).astype("float32")
Y = np.zeros((64, 16), "float32")


class Block(L.Layer):
    """Batch normalization, dropout; `how` calls the two."""

    def __init__(self, how):
        super().__init__()
        self.norm, self.dropout, self.how = L.BatchNormalization(), L.Dropout(0.5), how

    def call(self, x, training=None):
        return self.how(self, x, training)


class Model(keras.Model):
    def __init__(self, how=lambda block, x, training: block.dropout(block.norm(x, training=training))):
        super().__init__()
        self.dense, self.block = L.Dense(16), Block(how)

    def call(self, x, training=None):
        return self.block(self.dense(x), training=training)


class Silent(Model):
    """Its `call` does not take `training`."""

    def call(self, x):
        return self.block(self.dense(x))


def effects(call, model):
    """What a call did: (dropout active, statistics moved)."""
    before = [v.numpy() for v in moving(model)]
    zeros = np.mean(np.asarray(call()) == 0)
    assert zeros == 0 or 0.4 < zeros < 0.6  # of 1,024 at rate 0.5: six standard deviations
    return zeros > 0, any(not np.array_equal(v.numpy(), b) for v, b in zip(moving(model), before, strict=True))


def moving(model):
    return [v for v in model.variables if v.name.startswith("moving_")]


class Recipe(looper.Trainer):
    def build(self):
        super().build()
        self.optimizer, self.loss = keras.optimizers.SGD(0.01), keras.losses.MeanSquaredError()

    def compute_loss(self, batch, training):
        x, y = batch
        outputs = self.model(x, training=training)
        return self.loss(y, outputs), {"zeros": tf.reduce_mean(tf.cast(outputs == 0, tf.float32))}


def under_looper(model):
    """(dropout active, statistics moved) in a training step of looper; evaluation and prediction do neither."""
    recipe = Recipe(model=model)
    trained = effects(lambda: zeros_as_outputs(fit(recipe)), model)
    assert effects(lambda: zeros_as_outputs(recipe.evaluate((X, Y))["zeros"]), model) == (False, False)
    assert effects(lambda: recipe.predict(X), model) == (False, False)
    return trained


def fit(recipe):
    return recipe.fit((X, Y), steps=recipe.step + 1, batch_size=64, progress=False)["zeros"][-1]


def zeros_as_outputs(rate):
    return np.arange(1024) >= round(1024 * rate)


def built(model):
    model(X[:1], training=False)
    return model


def test_without_a_flag_under_a_tape_keras_runs_inference_and_gradients_flow():
    model = built(Model())
    with tf.GradientTape() as tape:
        loss = tf.reduce_mean(model(X) ** 2)
    assert effects(lambda: model(X), model) == (False, False)
    assert norms(tape, loss, model) > 0
    assert under_looper(built(Model())) == (True, True)


def norms(tape, loss, model):
    """The smallest norm of a gradient; a bias under batch normalization has none, so it is left out."""
    kept = [v for v in model.trainable_variables if v is not model.dense.bias]
    return min(float(tf.norm(gradient)) for gradient in tape.gradient(loss, kept))


def test_a_call_without_training_gets_the_flag_in_keras_when_called_and_not_in_fit():
    model = built(Silent())
    assert effects(lambda: model(X, training=True), model) == (True, True)
    model = built(Silent())
    model.compile("sgd", "mse")
    seed = model.block.dropout.seed_generator.state.numpy()
    _, moved = effects(lambda: model.fit(X, Y, batch_size=64, verbose=0).history["loss"], model)
    assert not moved
    np.testing.assert_array_equal(model.block.dropout.seed_generator.state.numpy(), seed)  # no mask was drawn
    assert under_looper(built(Silent())) == (True, True)


def test_training_false_does_not_freeze_the_weights():
    model = built(Model())
    with tf.GradientTape() as tape:
        loss = tf.reduce_mean(model(X, training=False) ** 2)
    assert norms(tape, loss, model) > 0
    recipe = Recipe(model=model)
    recipe.evaluate((X, Y))
    before = [w.numpy() for w in model.weights]
    recipe.predict(X)
    for variable, value in zip(model.weights, before, strict=True):  # looper has no tape there
        np.testing.assert_array_equal(variable.numpy(), value)


def test_a_frozen_base_keeps_its_statistics_and_its_dropout_stays_active():
    model = built(Model())
    model.block.trainable = False
    assert effects(lambda: model(X, training=True), model) == (True, False)
    assert under_looper(model) == (True, False)
    np.testing.assert_array_equal(model.block.norm.gamma.numpy(), np.ones(16))


def test_dropout_scales_in_training_and_is_the_identity_in_inference():
    dropout, ones = L.Dropout(0.75), np.ones((64, 16), "float32")
    np.testing.assert_array_equal(dropout(ones, training=False), ones)
    assert set(np.unique(dropout(ones, training=True))) == {0.0, 4.0}
    model = keras.Sequential([keras.Input((16,)), dropout])
    np.testing.assert_array_equal(looper.Trainer(model=model).predict(ones), ones)


def none_to_norm(block, x, training):
    return block.dropout(block.norm(x, training=None))


def false_to_norm(block, x, training):
    return block.dropout(block.norm(x, training=False))


def true_after_false(block, x, training):
    return block.dropout(block.norm(x, training=False), training=training)


@pytest.mark.parametrize(
    ("how", "expected"),
    [
        (none_to_norm, (False, False)),
        (false_to_norm, (False, False)),
        (true_after_false, (True, False)),
    ],
    ids=["None is not unspecified, and leaks", "False leaks to later siblings", "a flag that is passed on"],
)
def test_what_a_layer_passes_by_itself_holds_under_looper_too(how, expected):
    """looper gives True to the model; what the model's own code does with it stays as in Keras."""
    model = built(Model(how))
    assert effects(lambda: model(X, training=True), model) == expected
    assert under_looper(built(Model(how))) == expected


class TrueByDefault(L.Layer):
    """A default of True in the signature."""

    def call(self, x, training=True):
        return x


def test_a_default_of_true_does_not_make_evaluation_train():
    """Keras takes the outer False before the signature's default, so looper's evaluation stays frozen."""

    class WithDefault(Model):
        def __init__(self):
            super().__init__()
            self.first = TrueByDefault()

        def call(self, x, training=None):
            return self.block(self.first(self.dense(x)))

    model = built(WithDefault())
    assert effects(lambda: model(X), model) == (True, True)  # it leaks to the later sibling if there is no outer flag
    assert effects(lambda: model(X, training=False), model) == (False, False)
    assert under_looper(built(WithDefault())) == (True, True)


def functional(trainable):
    base = keras.Sequential([keras.Input((6,)), L.Dense(16), L.BatchNormalization(), L.Dropout(0.5)])
    base.trainable = trainable
    inputs = keras.Input((6,))
    outputs = base(inputs, training=False)
    return keras.Model(inputs, outputs + 0 * L.Dense(16)(inputs))


@pytest.mark.parametrize(("trainable", "moved"), [(True, True), (False, False)])
def test_the_outer_true_overrides_a_functional_models_own_false(trainable, moved):
    """As Keras 3.15 does it; only `trainable = False` keeps the statistics."""
    model = functional(trainable)
    assert effects(lambda: model(X, training=True), model) == (True, moved)
    assert under_looper(functional(trainable)) == (True, moved)


def test_toggling_trainable_after_the_trace_is_ignored_by_a_compiled_function():
    model = built(Model())
    step = tf.function(lambda x: model(x, training=True))
    assert effects(lambda: step(X), model) == (True, True)
    model.block.trainable = False
    assert effects(lambda: step(X), model) == (True, True)
    fresh = tf.function(lambda x: model(x, training=True))
    assert effects(lambda: fresh(X), model) == (True, False)
