"""A MirroredStrategy of one device does what one device does, where an update is skipped, accumulated or averaged."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import looper
from tests.support import models

X, Y = models.data(examples=40)
BAD = X.copy()
BAD[3] = np.nan


def optimizer(**options):
    return lambda: keras.optimizers.Adam(0.01, **options)


CASES = {
    "scale": (optimizer(), {"precision": "mixed_float16"}, [], X),
    "skip": (optimizer(), {}, [looper.callbacks.NanGuard("skip")], BAD),
    "keras_accumulates": (optimizer(gradient_accumulation_steps=2), {}, [], X),
    "keras_averages": (optimizer(use_ema=True, ema_overwrite_frequency=2), {}, [], X),
    "all": (
        optimizer(use_ema=True, ema_overwrite_frequency=3, weight_decay=0.01),
        {"accumulate": 2, "ema": 0.9, "clip_norm": 1.0},
        [looper.callbacks.NanGuard("skip")],
        BAD,
    ),
}


class Halves(looper.Trainer):
    def train_step(self, batch):
        with tf.GradientTape() as tape:
            loss = self.compute_loss(batch, training=True)
        variables = self.model.trainable_variables
        self.apply_gradients(zip(self.gradients(loss, tape, variables), variables, strict=True))
        return {"loss": loss}


# what XLA does otherwise does not depend on the case
@pytest.mark.parametrize(
    ("name", "kind", "execution"),
    [(name, looper.Trainer, "graph") for name in CASES]
    + [("all", Halves, "graph"), ("all", looper.Trainer, "xla_step")],
)
def test_it_equals_one_device(name, kind, execution):
    make, options, given, x = CASES[name]
    if kind is Halves and "accumulate" in options:
        options = {**options, "accumulate": 1}
    found = []
    for strategy in ("one_device", tf.distribute.MirroredStrategy(["CPU:0"])):
        trainer = kind(
            model=lambda: models.dense(norm=False),
            optimizer=make,
            loss=models.cross_entropy,
            strategy=strategy,
            execution=execution,
            **options,
        )
        history = trainer.fit((x, Y), epochs=2, batch_size=8, callbacks=given, progress=False, shuffle=False)
        found.append([*trainer.model.get_weights(), history["loss"][-1]])
        assert np.isfinite(found[-1][0]).all()
    for alone, mirrored in zip(*found, strict=True):
        np.testing.assert_allclose(mirrored, alone, rtol=1e-5, atol=1e-6)  # XLA fuses another graph otherwise


def test_a_model_made_in_its_scope():
    strategy = tf.distribute.MirroredStrategy(["CPU:0"])
    with strategy.scope():
        model = models.dense()
    trainer = looper.Trainer(model=model, optimizer=optimizer(), loss=models.cross_entropy, strategy=strategy)
    assert trainer.fit((X, Y), epochs=1, batch_size=8, progress=False, callbacks=[looper.callbacks.NanGuard("skip")])
