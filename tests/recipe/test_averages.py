"""Averages of weights: looper's own and those of Keras' optimizers."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import looper
from looper.recipe.averages import WeightAverage
from tests.support import line, models


def test_restored_averages_are_those_of_their_own_weights(tmp_path):
    """Whatever the order in which they were made, and in a trainer that has done nothing yet."""

    def make():
        model = keras.Sequential(
            [keras.Input((1,)), models.L.Dense(1, use_bias=False), models.L.Dense(1, use_bias=False)]
        )
        return line.trainer(model=model, ema=0.9)

    mine = make()
    mine.model.layers[0].trainable = False
    mine.fit((line.X, 3 * line.X), epochs=1, batch_size=4, progress=False)
    mine.model.layers[0].trainable = True
    with pytest.warns(UserWarning, match="variables are trainable now"):
        mine.fit((line.X, 3 * line.X), epochs=3, batch_size=4, progress=False)
    mine.save(tmp_path / "saved")
    other = make()
    other.restore(tmp_path / "saved")
    np.testing.assert_array_equal(other.predict(line.X), mine.predict(line.X))


def test_averages_of_float64_weights_are_of_float64():
    """A decay that float32 rounds would be off by 1e-8."""
    weight, averages = tf.Variable(0.0, dtype=tf.float64), WeightAverage(0.999)
    averages.build([weight])
    for value in (1.0, 2.0):
        weight.assign(value)
        averages.update([weight], tf.distribute.get_strategy())
    assert averages.averages[id(weight)].numpy() == pytest.approx(0.999 * 1.0 + 0.001 * 2.0, abs=1e-15)


def test_averages_of_keras_that_never_began_are_not_put_in():
    spoiled = np.full_like(line.X, np.nan)
    mine = line.trainer(optimizer=lambda: keras.optimizers.SGD(0.1, use_ema=True))
    mine.fit((spoiled, line.X), epochs=1, callbacks=[looper.callbacks.NanGuard("skip")], progress=False)
    assert line.weight(mine) == 1


@pytest.mark.parametrize("replicas", [{}, {"strategy": "mirrored", "devices": 2}])
def test_gradients_that_are_only_accumulated_do_not_move_the_averages(replicas):
    def run(batch_size, **options):
        mine = line.trainer(optimizer=lambda: keras.optimizers.SGD(0.1, **options), ema=0.7, **replicas)
        mine.fit((line.X, 3 * line.X), epochs=3, batch_size=batch_size, progress=False)
        return mine.predict(line.X)[0, 0]

    assert run(4, gradient_accumulation_steps=4) == pytest.approx(run(16), rel=1e-6)  # float32 sums in another order


def test_overwritten_weights_are_constrained_on_replicas_too():
    def run(**replicas):
        mine = line.trainer(
            model=lambda: line.model(kernel_constraint=keras.constraints.MaxNorm(1.2)),
            optimizer=lambda: keras.optimizers.SGD(0.4, use_ema=True, ema_momentum=0.5, ema_overwrite_frequency=2),
            **replicas,
        )
        mine.fit((line.X, 9 * line.X), epochs=2, batch_size=16, progress=False)
        return line.weight(mine)

    assert run(strategy="mirrored", devices=2) == pytest.approx(run(), rel=1e-6)
