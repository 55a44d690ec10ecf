"""The mistakes of looper/base/README.md: each gets the message that stands there, on one line."""

import re
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf

import looper
from tests.support import models

L = models.L
X, Y = models.data()
PAGE = Path(__file__).parents[2] / "looper" / "base" / "README.md"


def trainer(**changes):
    parts = {"model": models.dense, "optimizer": "sgd", "loss": models.cross_entropy, "metrics": ["accuracy"]}
    return looper.Trainer(**{**parts, **changes})


def fit(mine, data=(X, Y), **options):
    return mine.fit(data, **{"epochs": 1, "progress": False, **options})


def dataset(*arrays):
    return tf.data.Dataset.from_tensor_slices(arrays or (X, Y))


class Own(looper.Trainer):
    def build(self):
        self.model = models.dense(norm=False)
        self.optimizer = keras.optimizers.SGD(0.1)
        self.loss = models.cross_entropy()


class BranchesOnATensor(Own):
    def compute_loss(self, batch, training):
        loss = tf.reduce_mean(self.model(batch[0], training=training) ** 2)
        return loss if loss > 1 else 2 * loss


class ReturnsNothing(Own):
    def train_step(self, batch):
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean(self.model(batch[0], training=True) ** 2)
        self.minimize(loss, tape)


class HasAnUnusedLayer(Own):
    def build(self):
        super().build()
        self.head = L.Dense(2, name="head")
        self.head.build((None, 6))


def two_outputs():
    x = keras.Input((6,))
    return keras.Model(x, {"kind": L.Dense(3)(x), "size": L.Dense(2)(x)})


def another_configuration(folder):
    fit(trainer(workdir=folder))
    fit(trainer(workdir=folder, optimizer=lambda: keras.optimizers.SGD(0.5)))


def early_stopping(monitor, **options):
    return fit(trainer(), callbacks=[looper.callbacks.EarlyStopping(monitor)], **options)


def nan_data():
    x = X.copy()
    x[30] = np.nan
    linear = lambda: keras.Sequential([keras.Input((6,)), L.Dense(3)])  # noqa: E731
    fit(trainer(model=linear), dataset(x, Y).batch(10))


def one_hot():
    return np.eye(3, dtype="float32")[Y]


MISTAKES = {
    "`fit(x, y)`, as in Keras": lambda _: trainer().fit(X, Y, epochs=1),
    "a misspelt option": lambda _: fit(trainer(), epoch=3),
    "`validation_data=`, as in Keras": lambda _: fit(trainer(), validation_data=(X, Y)),
    "neither `epochs` nor `steps`": lambda _: trainer().fit((X, Y)),
    "a dataset that is not batched": lambda _: fit(trainer(), dataset()),
    "`batch_size` for a dataset": lambda _: fit(trainer(), dataset().batch(10), batch_size=10),
    "a dataset without `repeat()`, trained for `steps`": lambda _: fit(
        trainer(), dataset().batch(10), epochs=None, steps=20
    ),
    "a dataset with `repeat()`, trained for `epochs`": lambda _: fit(trainer(), dataset().repeat().batch(10)),
    "arrays of different lengths": lambda _: fit(trainer(), (X, Y[:40])),
    "class numbers for a loss that wants one-hot targets": lambda _: fit(
        trainer(loss="categorical_crossentropy", metrics=[]), batch_size=10
    ),
    "data of another shape than the model's input": lambda _: fit(trainer(), (X[:, :5], Y), batch_size=10),
    "a loss for an output that does not exist": lambda _: fit(
        trainer(model=two_outputs, loss={"kinds": "mse"}, metrics=[]), (X, {"kind": one_hot()})
    ),
    "Keras' name for an evaluation's loss": lambda _: early_stopping("val_loss", eval_data=(X, Y)),
    "a monitor without evaluation data": lambda _: early_stopping("eval/loss"),
    "a Python `if` on a tensor": lambda _: fit(BranchesOnATensor()),
    "a `train_step` that returns nothing": lambda _: fit(ReturnsNothing()),
    "a trainable layer that the loss does not use": lambda _: fit(HasAnUnusedLayer(), batch_size=10),
    "a model made outside the strategy": lambda _: trainer(model=models.dense(), strategy="mirrored", devices=2),
    "a workdir with another run in it": another_configuration,
    "NaN in the data": lambda _: nan_data(),
}


def rows() -> dict[str, str]:
    found = re.findall(r"^\| (.+?) \| (.+?) \|$", PAGE.read_text(), re.MULTILINE)
    return {mistake: message for mistake, message in found if not set(mistake) <= set("- ") and mistake != "mistake"}


def test_the_table_has_these_rows():
    assert list(rows()) == list(MISTAKES)
    assert len(MISTAKES) == 20


@pytest.mark.parametrize("mistake", MISTAKES)
def test_message(mistake, tmp_path):
    with pytest.raises((looper.InputError, looper.NonFiniteLossError)) as caught:
        MISTAKES[mistake](tmp_path)
    assert "\n" not in str(caught.value)
    written = rows()[mistake].strip("`").replace("\\|", "|")
    parts = [re.escape(part) for part in written.replace("runs/x", "…").split("…")]  # "…": what differs from run to run
    assert re.fullmatch(".*".join(parts), str(caught.value)), str(caught.value)
