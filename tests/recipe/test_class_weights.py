"""Weights of classes and of examples, in the forms that people have them."""

import keras
import numpy as np
import pytest

import looper
from tests.support import models

L = models.L
REPLICAS = {"strategy": "mirrored", "devices": 2}
QUIET = {"progress": False, "shuffle": False}
WEIGHTS = {0: 1.0, 1: 5.0, 2: 0.5}


def cross_entropy(**options):
    return keras.losses.SparseCategoricalCrossentropy(from_logits=True, **options)


def segmentation():
    return keras.Sequential(
        [keras.Input((4, 5, 1)), L.Conv2D(3, 1, kernel_initializer="ones", bias_initializer="ones")]
    )


class Subclassed(keras.Model):
    def __init__(self):
        super().__init__()
        self.inner = segmentation()

    def call(self, x, training=False):
        return self.inner(x, training=training)


def logged(y, model=segmentation, loss=cross_entropy, weights=WEIGHTS, examples=None, **options):
    x = np.sin(np.arange(len(y) * 20, dtype="float32")).reshape(len(y), 4, 5, 1)
    trainer = looper.Trainer(model=model, loss=loss, optimizer=lambda: keras.optimizers.SGD(0.0), **options)
    data = (x, y) if examples is None else (x, y, examples)
    return trainer.fit(data, epochs=1, batch_size=len(y) // 2, class_weight=weights, **QUIET)["loss"][-1]


@pytest.mark.parametrize(
    ("model", "options"),
    [(segmentation, {}), (Subclassed, {"execution": "eager"}), (Subclassed, REPLICAS)],
    ids=["functional", "subclassed, eager", "subclassed, replicas"],
)
def test_integer_masks_are_class_numbers(model, options):
    y = np.random.default_rng(0).integers(0, 3, (8, 4, 5))
    examples = np.linspace(0.5, 2, 8)
    expected = logged(y[..., None])
    assert logged(y, model, **options) == pytest.approx(expected, rel=1e-6)  # sums in another order
    one_hot = logged(np.eye(3)[y], loss=lambda: keras.losses.CategoricalCrossentropy(from_logits=True))
    assert one_hot == pytest.approx(expected, rel=1e-6)
    by_hand = cross_entropy(reduction=None)
    outputs = segmentation()(np.sin(np.arange(160, dtype="float32")).reshape(8, 4, 5, 1))
    weights = np.vectorize(WEIGHTS.get)(y) * examples[:, None, None]
    mean = float(np.mean(np.asarray(by_hand(y, outputs)) * weights))
    assert logged(y, model, examples=examples, **options) == pytest.approx(mean, rel=1e-5)  # float32


@pytest.mark.parametrize("kind", [np.int64, np.uint8, np.int32])
def test_numbers_of_numpy(kind, tmp_path):
    y = np.arange(8 * 20).reshape(8, 4, 5) % 3
    weights = {kind(label): np.float32(weight) for label, weight in WEIGHTS.items()}
    assert logged(y, weights=weights, workdir=tmp_path) == logged(y, workdir=tmp_path / "other")


@pytest.mark.parametrize(
    ("reduction", "options"),
    [
        ("sum_over_batch_size", {}),
        ("mean_with_sample_weight", {"execution": "xla_step"}),
        ("mean_with_sample_weight", {"execution": "eager"}),
        ("mean_with_sample_weight", REPLICAS),
    ],
    ids=str,
)
def test_examples_without_weight_are_logged_as_keras_does(options, reduction):
    x, y = models.data(examples=24)
    weights = np.ones(24, "float32")
    weights[:8] = 0.0

    def model():
        made = models.dense(norm=False)
        made.set_weights([np.full(w.shape, 0.1 * (i + 1)) for i, w in enumerate(made.get_weights())])
        return made

    theirs = []

    class Losses(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs):
            theirs.append(logs["loss"] * (batch + 1) - sum(theirs))  # Keras logs means over the epoch so far

    compiled = model()
    compiled.compile(keras.optimizers.SGD(0.01), cross_entropy(reduction=reduction))
    compiled.fit(x, y, sample_weight=weights, batch_size=8, shuffle=False, verbose=0, callbacks=[Losses()])
    trainer = looper.Trainer(
        model=model,
        optimizer=lambda: keras.optimizers.SGD(0.01),
        loss=lambda: cross_entropy(reduction=reduction),
        **{"execution": "graph"} | options,
    )
    history = trainer.fit((x, y, weights), epochs=1, batch_size=8, log_every=looper.Every(steps=1), **QUIET)
    np.testing.assert_allclose(history["loss"], theirs, rtol=1e-5, atol=1e-6)  # Keras' means are of float32
    assert history["loss"][0] == 0.0
