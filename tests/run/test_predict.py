"""`predict` and `predict_batches`: one row per example, in order, equal to Keras' `predict`."""

import itertools

import keras
import numpy as np
import pytest
import tensorflow as tf

import looper
from tests.support import models

pytestmark = pytest.mark.xdist_group("predict")

STRATEGIES = [{}, {"strategy": "mirrored", "devices": 2}]
X, Y = models.two_inputs_data(37)  # batches of 9 leave a last one of 1, fewer than two replicas
W = np.ones(37, "float32")
DATA = {
    "x": X,
    "x, y": (X, Y),
    "x, y, weight": (X, Y, W),
    "dataset of x": tf.data.Dataset.from_tensor_slices(X).batch(9),
    "dataset of x, y": tf.data.Dataset.from_tensor_slices((X, Y)).batch(9),
    "dataset of x, y, weight": tf.data.Dataset.from_tensor_slices((X, Y, W)).batch(9),
    "dataset of unknown length": tf.data.Dataset.from_tensor_slices((X,)).batch(9).filter(lambda x: True),
}


def batch_size(data):
    return None if isinstance(data, tf.data.Dataset) else 9


@pytest.fixture(scope="module", params=STRATEGIES, ids=["one", "two"])
def trainer(request):
    return looper.Trainer(model=models.two_inputs, **request.param)


@pytest.fixture(scope="module")
def expected(trainer):
    twin = models.two_inputs()
    twin.set_weights([w.numpy() for w in trainer.model.weights])
    return twin.predict(X, batch_size=9, verbose=0)


@pytest.mark.parametrize("name", DATA)
def test_equals_keras_predict(trainer, expected, name):
    data = DATA[name]
    outputs = trainer.predict(data, batch_size=batch_size(data))
    np.testing.assert_allclose(outputs, expected, atol=1e-6)  # float32, in slices on two replicas
    parts = list(trainer.predict_batches(data, batch_size=batch_size(data)))
    assert [len(part) for part in parts] == [9, 9, 9, 9, 1]
    np.testing.assert_array_equal(np.concatenate(parts), outputs)


def test_steps_limit_the_batches(trainer, expected):
    endless = tf.data.Dataset.from_tensor_slices(X).batch(9).repeat()
    np.testing.assert_allclose(trainer.predict(endless, steps=4), expected[:36], atol=1e-6)
    np.testing.assert_allclose(trainer.predict(X, batch_size=9, steps=2), expected[:18], atol=1e-6)
    assert trainer.predict(X, batch_size=9, steps=99).shape == expected.shape


def test_wrong_input_is_said_before_the_first_batch(trainer):
    endless = tf.data.Dataset.from_tensor_slices(X).batch(9).repeat()
    with pytest.raises(looper.InputError, match=r"the data never ends.*steps="):
        trainer.predict_batches(endless)
    with pytest.raises(looper.InputError, match="steps=0: expected a positive whole number"):
        trainer.predict_batches(X, steps=0)
    empty = tf.data.Dataset.from_tensor_slices(X).batch(9).filter(lambda x: False)
    with pytest.raises(looper.InputError, match="the data is empty"):
        trainer.predict(empty)


def test_a_batch_is_computed_when_it_is_asked_for(trainer):
    read = []

    def note(x):
        read.append(len(x["a"]))
        return x["a"]

    def batch(x):
        x["a"].set_shape([None, 4])
        return x

    dataset = tf.data.Dataset.from_tensor_slices(X).batch(9).repeat()
    dataset = dataset.map(lambda x: batch(x | {"a": tf.py_function(lambda a: note({"a": a}), [x["a"]], tf.float32)}))
    outputs = list(itertools.islice(trainer.predict_batches(dataset, steps=1000), 3))
    assert len(outputs) == 3
    assert len(read) < 20  # three, and what the pipeline reads ahead


def test_statistics_are_the_replicas_own_again_after_an_early_stop():
    x, y = models.data(examples=32)
    trainer = looper.Trainer(
        model=models.dense, optimizer=lambda: keras.optimizers.SGD(0.1), loss=models.cross_entropy, **STRATEGIES[1]
    )
    trainer.fit((x, y), epochs=1, batch_size=8, progress=False)

    def means():
        mean = trainer.model.layers[1].moving_mean.value
        return [part.numpy() for part in trainer.strategy.experimental_local_results(mean)]

    before = means()
    assert not np.array_equal(*before)
    batches = trainer.predict_batches(x, batch_size=8)
    np.testing.assert_array_equal(means(), before)
    next(batches)
    np.testing.assert_array_equal(means(), [np.mean(before, 0, dtype="float32")] * 2)
    batches.close()
    np.testing.assert_array_equal(means(), before)
    list(trainer.predict_batches(x, batch_size=8))
    np.testing.assert_array_equal(means(), before)


def test_statistics_are_the_replicas_own_again_where_a_layer_has_two_names():
    """As `self.encoder` and a part of `self.model`: its statistics are averaged once, and put back."""
    x, y = models.data(examples=32)
    trainer = looper.Trainer(
        model=models.dense, optimizer=lambda: keras.optimizers.SGD(0.1), loss=models.cross_entropy, **STRATEGIES[1]
    )
    trainer.normalization = trainer.model.layers[1]
    trainer.fit((x, y), epochs=1, batch_size=8, progress=False)
    mean = trainer.strategy.experimental_local_results(trainer.normalization.moving_mean.value)
    before = [part.numpy() for part in mean]
    assert not np.array_equal(*before)
    trainer.evaluate((x, y), batch_size=8)
    np.testing.assert_array_equal([part.numpy() for part in mean], before)
