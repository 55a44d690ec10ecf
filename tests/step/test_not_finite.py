"""Values that are not finite: what is skipped, what counts, and what is put back."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import looper
from looper.recipe.metrics import Window
from tests.support import line


def test_a_gradient_that_is_not_finite_is_named_with_its_step(tmp_path):
    """sqrt at 0: the loss is finite, its gradient is not, and the next loss would be."""

    class Root(looper.Trainer):
        def build(self):
            self.weight = tf.Variable(1.0)
            self.optimizer = keras.optimizers.SGD(0.1)

        def compute_loss(self, batch, training):
            return tf.sqrt(batch * self.weight)

    x = np.ones(64, "float32")
    x[24] = 0
    with pytest.raises(looper.NonFiniteLossError, match=r"the gradient became (nan|inf) at step 4[.] "):
        Root(workdir=tmp_path).fit(x, epochs=1, batch_size=8, shuffle=False, progress=False)


def test_one_of_two_updates_is_skipped():
    """mixed_float16: the first optimizer's gradient is infinite, the second's is not; the step counts as skipped."""

    class Two(looper.Trainer):
        def build(self):
            self.a, self.b = tf.Variable(1.0), tf.Variable(1.0)
            self.first, self.second = keras.optimizers.SGD(0.1), keras.optimizers.SGD(0.1)
            self.first.build([self.a])
            self.second.build([self.b])

        def train_step(self, batch):
            with tf.GradientTape() as tape:
                loss = tf.reduce_mean(self.a * batch)
            self.minimize(loss, tape, self.first, [self.a])
            with tf.GradientTape() as tape:
                other = tf.reduce_mean(self.b * tf.ones_like(batch))
            self.minimize(other, tape, self.second, [self.b])
            return {"loss": loss, "other": other}

    x = np.ones(16, "float32")
    x[3] = np.inf
    two = Two(precision="mixed_float16")
    history = two.fit(x, steps=2, batch_size=8, shuffle=False, log_every=looper.Every(steps=1), progress=False)
    assert history["skipped_steps"] == [1, 0]
    np.testing.assert_allclose(two.a.numpy(), 0.9, rtol=1e-3)
    np.testing.assert_allclose(two.b.numpy(), 0.8, rtol=1e-3)


def test_a_skipped_steps_finite_logs_count():
    window = Window()
    window.add(np.array([[32, 1, 64.0, 32.0, np.inf, 1.0], [32, 0, 32.0, 32.0, 2.0, 1.0]]))
    assert window.means(["loss", "norm"]) == {"loss": 1.5, "norm": 2.0}


def test_metrics_after_a_rollback_are_those_that_were_put_back():
    x, y = np.ones((40, 1), "float32"), np.ones((40, 1), "float32")
    x[22] = np.nan
    linear = looper.callbacks.LambdaCallback(on_step=lambda step, logs: None, every=looper.Every(steps=2))
    mine = line.trainer(optimizer=lambda: keras.optimizers.SGD(0.0), metrics=["mae"], steps_per_execution=1)
    history = mine.fit(
        (x, 2 * y),
        epochs=1,
        batch_size=2,
        shuffle=False,
        log_every=looper.Every(steps=20),
        callbacks=[linear, looper.callbacks.NanGuard("rollback")],
        progress=False,
    )
    assert history["mae"] == [1.0]
