"""Losses: arithmetic on the default loss, class weights."""

import keras
import numpy as np

import looper
from tests.support import dense, line, models


def test_arithmetic_on_the_default_loss():
    class Half(looper.Trainer):
        def build(self):
            self.model, self.optimizer = models.dense(norm=False), keras.optimizers.SGD(0.05)
            self.loss = models.cross_entropy()

        def compute_loss(self, batch, training):
            return (super().compute_loss(batch, training) - 1.0) / 2

    half, whole = Half(), dense.trainer(model=lambda: models.dense(norm=False))
    assert np.isclose(half.evaluate((dense.X, dense.Y))["loss"], (whole.evaluate((dense.X, dense.Y))["loss"] - 1) / 2)


def test_class_weights_of_sequences_with_a_weight_per_example():
    x, y = np.ones((8, 3, 1), "float32"), np.zeros((8, 3, 1), "int32")
    each = np.linspace(0, 2, 8).astype("float32")

    def run(data, **options):
        mine = looper.Trainer(
            model=lambda: keras.Sequential([keras.Input((3, 1)), models.L.Dense(2, "softmax")]),
            optimizer=lambda: keras.optimizers.SGD(0.1),
            loss="sparse_categorical_crossentropy",
        )
        mine.fit(data, epochs=1, progress=False, **options)
        return mine.predict(x)

    both = run((x, y, each), class_weight={0: 2.0})
    np.testing.assert_allclose(both, run((x, y, np.repeat(2 * each[:, None], 3, 1))), rtol=1e-6)


def test_a_loss_can_be_subtracted():
    class Less(looper.Trainer):
        def build(self):
            self.model, self.optimizer, self.loss = line.model(), keras.optimizers.SGD(0.1), "mse"

        def compute_loss(self, batch, training):
            return 3.0 - -super().compute_loss(batch, training)

    assert Less().evaluate((line.X, 3 * line.X))["loss"] == 7
