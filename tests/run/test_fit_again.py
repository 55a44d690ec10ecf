"""A second fit with other parts, and after weights were set."""

import keras
import numpy as np

from tests.support import dense, line


def test_parts_that_are_set_anew_are_used():
    mine = dense.trainer()
    dense.fit(mine, epochs=1)
    before = dense.weights(mine)[0]
    mine.optimizer = keras.optimizers.SGD(0.0)
    mine.metrics = [keras.metrics.SparseCategoricalAccuracy("accuracy")]
    history = dense.fit(mine, epochs=2)
    np.testing.assert_array_equal(dense.weights(mine)[0], before)
    assert history["learning_rate"][-1] == 0.0
    assert "accuracy" in mine.evaluate((dense.X, dense.Y))


def test_weights_that_are_set_before_training_are_evaluated():
    mine = line.trainer(ema=0.9)
    assert mine.evaluate((line.X, 5 * line.X))["loss"] == 16
    mine.model.set_weights([np.array([[5.0]])])
    assert mine.evaluate((line.X, 5 * line.X))["loss"] == 0
