"""What a recipe may return and override, against a loop written by hand."""

import functools
import warnings

import keras
import numpy as np
import pytest
import tensorflow as tf

import looper
from tests.support import inside, line, models

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


class Around(looper.Trainer):
    """Goes around `minimize`, with the optimizer or by hand; before it may be one step with `minimize`."""

    def __init__(self, how="apply", first=False, optimizer=None, **options):
        self.how, self.first, self.made = how, first, optimizer or (lambda: keras.optimizers.SGD(0.1))
        super().__init__(**options)

    def build(self):
        self.model, self.optimizer = line.model(), self.made()
        self.optimizer.build(self.model.trainable_variables)

    def train_step(self, batch):
        with tf.GradientTape(persistent=True) as tape:
            losses = (self.model(batch[0], training=True) - batch[1]) ** 2
            loss = tf.reduce_mean(losses)
        if self.first:
            self.minimize(losses, tape)
        variables = self.model.trainable_variables
        gradients = tape.gradient(loss, variables)
        if self.how == "apply":
            self.optimizer.apply(gradients, variables)
        elif self.how == "apply_gradients":
            self.optimizer.apply_gradients(zip(gradients, variables, strict=True))
        elif self.how == "by hand":
            variables[0].assign_sub(0.1 * gradients[0])
        return {"loss": loss}

    def go(self):
        return self.fit((line.X, line.X), epochs=1, progress=False)


def scaled():
    return keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD(0.1))


@pytest.mark.parametrize("execution", ["graph", "xla_step", "eager"])
@pytest.mark.parametrize("how", ["apply", "apply_gradients"])
def test_an_update_that_goes_around_minimize_is_told(how, execution):
    """On one device it is warned of, at the recipe's line; options that it would go around are an error."""
    with pytest.warns(UserWarning, match=r"train_step calls SGD.apply: .* self.minimize\(loss, tape, optim") as told:
        Around(how, execution=execution).go()
    if how == "apply":
        assert {warning.filename for warning in told} == {__file__}
    for options, name in (({"ema": 0.5}, "ema"), ({"clip_norm": 1.0}, "clip_norm"), ({"clip_value": 1.0}, "clip_v")):
        for first in (False, True):
            with pytest.raises(looper.InputError, match=f"train_step calls SGD.apply, which goes around {name}"):
                Around(how, first, execution=execution, **options).go()


@pytest.mark.parametrize("how", ["apply", "apply_gradients"])
@pytest.mark.parametrize("first", [False, True])
def test_an_update_that_goes_around_minimize_is_refused_on_replicas(how, first):
    with pytest.raises(looper.InputError, match=r"train_step calls SGD\.apply: on 2 replicas the gradients are those"):
        Around(how, first, **TWO).go()
    trainer = Around(how, first, optimizer=scaled, **TWO)
    with pytest.raises(looper.InputError, match=r"train_step calls LossScaleOptimizer\.apply: on 2 replicas"):
        trainer.go()
    assert "apply" not in vars(trainer.optimizer) and "apply" not in vars(trainer.optimizer.inner_optimizer)


def test_an_apply_of_the_users_own_is_put_back():
    trainer = Around("minimize", True)
    calls, apply = [], trainer.optimizer.apply
    trainer.optimizer.apply = own = lambda *args: calls.append(1) or apply(*args)
    trainer.go()
    assert trainer.optimizer.apply is own and calls


def test_minimize_alone_is_told_nothing():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Around("minimize", True).go()


def test_options_of_the_pipeline_need_minimize():
    for options, name in (({"ema": 0.5}, "ema"), ({"clip_norm": 1.0}, "clip_norm")):
        with pytest.raises(looper.InputError, match=f"{name} act.* in self.minimize"):
            Around("by hand", **options).go()


class More(looper.Trainer):
    """The default step with a log more, which is the same on all replicas, and one that is computed from another."""

    def train_step(self, batch):
        logs = super().train_step(batch)
        share = tf.reduce_mean(tf.cast(batch[1] == 0, tf.float32), keepdims=True)
        return {**logs, "one": tf.constant(1.0), "twice": 2 * logs["loss"], "zeros": share}


def of_the_default(kind, **options):
    x, y = models.data(examples=41)  # the last batch has one example
    parts = {"model": lambda: models.dense(norm=False), "optimizer": lambda: keras.optimizers.Adam(0.01)}
    metrics = {"metrics": lambda: [keras.metrics.SparseCategoricalAccuracy("accuracy")]}
    trainer = kind(**parts, **metrics, loss=models.cross_entropy, **options)
    trainer.fit((x, y), epochs=2, batch_size=8, log_every=looper.Every(steps=1), progress=False)
    return trainer, inside.values(trainer)


@pytest.mark.parametrize(
    "options",
    [
        {"execution": "graph"},
        {"execution": "graph", "accumulate": 3, "clip_norm": 0.1, "ema": 0.9},
        {"execution": "xla_loop"},
        {"execution": "eager"},
        {"execution": "graph", **TWO},
        {"execution": "graph", "accumulate": 2, "precision": "mixed_float16", **TWO},
    ],
    ids=str,
)
def test_the_default_step_inside_an_own_one(options):
    """The same bits: it accumulates, clips and averages, and its logs are of the global batch."""
    (mine, found), (default, expected) = of_the_default(More, **options), of_the_default(looper.Trainer, **options)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_array_equal(found[name], value, err_msg=name)
    for name in ("loss", "accuracy", "gradient_norm"):
        assert mine.history[name] == default.history[name], name
    assert list(mine.history.rows[0])[:3] == list(default.history.rows[0])[:3]
    assert set(mine.history["one"]) == {1.0}
    # float32
    np.testing.assert_allclose(mine.history["twice"], 2 * np.array(mine.history["loss"]), rtol=1e-6)
    _, y = models.data(examples=41)
    zeros = np.reshape(mine.history["zeros"], [2, 6]) @ ([8] * 5 + [1])
    np.testing.assert_allclose(zeros, [(y == 0).sum()] * 2, rtol=1e-6)


class Alone(looper.Trainer):
    def train_step(self, batch):
        return super().train_step(batch)


def test_the_default_step_inside_an_own_one_reduces_no_more():
    """All that it adds is the mean of the loss on each replica, whose sums are there."""
    counts = []
    for kind in (Alone, looper.Trainer):
        trainer, _ = of_the_default(kind, execution="graph", **TWO)
        [execution] = inside.executions(trainer)
        counts.append(inside.operations(trainer, execution))
    own, default = counts
    assert default["CollectiveReduceV2"] > 0
    more = {name: own[name] - default[name] for name in own | default if own[name] != default[name]}
    assert more == {"DivNoNan": 2}


def test_the_default_step_is_for_steps():
    trainer = of_the_default(looper.Trainer, execution="graph")[0]
    with pytest.raises(looper.InputError, match=r"^train_step\(\) was called outside a step: it needs the batch"):
        trainer.train_step(models.data(examples=8))


class Transformed(looper.Trainer):
    """Gradients without their mean over the first axis, and with noise of a generator that the trainer saves."""

    noise = 0.1

    def build(self):
        self.model, self.optimizer = models.dense(norm=False), keras.optimizers.SGD(0.1, momentum=0.9)
        self.loss, self.seeds = models.cross_entropy(), keras.random.SeedGenerator(3)

    def transform_gradients(self, gradients, variables):
        assert [v.shape for v in variables] == [g.shape for g in gradients]
        gradients = [g - tf.reduce_mean(g, 0, keepdims=True) if len(g.shape) > 1 else g for g in gradients]
        noise = [keras.random.normal(g.shape, seed=self.seeds, dtype=g.dtype) for g in gradients]
        return [g + self.noise * n for g, n in zip(gradients, noise, strict=True)]


class WithoutNoise(Transformed):
    noise = 0.0


def transformed(kind, steps=5, workdir=None, **options):
    trainer = kind(precision="float64", clip_norm=0.2, workdir=workdir, **options)
    x, y = models.data(examples=24, dtype="float64")
    trainer.fit((x, y), steps=steps, batch_size=8, shuffle=False, progress=False, log_every=looper.Every(steps=1))
    return trainer


def by_hand_without_noise():
    """Five steps with a clip of the centralized gradients."""
    x, y = models.data(examples=24, dtype="float64")
    trainer = WithoutNoise(precision="float64")
    model, optimizer, loss = trainer.model, trainer.optimizer, trainer.loss
    for step in range(5):
        part = slice(step % 3 * 8, step % 3 * 8 + 8)
        with tf.GradientTape() as tape:
            value = loss(y[part], model(x[part], training=True))
        gradients = tape.gradient(value, model.trainable_variables)
        gradients = [g - tf.reduce_mean(g, 0, keepdims=True) if len(g.shape) > 1 else g for g in gradients]
        optimizer.apply(tf.clip_by_global_norm(gradients, 0.2)[0], model.trainable_variables)
    return model.get_weights()


@pytest.mark.parametrize(
    "options",
    [{"execution": "graph"}, {"execution": "xla_loop"}, {"execution": "graph", "accumulate": 2, **TWO}],
    ids=str,
)
def test_gradients_are_transformed_after_the_reduction_and_before_the_clip(options):
    expected = by_hand_without_noise()
    for mine, theirs in zip(transformed(WithoutNoise, **options).model.get_weights(), expected, strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=0, atol=1e-9)


def test_replicas_stay_alike_whatever_a_transformation_draws(tmp_path):
    """And a run that is stopped draws on."""
    trainer = transformed(Transformed, execution="graph", **TWO)
    for variable in trainer.model.trainable_variables:
        one, other = (v.numpy() for v in trainer.strategy.experimental_local_results(variable.value))
        np.testing.assert_array_equal(one, other)
    transformed(Transformed, 2, tmp_path, execution="graph", **TWO)
    continued = inside.values(transformed(Transformed, 5, tmp_path, execution="graph", **TWO))
    for name, value in inside.values(trainer).items():
        np.testing.assert_array_equal(continued[name], value, err_msg=name)


@pytest.mark.parametrize("strategy", [{}, TWO])
def test_a_transformation_cannot_hide_what_is_infinite(strategy):
    class Hides(WithoutNoise):
        def transform_gradients(self, gradients, variables):
            return [tf.where(tf.math.is_finite(g), g, tf.zeros_like(g)) for g in gradients]

    trainer = Hides(execution="graph", **strategy)
    before = trainer.model.get_weights()
    x, y = models.data(examples=8)
    guard = looper.callbacks.NanGuard("skip")
    trainer.fit((x * np.inf, y), epochs=1, batch_size=8, callbacks=[guard], progress=False)
    for mine, theirs in zip(trainer.model.get_weights(), before, strict=True):
        np.testing.assert_array_equal(mine, theirs)


def test_a_transformation_returns_a_gradient_for_each():
    for said, returned in {
        "NoneType; expected 4 gradients, as given": lambda g: None,
        "3 things; expected 4 gradients": lambda g: g[1:],
        r"NoneType for .*kernel of shape \(6, 16\)": lambda g: [None, *g[1:]],
        r"a gradient of shape \(16,\) for .*kernel": lambda g: [g[1], *g[1:]],
    }.items():

        class Wrong(WithoutNoise):
            def transform_gradients(self, gradients, variables):
                return returned(gradients)  # noqa: B023  (used in this round alone)

        with pytest.raises(looper.InputError, match=f"transform_gradients returned {said}"):
            transformed(Wrong)
