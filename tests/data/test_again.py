"""Data that is given again, written to, grown, or put in another structure."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import looper
from tests.support import dense, line, models


def test_a_recipes_own_data_goes_on_in_another_fit():
    class Own(looper.Trainer):
        def build(self):
            self.model, self.optimizer = models.dense(), keras.optimizers.SGD(0.05)
            self.loss = models.cross_entropy()

        def train_data(self):
            return dense.X.copy(), dense.Y.copy()

    twice, once = Own(), Own()
    for steps in (4, 9):
        twice.fit(steps=steps, batch_size=8, progress=False)
    once.fit(steps=9, batch_size=8, progress=False)
    dense.assert_equal(dense.weights(twice), dense.weights(once))


def test_arrays_that_were_written_to_are_read_again():
    x, y = line.X.copy(), line.X.copy()
    mine = line.trainer()
    mine.fit((x, y), epochs=20, batch_size=16, progress=False)
    y[:] = 5
    mine.fit((x, y), epochs=80, batch_size=16, progress=False)
    assert line.weight(mine) == pytest.approx(5, abs=1e-3)
    assert mine.evaluate((x, y))["loss"] == pytest.approx(0, abs=1e-6)


def test_the_same_arrays_in_another_structure_are_other_data():
    class Sums(looper.Trainer):
        def predict_step(self, batch):
            return tf.add_n(
                [factor * batch[name] for name, factor in (("p", 1), ("q", 10), ("u", 100)) if name in batch]
            )

    a, b = np.ones((2, 1), "float32"), 2 * np.ones((2, 1), "float32")
    mine = Sums()
    assert mine.predict({"p": a, "q": b})[0] == 21
    assert mine.predict({"u": a, "q": b})[0] == 120


def test_a_list_that_has_grown_is_read_to_its_end():
    examples = [(np.ones(1, "float32"), np.ones(1, "float32"))] * 4
    mine = line.trainer()
    assert mine.evaluate(examples)["examples"] == 4
    examples.append(examples[0])
    assert mine.evaluate(examples)["examples"] == 5
