"""What is often said of the `training` flag, and what Keras 3.15 does: a test for each claim, named for it.

The claims are those of four questions and their answers; looper/audit/README.md has a table of them. The audit is
asked, and what it says is compared with what the layers do.
"""

import keras
import numpy as np
import tensorflow as tf

import looper
from tests.support.models import L

X = np.random.default_rng(0).normal(3, 2, (64, 6)).astype("float32")
Y = np.zeros((64, 6), "float32")


def trainer(model, kind=looper.Trainer):
    return kind(model=model, optimizer=lambda: keras.optimizers.SGD(0.01), loss=keras.losses.MeanSquaredError)


def rows(audited):
    return {row.path.rpartition("/")[2]: row for row in audited.audit((X, Y)).rows}


class BadModel(keras.Model):
    """The model of that name in the question: `call` does not take `training`."""

    def __init__(self):
        super().__init__()
        self.norm, self.dropout = L.BatchNormalization(), L.Dropout(0.5)

    def call(self, x):
        return self.dropout(self.norm(x))


def test_claim_dropout_scales_the_output_in_inference():
    """Wrong: it scales by 1 / (1 - rate) in training, and is the identity in inference."""
    dropout = L.Dropout(0.75)
    assert set(np.unique(dropout(np.ones((8, 64)), training=True))) == {0.0, 4.0}
    np.testing.assert_array_equal(dropout(X, training=False), X)
    row = rows(trainer(lambda: keras.Sequential([keras.Input((6,)), L.Dense(6), L.Dropout(0.75, name="d")])))["d"]
    assert row.in_training.startswith("dropped 7")
    assert row.in_evaluation == "dropped nothing"


def test_claim_without_training_false_inference_uses_batch_statistics():
    """Wrong: a call without the flag is inference, and uses the moving statistics."""
    norm = L.BatchNormalization()
    np.testing.assert_array_equal(norm(X), norm(X, training=False))
    np.testing.assert_array_equal(norm.moving_mean, np.zeros(6))


def test_claim_omitting_the_flag_disables_training_behaviour():
    """Right in a loop of one's own, and silent: gradients flow. The audit says it."""

    class Forgets(looper.Trainer):
        def compute_loss(self, batch, training):
            return self.loss(batch[1], self.model(batch[0]))

    model = BadModel()
    with tf.GradientTape() as tape:
        loss = tf.reduce_mean(model(X) ** 2)
    assert all(float(tf.norm(g)) > 0 for g in tape.gradient(loss, model.trainable_variables))
    np.testing.assert_array_equal(model.norm.moving_mean, np.zeros(6))
    [finding] = trainer(BadModel, Forgets).audit((X, Y)).findings
    assert (finding.severity, finding.kind, finding.path) == ("error", "no-flag", "model")


def test_claim_a_layer_may_hold_a_tf_variable():
    """Wrong in Keras 3, which does not track it: it is neither trained nor saved. The audit says it."""

    class Custom(L.Layer):
        def __init__(self):
            super().__init__(name="custom")
            self.w = tf.Variable(tf.random.normal([6, 6]))

        def call(self, x, training=None):
            if training:
                self.w.assign(tf.math.l2_normalize(self.w))
            return tf.matmul(x, self.w)

    assert Custom().variables == []
    report = trainer(lambda: keras.Sequential([keras.Input((6,)), Custom(), L.Dense(6)])).audit((X, Y))
    assert [(f.severity, f.kind, f.path) for f in report.findings] == [("error", "no-optimizer", "model/custom/w")]


def test_claim_training_false_freezes_the_weights():
    """Wrong: every gradient is there. Freezing is `trainable = False`."""
    model = keras.Sequential([keras.Input((6,)), L.Dense(6), L.BatchNormalization()])
    with tf.GradientTape() as tape:
        loss = tf.reduce_mean(model(X, training=False) ** 2)
    assert all(g is not None for g in tape.gradient(loss, model.trainable_variables))
    model.trainable = False
    assert model.trainable_variables == []


def test_claim_trainable_false_means_training_false():
    """Half right: batch normalization then runs in inference mode, and dropout stays active. The audit says it."""

    def make():
        base = keras.Sequential([keras.Input((6,)), L.BatchNormalization(name="n"), L.Dropout(0.5, name="d")])
        base.trainable = False
        return keras.Sequential([base, L.Dense(6)])

    audited = trainer(make)
    assert rows(audited)["n"].in_training == "kept statistics"
    assert rows(audited)["d"].in_training.startswith("dropped ")
    [finding] = audited.audit((X, Y)).findings
    assert (finding.severity, finding.kind) == ("warning", "frozen-dropout")


def test_claim_training_false_in_a_functional_model_holds():
    """Not in Keras 3.15, where the flag outside overrides it; `trainable = False` keeps the statistics."""

    def make():
        base = keras.Sequential([keras.Input((6,)), L.Dense(6), L.BatchNormalization(name="n")], name="base")
        inputs = keras.Input((6,))
        return keras.Model(inputs, L.Dense(6)(base(inputs, training=False)))

    audited = trainer(make)
    assert rows(audited)["n"].in_training == "moved statistics"
    [finding] = audited.audit((X, Y)).findings
    assert (finding.severity, finding.kind, finding.path) == ("error", "overridden", "model/base")


def test_claim_a_call_that_does_not_take_training_is_broken():
    """Wrong where the model is called with the flag, as looper does: the layers inside get it from Keras' context."""
    model = BadModel()
    model(X, training=True)
    assert np.all(model.norm.moving_mean.numpy() != 0)
    found = rows(trainer(BadModel))
    assert found["norm"].training == ((True, "context"),)
    assert found["norm"].in_training == "moved statistics"
    assert found["dropout"].in_training.startswith("dropped ")


def test_claim_fit_sets_training_true_by_itself():
    """Only if `call` names `training`: `BadModel` trains without dropout and statistics, and Keras says nothing."""
    model = BadModel()
    model.compile("sgd", "mse")
    model.fit(X, Y, epochs=1, verbose=0)
    np.testing.assert_array_equal(model.norm.moving_mean, np.zeros(6))


def test_claim_passing_none_is_leaving_the_flag_out():
    """Wrong: the layer, and those called after it, get None although the flag outside is True. The audit says it."""

    class PassesNone(BadModel):
        def call(self, x, training=None):
            return self.dropout(self.norm(x, training=None))

    report = trainer(PassesNone).audit((X, Y))
    assert [(f.severity, f.kind, f.path) for f in report.findings] == [
        ("error", "explicit-none", "model/norm"),
        ("error", "leaked-flag", "model/dropout"),
    ]
