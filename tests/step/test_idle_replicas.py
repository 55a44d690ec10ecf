"""A batch of fewer examples than replicas goes to all of them, and counts on the first: nothing runs on 0 examples.

tests/step/test_one_equals_many.py compares recipes of other kinds that end with such a batch.
"""

import subprocess
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf

import looper
from looper.base.errors import InputError
from tests.support import few_examples, inside, models
from tests.support.processes import ROOT

L = models.L
TWO = {"strategy": "mirrored", "devices": 2}


def sgd():
    return keras.optimizers.SGD(0.1)


def copies(trainer, variable):
    return [copy.numpy() for copy in trainer.strategy.experimental_local_results(variable.value)]


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """By number of replicas and case, what it ended with; four replicas need a process of their own."""
    file = tmp_path_factory.mktemp("few_examples") / "four.npz"
    command = [sys.executable, "-m", "tests.support.few_examples", "--devices", "4", "--out", str(file)]
    with subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True) as process:
        two = {name: few_examples.run(case, 1, **TWO) for name, case in few_examples.CASES.items()}
        said = process.communicate()[1]
    assert process.returncode == 0, said[-3000:]
    arrays = np.load(file)
    four = {name: {} for name in two}
    for key in arrays:
        name, _, rest = key.partition("/")
        four[name][rest] = arrays[key]
    return {2: two, 4: four}


@pytest.mark.xdist_group("few examples")
@pytest.mark.parametrize(
    ("replicas", "name"),
    [(2, name) for name in few_examples.CASES] + [(4, name) for name in few_examples.ON_FOUR],
)
def test_equals_one_device(found, replicas, name):
    """On 4 replicas with 1, 2 or 3 examples, on 2 with one: weights, statistics, logs, evaluation and prediction."""
    case, got = few_examples.CASES[name], found[replicas][name]
    last = int(got.pop("last", 1))
    expected = few_examples.run(case, last, "eager", strategy="one_device")
    assert got.keys() == expected.keys()
    exact = case.precision == "float64"
    for key, value in expected.items():
        # Keras' metrics are float32 in any precision; float32: 24 bits, of a few hundred sums
        tolerance = 1e-9 if exact and "accuracy" not in key else 1e-5
        np.testing.assert_allclose(got[key], value, rtol=tolerance, atol=tolerance, err_msg=key)


def last_batch_of_one(trainer, before=4, **options):
    """Runs a batch of 4, then one of 1 example, which counts on the first replica. Returns both steps' logs."""
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
    for (busy, idle), (busy_before, idle_before) in zip(trained(2), before, strict=True):
        np.testing.assert_array_equal(idle, idle_before)
        assert np.abs(busy - busy_before).max() > 1e-4


def test_masked_batch_statistics_stay_too():
    def model():
        layers = [L.Embedding(5, 4, mask_zero=True), L.BatchNormalization(), L.GlobalAveragePooling1D(), L.Dense(3)]
        return keras.Sequential([keras.Input((6,), dtype="int32"), *layers])

    trainer = looper.Trainer(model=model, optimizer=sgd, loss=models.cross_entropy, **TWO)
    tokens = np.random.default_rng(0).integers(0, 5, (5, 6)).astype("int32")
    data = (tokens, tokens[:, 0] % 3)

    def trained(steps):
        trainer.fit(data, steps=steps, batch_size=4, shuffle=False, progress=False)
        return copies(trainer, trainer.model.layers[1].moving_variance)

    busy_before, idle_before = trained(1)
    busy, idle = trained(2)
    np.testing.assert_array_equal(idle, idle_before)
    assert np.abs(busy - busy_before).max() > 1e-4


class MeanOfMeans(keras.Metric):
    """A mean over batches of means over examples, and the number of examples in an integer."""

    def __init__(self):
        super().__init__(name="mean_of_means")
        self.total, self.count = (self.add_weight(name=name, initializer="zeros") for name in ("total", "count"))
        self.examples = self.add_weight(name="examples", initializer="zeros", dtype="int32")

    def update_state(self, y, predicted, sample_weight=None):
        self.total.assign_add(tf.reduce_mean(tf.cast(predicted, tf.float32)))
        self.count.assign_add(1.0)
        self.examples.assign_add(tf.shape(y)[0])

    def result(self):
        return self.total / self.count


def test_metrics_get_nothing_from_an_idle_replica():
    """In training and in evaluation: its metrics are as before."""
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
    assert (float(sum(copies(trainer, metric.count))), sum(copies(trainer, metric.examples))) in ((1.0, 1), (3.0, 5))
    x, y = models.data(examples=5)
    whole = trainer.evaluate((x, y), batch_size=4)
    logits = trainer.predict(x)
    assert whole["accuracy"] == pytest.approx(np.mean(logits.argmax(-1) == y))
    means = [logits[0:2].mean(), logits[2:4].mean(), logits[4:].mean()]
    assert whole["mean_of_means"] == pytest.approx(np.mean(means), rel=1e-5)  # float32


class Unweighted(looper.Trainer):
    """Losses and logs of all forms, and state: what no example touches, a mean over replicas, a sum over them."""

    def build(self):
        self.model = normalized()
        self.optimizer = keras.optimizers.SGD(0.1)
        self.loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        self.slow = tf.Variable(tf.zeros([4]), trainable=False)
        self.shared = tf.Variable(0.0, trainable=False, aggregation=tf.VariableAggregation.MEAN)
        apart = tf.VariableSynchronization.ON_READ
        self.seen = tf.Variable(0, trainable=False, synchronization=apart, aggregation=tf.VariableAggregation.SUM)
        self.seeds = keras.random.SeedGenerator(3)

    def compute_loss(self, batch, training):
        x, y = batch
        logits = self.model(x, training=training)
        mean = tf.reduce_mean(keras.losses.sparse_categorical_crossentropy(y, logits, from_logits=True))
        penalty = tf.reduce_sum(self.model.layers[-1].kernel ** 2)
        if training:
            self.slow.assign(0.9 * self.slow + 0.1 * self.model.layers[0].bias)
            self.shared.assign(tf.reduce_mean(x))
            self.seen.assign_add(tf.shape(x)[0])
            keras.random.uniform((), seed=self.seeds)
        logs = {"scalar": tf.reduce_mean(logits), "pair": (tf.reduce_mean(logits), 1.0), "vector": logits[:, 0]}
        return mean + 0.1 * penalty, logs


def test_losses_logs_and_other_state():
    """What an idle replica logs has no weight; state moves on alike, but for what is added up when it is read."""

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
    for copy in two.strategy.experimental_local_results(two.shared):
        assert copy.numpy() == pytest.approx(one.shared.numpy(), rel=1e-6)  # float32
    assert int(two.seen.numpy()) == int(one.seen.numpy()) == 5
    seeds = copies(two, two.seeds.state)
    assert seeds[0][1] == seeds[1][1] == one.seeds.state.numpy()[1]  # as many draws on each


class Own(looper.Trainer):
    """Own steps, an own division by this replica's examples, and logs of how many it has, in each form."""

    def build(self):
        self.model = normalized(L.BatchNormalization)
        self.optimizer = keras.optimizers.SGD(0.1)

    def sizes(self, batch):
        size = tf.cast(tf.shape(batch[0])[0], tf.float32)
        return {"scalar": size, "pair": (size, size), "tensor": size + 0 * batch[0]}

    def train_step(self, batch):
        x, y = batch
        with tf.GradientTape() as tape:
            each = keras.losses.sparse_categorical_crossentropy(y, self.model(x, training=True), from_logits=True)
            loss = tf.reduce_sum(each) / tf.cast(tf.shape(each)[0], tf.float32)
        self.minimize(loss, tape)
        return {"loss": loss, **self.sizes(batch)}

    def eval_step(self, batch):
        return self.sizes(batch)


def test_logs_of_own_steps():
    """Slices of 2, 2 and 1 examples: a mean over the 5 examples, in which the last one counts once."""
    trainer, data = Own(**TWO), models.data(examples=5)
    history = trainer.fit(data, epochs=1, batch_size=4, shuffle=False, progress=False)
    evaluated = trainer.evaluate(data, batch_size=4)
    for name in ("scalar", "pair", "tensor"):
        # float32
        assert history[name] == [pytest.approx((2 * 2 + 2 * 2 + 1) / 5, rel=1e-6)]
        assert evaluated[name] == pytest.approx((2 * 2 + 2 * 2 + 1) / 5, rel=1e-6)
    assert np.isfinite([history["loss"], history["gradient_norm"]]).all()


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
        return inside.operations(trainer, execution)

    without, fixed = operations(8, None), operations(8, True)
    for some_idle in (operations(9, None), operations(8, False)):
        assert some_idle["If"] > without["If"] == fixed["If"]


def test_whole_batches_are_to_have_an_example_for_each():
    with pytest.raises(InputError, match="fewer than the 2 replicas"):
        last_batch_of_one(Own(**TWO), before=1)
