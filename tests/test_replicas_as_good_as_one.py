"""With batch normalization and dropout, replicas cannot give the same numbers: they train as well as one device does.

Each replica normalizes by its own half of a batch, and drops other units than one device would.
"""

import keras
import numpy as np
import pytest
import sklearn.datasets

import looper

pytestmark = pytest.mark.xdist_group("as good as one")

L = keras.layers
SEEDS = (0, 1, 2)


def digits():
    x, y = sklearn.datasets.load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(x))
    x, y = (x[order] / 16).astype("float32"), y[order].astype("int32")
    return (x[:1400], y[:1400]), (x[1400:], y[1400:])


def network():
    hidden = [L.Dense(32, use_bias=False), L.BatchNormalization(), L.ReLU(), L.Dropout(0.3)]
    return keras.Sequential([keras.Input((64,)), *hidden, L.Dense(10)])


def losses(strategy, devices, rate=0.1):
    """The loss on data that was held out, for each seed."""
    training, held_out = digits()
    found = []
    for seed in SEEDS:
        trainer = looper.Trainer(
            model=network,
            optimizer=lambda: keras.optimizers.SGD(rate, momentum=0.9),
            loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
            strategy=strategy,
            devices=devices,
            seed=seed,
            execution="graph",
        )
        trainer.fit(training, epochs=4, batch_size=64, progress=False)
        found.append(trainer.evaluate(held_out, batch_size=100)["loss"])
    return np.array(found)


@pytest.fixture(scope="module")
def on_one_and_on_two():
    return losses("one_device", None), losses("mirrored", 2)


def test_replicas_differ_from_one_by_no_more_than_seeds_do(on_one_and_on_two):
    """The mean over the seeds is compared with the range of the seeds.

    Were both drawn from one distribution of deviation s, the difference of two means of three would deviate by
    s * sqrt(2 / 3) = 0.8 s, and the range of three is 1.7 s on average, of the wider of two 2.1 s: 2.6 deviations.
    """
    one, two = on_one_and_on_two
    assert one.max() < 0.3  # it has learned: guessing has a loss of log(10) = 2.3
    assert abs(two.mean() - one.mean()) <= max(np.ptp(one), np.ptp(two))


def test_the_comparison_sees_gradients_of_half_their_size(on_one_and_on_two):
    """As they would be if two replicas divided once too often."""
    one, _ = on_one_and_on_two
    half = losses("one_device", None, rate=0.05)
    assert abs(half.mean() - one.mean()) > max(np.ptp(one), np.ptp(half))
