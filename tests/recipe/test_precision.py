"""The dtype policy is the trainer's own: Keras' global one is the same before and after."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import looper
from tests.support import models

POLICIES = {
    "float32": ("float32", "float32"),
    "float64": ("float64", "float64"),
    "mixed_bfloat16": ("bfloat16", "float32"),
    "mixed_float16": ("float16", "float32"),
}


# a global policy that is another one than the trainer's
@pytest.mark.parametrize(
    ("precision", "before"),
    [
        ("float32", "mixed_bfloat16"),
        ("float64", "mixed_bfloat16"),
        ("mixed_bfloat16", "float32"),
        ("mixed_float16", "float32"),
    ],
)
def test_the_global_policy_is_the_same_before_and_after(precision, before):
    keras.config.set_dtype_policy(before)
    seen = []

    class Recipe(looper.Trainer):
        def build(self):
            self.model = models.dense()
            self.optimizer = keras.optimizers.SGD(0.1)
            self.loss = models.cross_entropy()

        def compute_loss(self, batch, training):
            seen.append((keras.config.dtype_policy().name, keras.config.floatx()))
            return super().compute_loss(batch, training)

    try:
        recipe = Recipe(precision=precision, execution="graph")
        assert (keras.config.dtype_policy().name, keras.config.floatx()) == (before, "float32")
        data = models.data()
        history = recipe.fit(data, epochs=3, batch_size=10, eval_data=data, progress=False)
        recipe.predict(data[0])
        assert (keras.config.dtype_policy().name, keras.config.floatx()) == (before, "float32")
    finally:
        keras.config.set_dtype_policy("float32")
    compute, variables = POLICIES[precision]
    assert set(seen) == {(precision, "float64" if precision == "float64" else "float32")}
    assert recipe.model.layers[0].compute_dtype == compute
    assert recipe.model.layers[0].variable_dtype == variables
    assert history["loss"][-1] < history["loss"][0]


def test_precisions_agree():
    """The losses of the first epoch differ by no more than the formats do: bfloat16 has 8 bits, float16 has 11."""
    data = models.data(examples=64)
    weights = models.dense(norm=False).get_weights()  # float64 draws other initial weights

    def losses(precision):
        trainer = looper.Trainer(
            model=lambda: models.dense(norm=False),
            optimizer=lambda: keras.optimizers.SGD(0.1),
            loss=models.cross_entropy,
            precision=precision,
            execution="graph",
        )
        trainer.model.set_weights(weights)
        every_step = looper.Every(steps=1)
        return trainer.fit(data, epochs=1, batch_size=8, log_every=every_step, progress=False)["loss"]

    exact = losses("float64")
    for precision, tolerance in {"float32": 1e-6, "mixed_float16": 2**-9, "mixed_bfloat16": 2**-6}.items():
        np.testing.assert_allclose(losses(precision), exact, rtol=tolerance)


def test_float16_small_gradients_survive():
    """Gradients below float16's smallest number reach the weights, because the loss is scaled."""

    class Tiny(looper.Trainer):
        def build(self):
            self.model = keras.Sequential([keras.Input((4,)), models.L.Dense(1, use_bias=False)])
            self.optimizer = keras.optimizers.SGD(1.0)

        def compute_loss(self, batch, training):
            return self.model(batch, training=training) * tf.cast(1e-7, tf.float16)

    tiny = Tiny(precision="mixed_float16")
    before = tiny.model.weights[0].numpy()
    tiny.fit(np.ones((8, 4), "float32"), steps=1, batch_size=8, progress=False)
    # 1e-7 in float16 is 1.19e-7, which itself is subnormal: 2**-23
    np.testing.assert_allclose(before - tiny.model.weights[0].numpy(), 2.0**-23, rtol=0.3)


@pytest.mark.parametrize("strategy", ["one_device", "mirrored"])
def test_clipping_is_of_unscaled_gradients(strategy):
    """The gradient is [3, 4]; times the loss scale of 2**15 it would be clipped 2**15 times as much."""

    class Slope(looper.Trainer):
        def build(self):
            self.weights = tf.Variable([0.0, 0.0])
            self.optimizer = keras.optimizers.SGD(1.0)

        def compute_loss(self, batch, training):
            return tf.reduce_sum(batch * self.weights, -1)

    for clip_norm, update in ((10.0, [3, 4]), (1.0, [0.6, 0.8])):
        devices = 2 if strategy == "mirrored" else None
        slope = Slope(strategy=strategy, devices=devices, precision="mixed_float16", clip_norm=clip_norm)
        x = np.array([[6, 0], [0, 8]], "float32")
        history = slope.fit(x, steps=1, batch_size=2, shuffle=False, progress=False)
        np.testing.assert_allclose(-slope.weights.numpy(), update, rtol=1e-6)
        np.testing.assert_allclose(history["gradient_norm"], [5.0], rtol=1e-6)


def test_a_loss_scale_factor_is_undone_in_float64():
    """In float32 a third would be rounded at 3e-8."""

    def weights(factor):
        trainer = looper.Trainer(
            model=lambda: models.dense(norm=False),
            optimizer=lambda: keras.optimizers.SGD(0.1, loss_scale_factor=factor),
            loss=models.cross_entropy,
            precision="float64",
        )
        trainer.fit(models.data(), steps=3, batch_size=8, progress=False)
        return trainer.model.get_weights()

    for scaled, plain in zip(weights(3.0), weights(None), strict=True):
        np.testing.assert_allclose(scaled, plain, rtol=0, atol=1e-12)  # float64 rounds at 1e-16


def test_losses_in_float16_are_added_up_in_float32():
    """64 losses of 3,000 are 192,000 together, and float16 ends at 65,504."""

    class Large(looper.Trainer):
        def build(self):
            self.weight, self.optimizer = tf.Variable(1.0), keras.optimizers.SGD(0.0)

        def compute_loss(self, batch, training):
            return tf.cast(self.weight * batch, tf.float16)

    x = np.full(64, 3000, "float32")
    assert Large().fit(x, epochs=1, batch_size=64, progress=False)["loss"] == [3000.0]
    assert Large().evaluate(x, batch_size=64)["loss"] == 3000.0
