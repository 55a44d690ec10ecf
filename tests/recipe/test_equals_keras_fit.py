"""The same weights, seeds and data order give the same losses, metrics and weights as Keras' `fit`."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import looper
from tests.support import models

CASES = {
    "dense_bn": (lambda: models.dense(), models.data),
    "cnn_bn_dropout": (lambda: models.convolutional(), lambda: models.data((6, 6, 1))),
    "dict_inputs_dropout": (lambda: models.two_inputs(), models.two_inputs_data),
}
EPOCHS, BATCH = 3, 16  # 50 examples: the last batch has 2


def optimizer():
    schedule = keras.optimizers.schedules.CosineDecay(0.05, 10)
    return keras.optimizers.SGD(schedule, momentum=0.9, nesterov=True)


class StepLosses(keras.callbacks.Callback):
    """Keras reports running means; with the example counts they give back each step's loss."""

    def __init__(self, examples):
        self.examples, self.losses = examples, []

    def on_epoch_begin(self, epoch, logs=None):
        self.seen, self.total = 0, 0.0

    def on_train_batch_end(self, batch, logs=None):
        count = min(BATCH, self.examples - batch * BATCH)
        self.seen += count
        self.losses.append((logs["loss"] * self.seen - self.total) / count)
        self.total = logs["loss"] * self.seen


@pytest.mark.parametrize("case", CASES)
def test_fit(case):
    make_model, make_data = CASES[case]
    x, y = make_data()
    batches = tf.data.Dataset.from_tensor_slices((x, y)).batch(BATCH)

    keras.utils.set_random_seed(3)
    theirs = make_model()
    theirs.compile(optimizer(), models.cross_entropy(), metrics=[keras.metrics.SparseCategoricalAccuracy("accuracy")])
    step_losses = StepLosses(len(y))
    their_history = theirs.fit(batches, epochs=EPOCHS, verbose=0, callbacks=[step_losses], validation_data=batches)

    trainer = looper.Trainer(
        model=make_model,
        optimizer=optimizer,
        loss=models.cross_entropy,
        metrics=lambda: [keras.metrics.SparseCategoricalAccuracy("accuracy")],
        seed=3,
    )
    every_step = looper.Every(steps=1)
    rows = trainer.fit(batches, epochs=EPOCHS, log_every=every_step, eval_data=batches, progress=False).rows

    losses = [row["loss"] for row in rows if "loss" in row]
    # 1e-5: float32, and Keras' running mean loses a digit when it is taken apart
    np.testing.assert_allclose(losses, step_losses.losses, rtol=1e-5, atol=1e-5)
    for mine, other in zip(trainer.model.variables, theirs.variables, strict=True):
        if "seed" in other.name:
            assert (mine.numpy() == other.numpy()).all()
        else:
            assert models.norm_difference(mine.numpy(), other.numpy()) < 1e-5, other.path
    for name in ("loss", "accuracy"):
        mine = [row[f"eval/{name}"] for row in rows if f"eval/{name}" in row]
        np.testing.assert_allclose(mine, their_history.history[f"val_{name}"], rtol=1e-5)


def test_window_means_are_keras_epoch_means():
    x, y = models.data()
    batches = tf.data.Dataset.from_tensor_slices((x, y)).batch(BATCH)
    keras.utils.set_random_seed(0)
    theirs = models.dense()
    theirs.compile("sgd", models.cross_entropy(), metrics=[keras.metrics.SparseCategoricalAccuracy("accuracy")])
    expected = theirs.fit(batches, epochs=2, verbose=0).history
    trainer = looper.Trainer(
        model=models.dense,
        optimizer=lambda: keras.optimizers.SGD(0.01),
        loss=models.cross_entropy(),
        metrics=[keras.metrics.SparseCategoricalAccuracy("accuracy")],
    )
    history = trainer.fit(batches, epochs=2, progress=False)
    for name in ("loss", "accuracy"):
        np.testing.assert_allclose(history[name], expected[name], rtol=1e-6)


@pytest.mark.parametrize("weighting", ["sum", "sample_weight", "mean_with_sample_weight", "regularized", "masked"])
def test_reductions_and_weights(weighting):
    """What Keras' numbers mean: the divisor of each reduction, weights, regularizers and masks."""
    x, y = models.data(examples=32)
    weights = np.linspace(0.1, 3, 32).astype("float32")
    reduction = weighting if weighting in ("sum", "mean_with_sample_weight") else "sum_over_batch_size"
    batch = (x, y) if weighting in ("sum", "regularized", "masked") else (x, y, weights)

    def make_model():
        if weighting == "masked":
            layers = [models.L.Embedding(5, 4, mask_zero=True), models.L.Dense(3)]
            return keras.Sequential([keras.Input((6,), dtype="int32"), *layers])
        regularizer = "l2" if weighting == "regularized" else None
        return keras.Sequential([keras.Input((6,)), models.L.Dense(3, kernel_regularizer=regularizer)])

    if weighting == "masked":
        tokens = np.random.default_rng(0).integers(0, 5, (32, 6)).astype("int32")
        batch = (tokens, np.random.default_rng(1).integers(0, 3, (32, 6)).astype("int32"))

    def make_loss():
        return keras.losses.SparseCategoricalCrossentropy(from_logits=True, reduction=reduction)

    keras.utils.set_random_seed(0)
    theirs = make_model()
    theirs.compile(keras.optimizers.SGD(0.1), make_loss())
    expected = theirs.fit(*batch[:2], sample_weight=(*batch, None)[2], batch_size=8, epochs=2, shuffle=False, verbose=0)
    trainer = looper.Trainer(model=make_model, optimizer=lambda: keras.optimizers.SGD(0.1), loss=make_loss)
    history = trainer.fit(batch, epochs=2, batch_size=8, shuffle=False, progress=False)
    for mine, other in zip(trainer.model.weights, theirs.weights, strict=True):
        assert models.norm_difference(mine.numpy(), other.numpy()) < 1e-5
    if weighting not in ("masked", "mean_with_sample_weight"):
        # there Keras weighs the batches' means by their examples; ours is the mean over valid (weighted) elements
        np.testing.assert_allclose(history["loss"], expected.history["loss"], rtol=1e-5)
