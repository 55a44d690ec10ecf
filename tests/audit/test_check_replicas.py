"""`trainer.check_replicas`: right models pass, faults are found by path, what is each replica's own is named."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import looper
from looper.base.errors import InputError
from tests.support import models

L = models.L
TWO = {"strategy": "mirrored", "devices": 2}
BATCH = models.data(examples=15)  # 7 and 8


def network(*layers):
    return lambda: keras.Sequential(
        [keras.Input((6,)), L.Dense(8, name="first"), *(layer() for layer in layers), L.Dense(3, name="last")],
        name="net",
    )


def adam():
    return keras.optimizers.Adam(0.1)


def trainer(model=None, kind=looper.Trainer, **options):
    parts = {"model": model or network(), "optimizer": adam, "loss": models.cross_entropy}
    return kind(**{**parts, **TWO, **options})


@keras.saving.register_keras_serializable()
class Centred(L.Layer):
    """Takes the mean over the examples that it sees, which on replicas are a replica's."""

    def call(self, x, training=None):
        return x - keras.ops.mean(x, axis=0, keepdims=True) if training else x


class ByLocalSize(looper.Trainer):
    """Divides by a replica's examples what `minimize` divides by all."""

    def compute_loss(self, batch, training):
        each = keras.losses.sparse_categorical_crossentropy(
            batch[1], self.model(batch[0], training=training), from_logits=True
        )
        return tf.reduce_sum(each) / tf.cast(tf.shape(each)[0], tf.float32) ** 2


class Local(looper.Trainer):
    """Each replica updates its own copy, without an exchange."""

    def train_step(self, batch):
        with tf.GradientTape() as tape:
            loss = self.loss(batch[1], self.model(batch[0], training=True))
        self.minimize(loss, tape, variables=self.model.layers[0].trainable_variables)
        self.model.layers[-1].bias.assign_sub(tf.reduce_mean(self.model(batch[0]), 0))
        return {"loss": loss}


class Moved(looper.Trainer):
    """Right gradients, and then each replica moves the weights by something of its own."""

    def train_step(self, batch):
        logs = super().train_step(batch)
        self.model.layers[0].kernel.assign_add(0.1 * tf.transpose([batch[0][0]] * 8))
        return logs


class Queue(looper.Trainer):
    """Keeps the last outputs: those of each replica's own examples, or of all."""

    gathers = False

    def build(self):
        super().build()
        self.queue = tf.Variable(tf.zeros([15, 3]), trainable=False)
        self.seen = tf.Variable(0, trainable=False)
        self.mean = tf.Variable(0.0, trainable=False, aggregation=tf.VariableAggregation.MEAN)
        self.summed = tf.Variable(0.0, trainable=False, aggregation=tf.VariableAggregation.SUM)

    def train_step(self, batch):
        logs = super().train_step(batch)
        outputs = self.model(batch[0])
        if self.gathers:
            outputs = tf.reduce_sum(tf.abs(self.model.layers[-1].bias)) + tf.zeros([15, 3])  # their sum may be 0
        self.queue.assign(tf.concat([outputs, self.queue], 0)[:15])
        self.seen.assign_add(1)
        self.mean.assign(logs["loss"])
        self.summed.assign_add(tf.cast(tf.shape(batch[0])[0], tf.float32))
        return logs


class GatheredQueue(Queue):
    gathers = True


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("plain", {}),
        ("mixed_float16", {"precision": "mixed_float16"}),
        ("mixed_bfloat16", {"precision": "mixed_bfloat16"}),
        ("eager", {"execution": "eager"}),
        ("accumulate", {"accumulate": 3}),
        ("of several steps", {"optimizer": lambda: keras.optimizers.SGD(0.1, gradient_accumulation_steps=2)}),
        (
            "synchronized in float64",
            {"model": network(lambda: L.BatchNormalization(synchronized=True)), "precision": "float64"},
        ),
        (
            "regularized and clipped",
            {
                "model": network(lambda: L.Dense(4, kernel_regularizer="l2")),
                "optimizer": lambda: keras.optimizers.AdamW(global_clipnorm=0.1),
            },
        ),
    ],
)
def test_right_models_pass(name, options):
    report = trainer(**options).check_replicas(BATCH)
    assert report.verdict == "equal", str(report)
    assert (report.ok, report.reasons, report.rest, report.replicas, report.examples) == (True, (), None, 2, 15)
    assert any(d.update > 0 for d in report.differences)
    assert str(report).startswith("2 replicas update as one does (15 examples): the largest difference is ")
    one, many = report.logs["loss"]
    # the limit of the precision: losses are sums of as many terms as gradients are
    assert many == pytest.approx(one, rel=report.limit)


@pytest.mark.parametrize(
    ("made", "paths", "relative"),
    [
        (lambda: trainer(network(Centred)), {"model/first/kernel", "model/last/kernel"}, None),
        (lambda: trainer(kind=ByLocalSize), {"model/first/kernel", "model/last/kernel", "model/last/bias"}, 1.0),
        (lambda: trainer(kind=Local), {"model/last/bias"}, None),
        (lambda: trainer(kind=Moved), {"model/first/kernel"}, None),
    ],
    ids=["mean over a replica's examples", "divided by a replica's examples", "local", "moved afterwards"],
)
def test_faults_are_found(made, paths, relative):
    report = made().check_replicas(BATCH)
    assert (report.verdict, report.ok) == ("different", False), str(report)
    found = {d.path: d for d in report.differing}
    assert paths <= found.keys()
    assert list(found) == [d.path for d in sorted(found.values(), key=lambda d: -d.relative)]
    for path in paths:
        assert f"  {path}  by " in str(report)
        if relative is not None:
            # 0.2: the replicas have 7 and 8 examples, and a mean of means is not the mean
            assert found[path].relative == pytest.approx(relative, abs=0.2)


def test_what_is_each_replicas_own_is_named_and_all_else_compared():
    layers = [
        lambda: L.BatchNormalization(name="norm"),
        lambda: L.Dropout(0.5, name="drop"),
        lambda: L.GaussianNoise(1.0),
    ]
    report = trainer(network(*layers)).check_replicas(BATCH)
    assert (report.verdict, report.ok) == ("expected", True), str(report)
    assert report.differing
    assert report.rest.verdict == "equal"
    named = "\n".join(report.reasons)
    assert "model/norm gathers statistics of each replica's examples alone; synchronized=True" in named
    assert "model/drop draws random numbers" in named
    assert "model/gaussian_noise" in named
    assert named in str(report).replace("\n  ", "\n")


def test_a_fault_beside_dropout_is_found():
    report = trainer(network(lambda: L.Dropout(0.5, name="drop"), Centred)).check_replicas(BATCH)
    assert (report.verdict, report.ok) == ("different", False), str(report)
    assert "model/first/kernel" in {d.path for d in report.rest.differing}
    assert any("model/drop draws" in reason for reason in report.reasons)


def test_random_numbers_that_cannot_be_turned_off_leave_it_open():
    class Noisy(L.Layer):
        def __init__(self):
            super().__init__()
            self.seeds = keras.random.SeedGenerator(1)

        def call(self, x):
            return x + keras.random.normal(keras.ops.shape(x), seed=self.seeds)

    report = trainer(network(Noisy)).check_replicas(BATCH)
    assert (report.verdict, report.ok) == ("unknown", False), str(report)
    assert any("draws random numbers" in reason for reason in report.reasons)


def test_everything_is_put_back():
    layers = [lambda: L.BatchNormalization(), lambda: L.Dropout(0.5)]

    def train(checked):
        made = trainer(network(*layers), metrics=lambda: [keras.metrics.SparseCategoricalAccuracy("accuracy")])
        fit = {"batch_size": 15, "log_every": looper.Every(steps=1), "progress": False}
        made.fit(BATCH, epochs=2, **fit)
        if checked:
            made.check_replicas(BATCH)
        history = made.fit(BATCH, epochs=4, **fit)
        assert not {"update_step"} & vars(made.optimizer).keys()
        assert all("call" not in vars(layer) for layer in made.model.layers)
        return [w.numpy() for w in made.model.variables], history["loss"], history["accuracy"]

    for a, b in zip(train(False), train(True), strict=True):
        for x, y in zip(a, b, strict=True):
            np.testing.assert_array_equal(x, y)


@pytest.mark.parametrize("execution", ["graph", "eager"])
def test_steps_that_fail_on_no_examples_are_checked(execution):
    """A convolution fused with ReLU, and a Keras loss that the recipe calls: in eager mode it reduces no 0 values."""

    class Own(looper.Trainer):
        def compute_loss(self, batch, training):
            return self.loss(batch[1], self.model(batch[0], training=training))

    def model():
        convolution = L.Conv2D(4, 3, strides=2, activation="relu")
        return keras.Sequential([keras.Input((8, 8, 1)), convolution, L.Flatten(), L.Dense(3)])

    report = trainer(model, Own, execution=execution).check_replicas(models.data((8, 8, 1), 15))
    assert report.verdict == "equal", str(report)


def test_only_what_replicas_hold_alike_is_compared():
    """Each replica's own are sums over replicas; a queue of what is the same everywhere is equal."""
    report = trainer(kind=GatheredQueue).check_replicas(BATCH)
    assert report.verdict == "equal", str(report)
    assert {d.path for d in report.differences if not d.trained} == {"queue", "seen", "mean"}
    report = trainer(kind=Queue).check_replicas(BATCH)
    assert [d.path for d in report.differing] == ["queue"]
    assert "  queue  by 1" in str(report) and str(report).endswith("gather or average it over the replicas before.")


def test_frozen_weights_are_compared():
    class Thaws(Moved):
        def build(self):
            super().build()
            self.model.layers[0].trainable = False

    report = trainer(kind=Thaws).check_replicas(BATCH)
    assert [(d.path, d.trained) for d in report.differing] == [("model/first/kernel", False)], str(report)


def test_wrong_use():
    with pytest.raises(InputError, match="compares several replicas with one, and there is one: make the Trainer with"):
        looper.Trainer(model=network()(), optimizer=adam(), loss="mse").check_replicas(BATCH)
    with pytest.raises(InputError, match=r"the batch has 1 example\(s\): expected at least one for each of 2 replicas"):
        trainer().check_replicas((BATCH[0][:1], BATCH[1][:1]))
    with pytest.raises(InputError, match="takes a batch as one argument"):
        trainer().check_replicas(*BATCH)


def test_a_frozen_dropout_stays_frozen():
    mine = trainer(network(lambda: L.Dropout(0.5, name="dropout"), lambda: L.Dropout(0.5, name="active")))
    looper.freeze(mine.model, layers=["dropout"])
    assert mine.check_replicas(BATCH).ok
    x = np.ones((4, 8), "float32")
    np.testing.assert_array_equal(mine.model.get_layer("dropout")(x, training=True), x)
