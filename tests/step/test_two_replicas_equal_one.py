"""Two logical replicas, and any number of micro-batches, equal one device: the mathematics of a step.

tests/step/test_one_equals_many.py compares recipes with a mean as their loss, each optimizer's clipping and float32;
here is what it has not: the other reductions, clipping by the trainer, and numbers that are known beforehand.
SGD with momentum, because Adam hides mistakes in the gradients' size. Models without BN or dropout.
"""

import functools

import keras
import numpy as np
import pytest
import tensorflow as tf

import looper
from tests.support import models

L = models.L
TWO = {"strategy": "mirrored", "devices": 2}
REDUCTIONS = {
    "mean": {"clip_norm": 0.05},
    "sum": {"reduction": "sum", "clip_value": 0.01},
    "weights_sum": {"reduction": "mean_with_sample_weight"},
}
LOGS = ("loss", "gradient_norm", "accuracy", "eval/loss", "eval/accuracy", "eval/examples")


def train(reduction="sum_over_batch_size", **options):
    """Two passes over 41 examples in batches of 16: the last batch has 9, an odd number."""
    x, y = models.data(examples=41, dtype="float64")
    sample_weight = np.linspace(0.2, 2.0, 41)
    trainer = looper.Trainer(
        model=lambda: keras.Sequential(
            [keras.Input((6,)), L.Dense(16, activation="tanh", kernel_regularizer="l2"), L.Dense(3)]
        ),
        optimizer=lambda: keras.optimizers.SGD(0.01 if reduction == "sum" else 0.1, momentum=0.9),
        loss=lambda: keras.losses.SparseCategoricalCrossentropy(from_logits=True, reduction=reduction),
        metrics=lambda: [keras.metrics.SparseCategoricalAccuracy("accuracy")],
        precision="float64",
        **options,
    )
    data = (x, y, sample_weight)
    history = trainer.fit(
        data, epochs=2, batch_size=16, eval_data=data, log_every=looper.Every(steps=1), progress=False
    )
    return [w.numpy() for w in trainer.model.weights], {name: history[name] for name in LOGS}


@functools.cache
def on_one_device(reduction):
    """A case without micro-batches, trained once for all tests."""
    return train(**REDUCTIONS[reduction])


def assert_as_on_one_device(reduction, **options):
    """Compares the weights and every step's logs."""
    (weights, logs), (one, expected) = train(**REDUCTIONS[reduction], **options), on_one_device(reduction)
    for a, b in zip(one, weights, strict=True):
        np.testing.assert_allclose(b, a, rtol=0, atol=1e-9)
    for name in LOGS:
        np.testing.assert_allclose(logs[name], expected[name], rtol=1e-9, atol=1e-9, err_msg=name)


@pytest.mark.xdist_group("one device for two replicas")
@pytest.mark.parametrize(("reduction", "accumulate"), [("mean", 1), ("sum", 3), ("weights_sum", 2)])
def test_two_replicas_equal_one(reduction, accumulate):
    assert_as_on_one_device(reduction, accumulate=accumulate, **TWO)


@pytest.mark.xdist_group("one device for two replicas")
def test_accumulation_equals_whole_batches():
    """On one device too: micro-batches change the rounding and nothing else."""
    assert_as_on_one_device("mean", accumulate=4)


def infinity_run(**strategy):
    """Under mixed_float16, the last example of batch 2 of 4, which replica 1 gets, has an infinite input."""
    x, y = models.data(examples=32)
    x[15] = np.inf
    trainer = looper.Trainer(
        model=lambda: models.dense(norm=False),
        optimizer=lambda: keras.optimizers.SGD(0.1, momentum=0.9),
        loss=models.cross_entropy,
        precision="mixed_float16",
        **strategy,
    )
    history = trainer.fit(
        (x, y), epochs=1, batch_size=8, shuffle=False, log_every=looper.Every(steps=1), progress=False
    )
    return trainer, history


def test_infinity_on_one_replica_skips_the_step_and_halves_the_scale():
    one, history_one = infinity_run()
    two, history_two = infinity_run(**TWO)
    for history in (history_one, history_two):
        assert history["skipped_steps"] == [0, 1, 0, 0]
        assert history["loss_scale"] == [2.0**15, 2.0**14, 2.0**14, 2.0**14]
        assert np.isfinite([loss for i, loss in enumerate(history["loss"]) if i != 1]).all()
    for trainer in (one, two):
        assert trainer.step == 4
        assert int(trainer.optimizer.iterations.numpy()) == 3
    for a, b in zip(one.model.weights, two.model.weights, strict=True):
        assert np.isfinite(a.numpy()).all()
        # 1e-3: float16 activations have 11 bits; the replicas' sums are rounded in another order
        assert models.norm_difference(b.numpy(), a.numpy()) < 1e-3


def test_loss_scale_grows_after_growth_steps():
    x, y = models.data(examples=32)
    trainer = looper.Trainer(
        model=lambda: models.dense(norm=False),
        optimizer=lambda: keras.optimizers.LossScaleOptimizer(
            keras.optimizers.SGD(0.01), initial_scale=8.0, dynamic_growth_steps=3
        ),
        loss=models.cross_entropy,
        precision="mixed_float16",
    )
    history = trainer.fit((x, y), steps=8, batch_size=4, log_every=looper.Every(steps=1), progress=False)
    assert history["loss_scale"] == [8, 8, 16, 16, 16, 32, 32, 32]


def test_loss_scaling_does_not_change_float32_gradients():
    """A power of two scales exactly, so the result is the same to the bit."""

    def run(wrap):
        x, y = models.data(examples=32)
        trainer = looper.Trainer(
            model=lambda: models.dense(norm=False),
            optimizer=lambda: wrap(keras.optimizers.SGD(0.1)),
            loss=models.cross_entropy,
        )
        trainer.fit((x, y), epochs=2, batch_size=8, progress=False)
        return [w.numpy() for w in trainer.model.weights]

    for a, b in zip(run(lambda o: o), run(keras.optimizers.LossScaleOptimizer), strict=True):
        np.testing.assert_array_equal(a, b)


def test_replicas_draw_different_dropout_masks():
    class Masks(looper.Trainer):
        def build(self):
            self.dropout = L.Dropout(0.5)
            self.model = keras.Sequential([keras.Input((64,)), L.Dense(1)])
            self.optimizer = keras.optimizers.SGD(0.0)

        def compute_loss(self, batch, training):
            mask = self.dropout(tf.ones_like(batch), training=training)
            replica = tf.distribute.get_replica_context().replica_id_in_sync_group
            dropped = {f"mask{r}": tf.where(replica == r, tf.reduce_sum(mask * self.powers), 0.0) for r in range(2)}
            return tf.reduce_mean(self.model(mask)), dropped

        powers = np.linspace(1, 2, 64).astype("float32")

    masks = Masks(**TWO)
    history = masks.fit(np.ones((2, 64), "float32"), epochs=1, batch_size=2, progress=False)
    assert history["mask0"][0] > 0
    assert history["mask0"][0] != history["mask1"][0]


def test_embedding_gradients():
    """Sparse gradients: rows that occur several times count with their sum, in the norm too."""

    def run(**strategy):
        tokens = np.random.default_rng(0).integers(0, 5, (32, 6)).astype("int32")
        trainer = looper.Trainer(
            model=lambda: keras.Sequential(
                [keras.Input((6,), dtype="int32"), L.Embedding(5, 4), L.Flatten(), L.Dense(3)]
            ),
            optimizer=lambda: keras.optimizers.SGD(0.5, momentum=0.9),
            loss=models.cross_entropy,
            precision="float64",
            clip_norm=0.1,
            **strategy,
        )
        history = trainer.fit((tokens, tokens[:, 0] % 3), epochs=3, batch_size=8, progress=False)
        return [w.numpy() for w in trainer.model.weights], history["gradient_norm"]

    (one, norms_one), (two, norms_two) = run(), run(**TWO)
    np.testing.assert_allclose(norms_one, norms_two, rtol=1e-9)
    for a, b in zip(one, two, strict=True):
        np.testing.assert_allclose(b, a, rtol=0, atol=1e-9)


@pytest.mark.parametrize(
    ("options", "update"),
    [
        ({"clip_norm": 1.0, **TWO}, [0.6, 0.8]),
        ({"clip_norm": 10.0, **TWO}, [3, 4]),
        ({"clip_value": 3.5, **TWO}, [3, 3.5]),
        ({"clip_norm": 1.0}, [0.6, 0.8]),
        ({"clip_value": 3.5}, [3, 3.5]),
    ],
)
def test_clipping_is_of_the_sum_over_replicas(options, update):
    """Replica gradients [6, 0]/2 and [0, 8]/2. tests/step/test_keras_on_replicas.py has the optimizer's clipping."""

    class Slope(looper.Trainer):
        def build(self):
            self.weights = tf.Variable([0.0, 0.0])
            self.optimizer = keras.optimizers.SGD(1.0)

        def compute_loss(self, batch, training):
            return tf.reduce_sum(batch * self.weights, -1)

    slope = Slope(**options)
    history = slope.fit(np.array([[6, 0], [0, 8]], "float32"), steps=1, batch_size=2, shuffle=False, progress=False)
    np.testing.assert_allclose(-slope.weights.numpy(), update, rtol=1e-6)
    np.testing.assert_allclose(history["gradient_norm"], [5.0], rtol=1e-6)
