"""A batch of fewer examples than replicas: the update of the examples there are, and nothing spoiled where none are.

tests/step/test_one_equals_many.py compares with one device what can be compared; here is what cannot: statistics of
each replica's own, and code that makes NaN of nothing.
"""

import keras
import numpy as np
import pytest
import tensorflow as tf

import looper
from looper.base.errors import InputError
from tests.support import inside, models

L = models.L
TWO = {"strategy": "mirrored", "devices": 2}


def sgd():
    return keras.optimizers.SGD(0.1)


def copies(trainer, variable):
    return [copy.numpy() for copy in trainer.strategy.experimental_local_results(variable.value)]


def last_batch_of_one(trainer, before=4, **options):
    """Runs a batch of 4, then one of 1 example, which goes to the last replica. Returns both steps' logs."""
    data = models.data(examples=before + 1)
    fit = {"batch_size": before, "shuffle": False, "log_every": looper.Every(steps=1), "progress": False}
    return trainer.fit(data, epochs=1, **fit, **options)


def normalized(*layers, **options):
    hidden = [L.Dense(4, name="hidden"), *(layer() for layer in layers)]
    return keras.Sequential([keras.Input((6,)), *hidden, L.Dense(3)])


@pytest.mark.parametrize("execution", ["graph", "eager", "xla_step"])
def test_batch_statistics_of_an_idle_replica_stay(execution):
    class Watched(looper.Trainer):
        pass

    trainer = Watched(
        model=lambda: normalized(L.BatchNormalization),
        optimizer=sgd,
        loss=models.cross_entropy,
        execution=execution,
        **TWO,
    )
    data = tf.data.Dataset.from_tensor_slices(models.data(examples=5)).batch(4)

    def trained(steps):
        history = trainer.fit(data, steps=steps, log_every=looper.Every(steps=1), progress=False)
        assert np.isfinite(history["loss"]).all()
        assert np.isfinite(np.concatenate([w.numpy().ravel() for w in trainer.model.weights])).all()
        norm = trainer.model.layers[1]
        return [copies(trainer, v) for v in (norm.moving_mean, norm.moving_variance)]

    before = trained(1)
    for (idle, busy), (idle_before, busy_before) in zip(trained(2), before, strict=True):
        np.testing.assert_array_equal(idle, idle_before)
        assert np.abs(busy - busy_before).max() > 1e-4


def test_masked_batch_statistics_stay_too():
    """Keras makes 0, not NaN, of a mask over nothing."""

    def model():
        layers = [L.Embedding(5, 4, mask_zero=True), L.BatchNormalization(), L.GlobalAveragePooling1D(), L.Dense(3)]
        return keras.Sequential([keras.Input((6,), dtype="int32"), *layers])

    trainer = looper.Trainer(model=model, optimizer=sgd, loss=models.cross_entropy, **TWO)
    tokens = np.random.default_rng(0).integers(0, 5, (5, 6)).astype("int32")
    data = (tokens, tokens[:, 0] % 3)

    def trained(steps):
        trainer.fit(data, steps=steps, batch_size=4, shuffle=False, progress=False)
        return copies(trainer, trainer.model.layers[1].moving_variance)

    idle_before, busy_before = trained(1)
    idle, busy = trained(2)
    np.testing.assert_array_equal(idle, idle_before)
    assert np.abs(busy - busy_before).max() > 1e-4


class MeanOfMeans(keras.Metric):
    """A mean over a batch that is NaN over nothing."""

    def __init__(self):
        super().__init__(name="mean_of_means")
        self.total, self.count = (self.add_weight(name=name, initializer="zeros") for name in ("total", "count"))

    def update_state(self, y, predicted, sample_weight=None):
        self.total.assign_add(tf.reduce_mean(tf.cast(predicted, tf.float32)))
        self.count.assign_add(1.0)

    def result(self):
        return self.total / self.count


def test_metrics_get_nothing_from_an_idle_replica():
    """In training and in evaluation: its metrics are as before, and its NaN reaches nobody."""
    trainer = looper.Trainer(
        model=lambda: normalized(),
        optimizer=sgd,
        loss=models.cross_entropy,
        metrics=lambda: [MeanOfMeans(), keras.metrics.SparseCategoricalAccuracy("accuracy")],
        **TWO,
    )
    history = last_batch_of_one(trainer, eval_data=models.data(examples=5))
    assert np.isfinite(history["mean_of_means"]).all()
    # 4 examples on two replicas are 2 updates, 1 example is one more; eval_data is one batch of 5: two updates
    metric = trainer.metrics[0]
    assert float(sum(copies(trainer, metric.count))) in (1.0, 3.0)
    x, y = models.data(examples=5)
    whole = trainer.evaluate((x, y), batch_size=4)
    logits = trainer.predict(x)
    assert whole["accuracy"] == pytest.approx(np.mean(logits.argmax(-1) == y))
    means = [logits[0:2].mean(), logits[2:4].mean(), logits[4:].mean()]
    assert whole["mean_of_means"] == pytest.approx(np.mean(means), rel=1e-5)  # float32


class Unweighted(looper.Trainer):
    """Losses and logs of all forms, each NaN over nothing, and state that no example touches."""

    def build(self):
        self.model = normalized()
        self.optimizer = keras.optimizers.SGD(0.1)
        self.loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        self.slow = tf.Variable(tf.zeros([4]), trainable=False)
        self.shared = tf.Variable(0.0, trainable=False, aggregation=tf.VariableAggregation.MEAN)
        self.seeds = keras.random.SeedGenerator(3)

    def compute_loss(self, batch, training):
        x, y = batch
        logits = self.model(x, training=training)
        mean = tf.reduce_mean(keras.losses.sparse_categorical_crossentropy(y, logits, from_logits=True))
        penalty = tf.reduce_sum(self.model.layers[-1].kernel ** 2)
        if training:
            self.slow.assign(0.9 * self.slow + 0.1 * self.model.layers[0].bias)
            self.shared.assign(tf.reduce_mean(x))
            keras.random.uniform((), seed=self.seeds)
        logs = {"scalar": tf.reduce_mean(logits), "pair": (tf.reduce_mean(logits), 1.0), "vector": logits[:, 0]}
        return mean + 0.1 * penalty, logs


def test_losses_logs_and_other_state():
    """Scalars count by their examples, so an idle replica's NaN does not; what depends on no example moves on alike."""

    def run(**options):
        trainer = Unweighted(**options)
        return trainer, last_batch_of_one(trainer)

    (one, expected), (two, history) = run(), run(**TWO)
    for a, b in zip(one.model.weights, two.model.weights, strict=True):
        np.testing.assert_allclose(b.numpy(), a.numpy(), rtol=1e-5, atol=1e-6)  # float32
    for name in ("loss", "scalar", "vector", "gradient_norm"):
        np.testing.assert_allclose(history[name], expected[name], rtol=1e-5, atol=1e-6, err_msg=name)
    assert history["pair"][1] == pytest.approx(expected["pair"][1], rel=1e-5)
    slow = [copy.numpy() for copy in two.strategy.experimental_local_results(two.slow)]
    np.testing.assert_array_equal(slow[0], slow[1])
    np.testing.assert_allclose(slow[0], one.slow.numpy(), rtol=1e-5, atol=1e-7)
    # NaN from the idle replica would have reached both
    assert np.isfinite([copy.numpy() for copy in two.strategy.experimental_local_results(two.shared)]).all()
    seeds = copies(two, two.seeds.state)
    assert seeds[0][1] == seeds[1][1] == one.seeds.state.numpy()[1]  # as many draws on each


def test_a_gradient_that_is_nan_over_nothing_reaches_no_variable():
    """The loss is a variable times a mean over the examples, which an idle replica has none of."""

    class Scaled(looper.Trainer):
        def build(self):
            self.scale, self.optimizer = tf.Variable(1.0), sgd()

        def compute_loss(self, batch, training):
            return self.scale * tf.reduce_mean(batch[0])

    one, two = Scaled(), Scaled(**TWO)
    for trainer in (one, two):
        last_batch_of_one(trainer)
    assert two.scale.numpy() == pytest.approx(one.scale.numpy(), rel=1e-6)  # float32
    assert one.scale.numpy() != 1.0


class Own(looper.Trainer):
    """An own `train_step` and an own division by this replica's examples, which are none."""

    def build(self):
        self.model = normalized(L.BatchNormalization)
        self.optimizer = keras.optimizers.SGD(0.1)

    def train_step(self, batch):
        x, y = batch
        with tf.GradientTape() as tape:
            each = keras.losses.sparse_categorical_crossentropy(y, self.model(x, training=True), from_logits=True)
            loss = tf.reduce_sum(each) / tf.cast(tf.shape(each)[0], tf.float32)
        self.minimize(loss, tape)
        return {"loss": loss, "largest": tf.reduce_max(each)}


def test_an_own_step():
    history = last_batch_of_one(Own(**TWO))
    for name in ("loss", "largest", "gradient_norm"):
        assert np.isfinite(history[name]).all(), name


def test_steps_that_need_no_care_have_none():
    """Where the data is known to leave no replica idle, the graph is without it."""

    def operations(examples, batched):
        trainer = looper.Trainer(
            model=lambda: normalized(L.BatchNormalization), optimizer=sgd, loss=models.cross_entropy, **TWO
        )
        data = models.data(examples=examples)
        if batched is not None:
            data = tf.data.Dataset.from_tensor_slices(data).batch(4, drop_remainder=batched)
        trainer.fit(data, epochs=1, progress=False, **({"batch_size": 4} if batched is None else {}))
        [execution] = inside.executions(trainer, "train")
        found = inside.operations(trainer, execution)
        return found["IsFinite"]

    assert operations(8, None) == operations(8, True) == 0
    assert operations(9, None) > 0
    assert operations(8, False) > 0


def test_a_step_that_cannot_do_without_examples_says_where():
    class First(looper.Trainer):
        def build(self):
            self.model = normalized()
            self.optimizer = keras.optimizers.SGD(0.1)

        def compute_loss(self, batch, training):
            return tf.reduce_mean(tf.square(self.model(batch[0][0][None], training=training)))

    with pytest.raises(
        looper.base.errors.StepError, match=r"failed in step.* 2: slice index 0 of dimension 0 out of bounds"
    ):
        last_batch_of_one(First(**TWO))
    with pytest.raises(InputError, match="fewer than the 2 replicas"):
        last_batch_of_one(First(**TWO), before=1)
