"""What a recipe may return and override, against a loop written by hand."""

import functools

import keras
import numpy as np
import pytest
import tensorflow as tf

import looper
from tests.support import line, models

L = models.L
X = models.data(examples=24, dtype="float64")[0]
Y = np.random.default_rng(3).normal(size=(24, 2))
W = np.linspace(0.1, 2, 24)
BATCH = 8
TWO = {"strategy": "mirrored", "devices": 2}


def one_layer(name):
    return keras.Sequential([keras.Input((6,)), L.Dense(2, kernel_initializer="ones", name=name)])


class Regression(looper.Trainer):
    """The loss in the form that a test asks for."""

    form = staticmethod(lambda errors, weights: errors)

    def build(self):
        self.model = one_layer("layer")
        self.optimizer = keras.optimizers.SGD(0.05, momentum=0.9)

    def compute_loss(self, batch, training):
        x, y, w = batch
        return self.form(tf.square(self.model(x, training=training) - y), w)


FORMS = {
    "tensor of any shape": lambda errors, w: errors,
    "scalar": lambda errors, w: tf.reduce_mean(errors),
    "pair": lambda errors, w: (errors, w[:, None]),
    "pair per example": lambda errors, w: (tf.reduce_mean(errors, -1), w),
    "with logs": lambda errors, w: (errors, {"largest": tf.reduce_max(errors), "weighted": (errors, w[:, None])}),
}


def by_hand(form):
    """Full-batch gradient descent with momentum in NumPy."""
    kernel, bias = np.ones((6, 2)), np.zeros(2)
    speeds = [np.zeros_like(kernel), np.zeros_like(bias)]
    losses = []
    for start in range(0, 24, BATCH):
        x, y, w = (a[start : start + BATCH] for a in (X, Y, W))
        weight = np.ones((BATCH, 2)) if "pair" not in form else np.repeat(w[:, None], 2, 1)
        error = x @ kernel + bias - y
        losses.append((error**2 * weight).sum() / weight.sum())
        slope = 2 * error * weight / weight.sum()
        for i, gradient in enumerate((x.T @ slope, slope.sum(0))):
            speeds[i] = 0.9 * speeds[i] - 0.05 * gradient
        kernel, bias = kernel + speeds[0], bias + speeds[1]
    return kernel, bias, losses


@pytest.mark.parametrize(
    ("form", "options"),
    [(form, TWO) for form in ("tensor of any shape", "pair per example")]
    + [(form, TWO | {"accumulate": 3}) for form in ("scalar", "pair", "with logs")]
    + [("scalar", {"accumulate": 3}), ("with logs", {})],
)
def test_forms_of_the_loss(form, options):
    class Recipe(Regression):
        pass

    Recipe.form = staticmethod(FORMS[form])
    recipe = Recipe(precision="float64", **options)
    history = recipe.fit(
        (X, Y, W), steps=3, batch_size=BATCH, shuffle=False, log_every=looper.Every(steps=1), progress=False
    )
    kernel, bias, losses = by_hand(form)
    np.testing.assert_allclose(recipe.model.weights[0].numpy(), kernel, atol=1e-9)
    np.testing.assert_allclose(recipe.model.weights[1].numpy(), bias, atol=1e-9)
    np.testing.assert_allclose(history["loss"], losses, atol=1e-9)
    if form == "with logs":
        np.testing.assert_allclose(
            recipe.evaluate((X, Y, W), batch_size=7)["weighted"], weighted_error(recipe), rtol=1e-9
        )


def weighted_error(recipe):
    errors = (X @ recipe.model.weights[0].numpy() + recipe.model.weights[1].numpy() - Y) ** 2
    return (errors * W[:, None]).sum() / (2 * W.sum())


def test_an_own_train_step_equals_the_default():
    """On two replicas; the next test's train_step is compared with NumPy on one device, too."""

    class Own(Regression):
        def train_step(self, batch):
            with tf.GradientTape() as tape:
                loss = self.compute_loss(batch, training=True)
            self.minimize(loss, tape)
            return {"loss": loss}

    class Through(Regression):
        def train_step(self, batch):
            return super().train_step(batch)

    results = []
    for kind in (Regression, Own, Through):
        recipe = kind(precision="float64", clip_norm=0.5, **TWO)
        history = recipe.fit((X, Y, W), epochs=2, batch_size=BATCH, log_every=looper.Every(steps=1), progress=False)
        results.append((recipe.model.weights[0].numpy(), history["loss"], history["gradient_norm"]))
    for other in results[1:]:
        for a, b in zip(other, results[0], strict=True):
            np.testing.assert_allclose(a, b, atol=1e-12)


class Adversaries(looper.Trainer):
    """Two models and two optimizers, three updates a step, as a GAN has them."""

    def build(self):
        self.first, self.second = one_layer("first"), one_layer("second")
        self.optimizers = {"first": keras.optimizers.SGD(0.05), "second": keras.optimizers.SGD(0.1)}
        self.optimizers["first"].build(self.first.trainable_variables)
        self.optimizers["second"].build(self.second.trainable_variables)

    def train_step(self, batch):
        x, y, _ = batch
        logs = {}
        for name in ("first", "second", "second"):
            model = getattr(self, name)
            with tf.GradientTape() as tape:
                loss = tf.square(model(x, training=True) - y)
            self.minimize(loss, tape, self.optimizers[name], model.trainable_variables)
            logs[name] = loss
        return logs

    def eval_step(self, batch):
        x, y, _ = batch
        return {"first": tf.square(self.first(x, training=False) - y)}


def test_several_models_and_optimizers():
    def run(**options):
        recipe = Adversaries(precision="float64", **options)
        data = (X, Y, W)
        history = recipe.fit(data, epochs=2, batch_size=BATCH, shuffle=False, eval_data=data, progress=False)
        return recipe, history

    (one, history), (two, other) = run(), run(**TWO)
    kernel, bias = np.ones((6, 2)), np.zeros(2)
    for start in list(range(0, 24, BATCH)) * 2:
        x, y = X[start : start + BATCH], Y[start : start + BATCH]
        for _ in range(2):
            slope = 2 * (x @ kernel + bias - y) / (2 * BATCH)
            kernel, bias = kernel - 0.1 * x.T @ slope, bias - 0.1 * slope.sum(0)
    np.testing.assert_allclose(one.second.weights[0].numpy(), kernel, atol=1e-9)
    np.testing.assert_allclose(two.second.weights[0].numpy(), kernel, atol=1e-9)
    assert {"first", "second", "gradient_norm/optimizers/first", "gradient_norm/optimizers/second"} <= history.names()
    for name in ("first", "second", "gradient_norm/optimizers/second", "eval/first"):
        np.testing.assert_allclose(history[name], other[name], atol=1e-9)


def test_adding_to_the_default_loss():
    class Recipe(looper.Trainer):
        def build(self):
            self.model = one_layer("layer")
            self.optimizer = keras.optimizers.SGD(0.05)
            self.loss = "mse"

        def compute_loss(self, batch, training):
            loss = super().compute_loss(batch, training)
            return 0.5 * loss + 0.1 * tf.reduce_sum(tf.square(self.model.weights[0].value))

    def run(**options):
        recipe = Recipe(precision="float64", **options)
        history = recipe.fit((X, Y), epochs=2, batch_size=BATCH, shuffle=False, progress=False)
        return recipe.model.weights[0].numpy(), history["loss"]

    kernel, bias = np.ones((6, 2)), np.zeros(2)
    for start in list(range(0, 24, BATCH)) * 2:
        x, y = X[start : start + BATCH], Y[start : start + BATCH]
        slope = 0.5 * 2 * (x @ kernel + bias - y) / (2 * BATCH)
        kernel, bias = kernel - 0.05 * (x.T @ slope + 0.2 * kernel), bias - 0.05 * slope.sum(0)
    for options in ({}, TWO | {"accumulate": 2}):
        weights, _ = run(**options)
        np.testing.assert_allclose(weights, kernel, atol=1e-9)


def test_free_variables_and_plain_modules_are_trained_and_saved(tmp_path):
    class Linear(tf.Module):
        def __init__(self):
            super().__init__()
            self.slope = tf.Variable(tf.zeros([6, 2]), name="slope")

    class Recipe(looper.Trainer):
        def build(self):
            self.part = Linear()
            self.shift = tf.Variable(tf.zeros([2]), name="shift")
            self.optimizer = keras.optimizers.SGD(0.1)

        def compute_loss(self, batch, training):
            return tf.square(batch[0] @ self.part.slope + self.shift - batch[1])

    recipe = Recipe()
    data = (X.astype("float32"), Y.astype("float32"))
    history = recipe.fit(data, epochs=5, batch_size=BATCH, progress=False)
    assert history["loss"][-1] < 0.9 * history["loss"][0]
    other = Recipe()
    other.restore(recipe.save(tmp_path / "saved"))
    np.testing.assert_array_equal(other.part.slope.numpy(), recipe.part.slope.numpy())
    np.testing.assert_array_equal(other.shift.numpy(), recipe.shift.numpy())


@functools.cache
def evaluated(every):
    """A run that is evaluated every so many steps, on labels that it is not trained on."""
    x, y = models.data(examples=64)
    trainer = looper.Trainer(
        model=models.dense,
        optimizer=lambda: keras.optimizers.SGD(0.1),
        loss=models.cross_entropy,
        metrics=lambda: [keras.metrics.SparseCategoricalAccuracy("accuracy")],
    )
    seen, others = keras.callbacks.History(), (x, (y + 1) % 3)
    options = {"log_every": looper.Every(steps=2), "callbacks": [seen], "progress": False}
    every = looper.Every(steps=every)
    history = trainer.fit((x, y), epochs=2, batch_size=16, eval_data=others, eval_every=every, **options)
    return trainer, history, seen.history["accuracy"]


of_evaluated_runs = pytest.mark.xdist_group("runs that are evaluated")


@of_evaluated_runs
def test_evaluation_keeps_its_state_apart_from_training():
    """Evaluating in the middle of a window changes neither the training metrics nor the evaluation's."""
    (trainer, often, _), (_, seldom, _) = evaluated(2), evaluated(8)
    assert often["accuracy"] == seldom["accuracy"]
    assert often["eval/accuracy"][-1] == seldom["eval/accuracy"][-1]
    x, y = models.data(examples=64)
    outputs = trainer.predict(x)
    np.testing.assert_allclose(often["eval/accuracy"][-1], (outputs.argmax(-1) == (y + 1) % 3).mean(), rtol=1e-6)


@of_evaluated_runs
def test_evaluation_in_mid_epoch_leaves_the_metrics_of_the_epoch():
    """Callbacks of Keras see metrics over the epoch: evaluating in its middle is not part of them."""
    (*_, often), (*_, seldom) = evaluated(2), evaluated(8)
    assert len(often) == 2
    assert often == seldom


def test_options_of_the_pipeline_need_minimize():
    class Around(looper.Trainer):
        def build(self):
            self.model, self.optimizer = line.model(), keras.optimizers.SGD(0.1)

        def train_step(self, batch):
            with tf.GradientTape() as tape:
                loss = tf.reduce_mean((self.model(batch[0], training=True) - batch[1]) ** 2)
            variables = self.model.trainable_variables
            self.optimizer.apply(tape.gradient(loss, variables), variables)
            return {"loss": loss}

    Around().fit((line.X, line.X), epochs=1, progress=False)
    for options, name in (({"ema": 0.5}, "ema"), ({"clip_norm": 1.0}, "clip_norm")):
        with pytest.raises(looper.InputError, match=f"{name} act.* in self.minimize"):
            Around(**options).fit((line.X, line.X), epochs=1, progress=False)
