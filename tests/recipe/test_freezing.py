"""Frozen layers do not change at all; unfrozen ones train on as a careful loop by hand would train them."""

import signal

import keras
import numpy as np
import pytest
import tensorflow as tf

import looper
from looper.recipe import precision
from looper.recipe.layers import walk
from looper.saved import checkpoint
from tests.support import inside, models
from tests.support.stopping import Stop, assert_same, everything

L = keras.layers
QUIET = {"progress": False, "shuffle": False}


@keras.saving.register_keras_serializable("tests")
class Block(L.Layer):
    """Holds layers, a weight and noise of its own."""

    def __init__(self, **options):
        super().__init__(**options)
        self.first, self.second = L.Dense(6, name="first"), L.Dense(6, name="second")
        self.norm, self.drop = L.BatchNormalization(name="norm"), L.Dropout(0.5, name="drop")

    def build(self, shape):
        self.scale = self.add_weight(shape=(6,), initializer="ones", name="scale")
        self.first.build(shape)
        self.second.build((None, 6))
        self.norm.build((None, 6))

    def call(self, x, training=None):
        x = self.second(self.norm(self.first(x)))
        return self.drop(x) * self.scale


class Subclassed(keras.Model):
    def __init__(self):
        super().__init__()
        self.parts = [L.Dense(6, name="in"), Block(name="block")]
        self.head = L.Dense(3, name="head")

    def call(self, x):
        for part in self.parts:
            x = part(x)
        return self.head(x)


def base():
    layers = [L.Dense(8, activation="tanh", name="in"), L.BatchNormalization(name="norm")]
    return keras.Sequential(
        [keras.Input((6,)), *layers, L.Dropout(0.5, name="drop"), L.Dense(6, name="out")], name="base"
    )


def sequential():
    return keras.Sequential([keras.Input((6,)), base(), Block(name="block"), L.Dense(3, name="head")])


def functional():
    x = keras.Input((6,))
    inner = base()(x, training=True)
    return keras.Model(x, L.Dense(3, name="head")(Block(name="block")(inner)))


def subclassed():
    model = Subclassed()
    model(np.zeros((1, 6)))
    return model


def trainer_of(model, optimizer=lambda: keras.optimizers.SGD(0.1, momentum=0.9), **options):
    options = {"execution": "graph", "seed": 3} | options
    return looper.Trainer(model=model, optimizer=optimizer, loss=models.cross_entropy, **options)


def values(layer):
    return [w.numpy() for w in layer.weights]


def assert_equal(one, other):
    for a, b in zip(one, other, strict=True):
        np.testing.assert_array_equal(a, b)


# a functional model is a Sequential one with more: this one calls its base in training mode whatever comes
@pytest.mark.parametrize("make", [functional, subclassed])
def test_nothing_in_a_frozen_layer_changes(make):
    x, y = models.data()
    trainer = trainer_of(make)
    looper.freeze(trainer.model, until="head")
    *body, head = (layer for layer in trainer.model.layers if layer.weights)
    before = [value for layer in body for value in values(layer)], values(head)
    trainer.fit((x, y), epochs=1, batch_size=10, **QUIET)
    assert_equal([value for layer in body for value in values(layer)], before[0])
    assert all((a != b).any() for a, b in zip(values(head), before[1], strict=True))
    np.testing.assert_array_equal(trainer.model(x, training=True), trainer.model(x, training=False))  # no dropout
    looper.unfreeze(trainer.model)
    with pytest.warns(UserWarning, match="are trainable now"):
        trainer.fit((x, y), epochs=2, batch_size=10, **QUIET)
    changed = [(a != b).any() for a, b in zip((v for layer in body for v in values(layer)), before[0], strict=True)]
    assert all(changed)
    assert (np.asarray(trainer.model(x, training=True)) != np.asarray(trainer.model(x, training=True))).any()


def test_dropout_of_a_frozen_layer_can_go_on():
    x, _ = models.data()
    model = base()
    looper.freeze(model, dropout=True)
    statistics = values(model.get_layer("norm"))
    assert (np.asarray(model(x, training=True)) != np.asarray(model(x, training=True))).any()
    assert_equal(values(model.get_layer("norm")), statistics)
    assert "drop" in looper.freeze(model)
    np.testing.assert_array_equal(model(x, training=True), model(x, training=False))
    assert "drop" in looper.freeze(model, dropout=True)
    assert (np.asarray(model(x, training=True)) != np.asarray(model(x, training=True))).any()


class Noise(L.Layer):
    def call(self, x, training=False):
        return x + keras.random.normal(keras.ops.shape(x)) if training else x


def around(layer, shape=(5, 6)):
    return keras.Sequential([keras.Input(shape), layer])


def attention():
    x = keras.Input((5, 6))
    return keras.Model(x, L.MultiHeadAttention(2, 3, dropout=0.5)(x, x))


RANDOM = {
    "dropout": lambda: around(L.Dropout(0.5)),
    "spatial": lambda: around(L.SpatialDropout1D(0.5)),
    "noise": lambda: around(L.GaussianNoise(1.0)),
    "own": lambda: around(Noise()),
    "time_distributed": lambda: around(L.TimeDistributed(L.Dropout(0.5))),
    "lstm": lambda: around(L.LSTM(4, dropout=0.5)),
    "gru_recurrent": lambda: around(L.GRU(4, recurrent_dropout=0.5)),
    "bidirectional": lambda: around(L.Bidirectional(L.LSTM(4, dropout=0.5))),
    "cells": lambda: around(L.RNN([L.GRUCell(4, dropout=0.5), L.SimpleRNNCell(3)])),
    "attention": attention,
    "spectral": lambda: around(L.SpectralNormalization(L.Dense(4))),
}


@pytest.mark.parametrize("name", RANDOM)
def test_every_kind_of_noise_stops_and_comes_back(name):
    model = RANDOM[name]()
    x = np.random.default_rng(0).normal(size=(4, 5, 6)).astype("float32")
    config = model.get_config()
    expected = model(x, training=False)
    assert (np.asarray(model(x, training=True)) != np.asarray(expected)).any()
    expected = model(x, training=False)
    weights = values(model)
    assert looper.freeze(model)
    np.testing.assert_array_equal(model(x, training=True), expected)
    np.testing.assert_array_equal(*tf.function(lambda: (model(x, training=True), model(x)))())
    assert_equal(values(model), weights)
    assert str(model.get_config()).replace("'trainable': False", "'trainable': True") == str(config)
    assert looper.unfreeze(model)
    assert (np.asarray(model(x, training=True)) != np.asarray(expected)).any()
    assert model.get_config() == config
    assert not any("call" in vars(layer) for layer in walk(model).values())


def test_augmentation_goes_on_in_frozen_layers():
    model = around(L.RandomFlip("horizontal"), (4, 4, 1))
    assert looper.freeze(model) == []
    x = np.random.default_rng(0).normal(size=(50, 4, 4, 1)).astype("float32")
    assert (np.asarray(model(x, training=True)) != x).any()


def test_a_frozen_model_is_saved_as_any_other(tmp_path):
    model = keras.Sequential([keras.Input((6,)), base(), L.Dense(3, name="head")])
    looper.freeze(model, until="head")
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    assert_equal(values(loaded), values(model))
    assert [v.path.split("/")[-2] for v in loaded.trainable_variables] == ["head", "head"]


def trained(model):
    return sorted("/".join(v.path.split("/")[-2:]) for v in model.trainable_variables)


def test_what_is_meant_by_names_paths_patterns_and_numbers():
    model = sequential()
    assert looper.freeze(model, until=-1) == ["base/in", "base/norm", "base/drop", "base/out", "block"]
    assert trained(model) == ["head/bias", "head/kernel"]
    assert looper.freeze(model, until=-1) == []
    assert looper.unfreeze(model, layers="base/out") == ["base/out"]
    assert trained(model) == ["head/bias", "head/kernel", "out/bias", "out/kernel"]
    assert looper.unfreeze(model, layers=["block/sec*", "nor*"]) == ["base/norm", "block/second", "block/norm"]
    looper.freeze(model)
    assert model.trainable_variables == []
    assert looper.unfreeze(model, since="base/out", batch_norm=False) == ["base/out", "block", "head"]
    assert trained(model) == [
        *("block/scale", "first/bias", "first/kernel", "head/bias", "head/kernel"),
        *("out/bias", "out/kernel", "second/bias", "second/kernel"),
    ]
    looper.unfreeze(model)
    assert looper.freeze(model, layers=model.get_layer("block").second) == ["block/second"]
    assert looper.freeze(model, until="base/norm") == ["base/in"]


def test_a_layer_inside_a_frozen_one_trains_alone():
    x, y = models.data()
    trainer = trainer_of(sequential)
    block = trainer.model.get_layer("block")
    looper.freeze(trainer.model)
    looper.unfreeze(trainer.model, layers="second")
    before = {v.path: v.numpy() for v in trainer.model.weights}
    trainer.fit((x, y), epochs=1, batch_size=10, **QUIET)
    changed = [v.path for v in trainer.model.weights if (v.numpy() != before[v.path]).any()]
    assert changed == [v.path for v in block.second.weights]
    assert looper.unfreeze(trainer.model, layers="block") == ["block"]
    assert block.scale.trainable


# The optimizer.


def small():
    """No randomness: a loop by hand can follow."""
    layers = [L.Dense(8, activation="tanh", name="one"), L.BatchNormalization(name="norm"), L.Dense(7, name="two")]
    return keras.Sequential([keras.Input((6,)), *layers, L.Dense(3, name="head")])


SCHEDULE = keras.optimizers.schedules.PolynomialDecay(0.05, 20, 0.01)
OPTIMIZERS = {
    "adamw": lambda rate: keras.optimizers.AdamW(rate, weight_decay=0.1),
    "sgd": lambda rate: keras.optimizers.SGD(rate, momentum=0.9, nesterov=True),
}


def by_hand(make_optimizer, rates, phases, x, y, steps):
    """Ordinary Keras: an optimizer for each group, made when its group begins to be trained."""
    model = small()
    looper.freeze(model)
    optimizers, step = [], 0
    for names, rate in zip(phases, rates, strict=True):
        looper.unfreeze(model, layers=list(names))
        variables = [v for name in names for v in model.get_layer(name).trainable_variables]
        optimizers.append((make_optimizer(1.0), variables, rate))
        optimizers[-1][0].build(variables)
        for _ in range(steps):
            start = step % 5 * 10
            with tf.GradientTape() as tape:
                outputs = model(x[start : start + 10], training=True)
                loss = models.cross_entropy()(y[start : start + 10], outputs)
            everything = [v for _, variables, _ in optimizers for v in variables]
            gradients = iter(tape.gradient(loss, [v.value for v in everything]))
            for optimizer, variables, rate in optimizers:
                optimizer.learning_rate = float(rate(step))
                optimizer.apply([next(gradients) for _ in variables], variables)
            step += 1
    return model


# how a schedule gets to a group's rate is one place, whatever the optimizer
@pytest.mark.parametrize(("name", "schedule"), [("adamw", False), ("sgd", True)])
def test_unfreezing_equals_a_loop_by_hand(name, schedule):
    """Head, then two more groups with learning rates of their own: moments and bias corrections go on, or begin."""
    x, y = models.data(dtype="float64")
    phases = [("head",), ("two",), ("one", "norm")]
    learning_rate = SCHEDULE if schedule else 0.05
    now = (lambda step: SCHEDULE(step)) if schedule else (lambda step: 0.05)
    rates = [now, lambda step: now(step) * 0.3, lambda step: now(step) * 0.04]

    def model():
        made = small()
        looper.freeze(made, until="head")
        return made

    trainer = trainer_of(model, lambda: OPTIMIZERS[name](learning_rate), precision="float64")
    given = [float(now(4)) * 0.3, float(now(8)) * 0.04]
    callback = looper.callbacks.Unfreeze(at=looper.Every(steps=4), layers=["two", ("one", "norm")], learning_rate=given)
    trainer.fit((x, y), steps=12, batch_size=10, callbacks=[callback], **QUIET)
    keras.utils.set_random_seed(3)
    with precision.scope("float64"):
        expected = by_hand(OPTIMIZERS[name], rates, phases, x, y, steps=4)
    for mine, other in zip(trainer.model.weights, expected.weights, strict=True):
        assert models.norm_difference(mine.numpy(), other.numpy()) < 1e-6, mine.path
    assert int(trainer.optimizer.iterations) == 12
    assert inside.kinds(trainer).count("train") == 3  # compiled anew once for each group
    assert [e.traces for e in inside.executions(trainer, "train")] == [1, 1, 1]


def test_unfreezing_between_two_fits_keeps_the_moments_and_begins_others():
    x, y = models.data(dtype="float64")

    def model():
        made = small()
        looper.freeze(made, until="head")
        return made

    parts = (model, lambda: OPTIMIZERS["adamw"](0.05))
    twice, once = (trainer_of(*parts, precision="float64") for _ in range(2))
    twice.fit((x, y), epochs=2, batch_size=10, **QUIET)
    looper.unfreeze(twice.model)
    with pytest.warns(UserWarning, match="are trainable now"):
        twice.fit((x, y), epochs=4, batch_size=10, **QUIET)
    unfreezing = looper.callbacks.Unfreeze(at=looper.Every(epochs=2))
    once.fit((x, y), epochs=4, batch_size=10, callbacks=[unfreezing], **QUIET)
    for a, b in zip(once.model.weights, twice.model.weights, strict=True):
        assert models.norm_difference(a.numpy(), b.numpy()) < 1e-12


def test_layers_of_one_name_keep_their_own_moments():
    def named():
        return keras.Sequential([keras.Input((6,)), L.Dense(6, use_bias=False, name="same")], name="twin")

    class Twins(looper.Trainer):
        def build(self):
            self.first, self.second = named(), named()
            self.first.trainable = False
            self.optimizer = keras.optimizers.SGD(0.1, momentum=0.9)

        def compute_loss(self, batch, training):
            return keras.ops.square(self.second(self.first(batch, training=training), training=training))

    trainer = Twins()
    x, _ = models.data(examples=20)
    trainer.fit(x, epochs=1, batch_size=10, **QUIET)
    [moments] = [v.numpy() for v in trainer.optimizer.variables if "momentum" in v.name]
    trainer.first.trainable = True
    trainer.optimizer.learning_rate = 0.0
    with pytest.warns(UserWarning, match="1 keep their values and 1 are new"):
        trainer.evaluate(x)
    first, second = (v.numpy() for v in trainer.optimizer.variables if "momentum" in v.name)
    np.testing.assert_array_equal(second, moments)
    np.testing.assert_array_equal(first, 0.0)


def test_a_loss_of_other_parts_begins_other_sums():
    class Recipe(looper.Trainer):
        def build(self):
            self.model, self.optimizer = small(), keras.optimizers.SGD(0.0)
            looper.freeze(self.model, until="head")

        def compute_loss(self, batch, training):
            x, y = batch
            outputs = self.model(x, training=training)
            loss = tf.reduce_mean(keras.losses.sparse_categorical_crossentropy(y, outputs, from_logits=True))
            trained = {f"log{i}": tf.reduce_sum(v.value**2) for i, v in enumerate(self.model.trainable_variables)}
            return loss, trained

    unfreezing = looper.callbacks.Unfreeze(at=looper.Every(steps=2))
    for execution in ("graph", "eager"):
        trainer = Recipe(execution=execution)
        history = trainer.fit(models.data(), epochs=1, batch_size=10, callbacks=[unfreezing], **QUIET)
        assert history["window"] == [3]
        norms = [np.square(v.numpy()).sum() for v in trainer.model.trainable_variables]
        np.testing.assert_allclose([history[f"log{i}"][-1] for i in range(len(norms))], norms, rtol=1e-5)


@pytest.mark.parametrize(
    "optimizer",
    [
        keras.optimizers.Adam,
        keras.optimizers.AdamW,
        keras.optimizers.Adamax,
        keras.optimizers.Adafactor,
        keras.optimizers.Adagrad,
        keras.optimizers.Adadelta,
        keras.optimizers.Ftrl,
        keras.optimizers.Lamb,
        keras.optimizers.Lion,
        keras.optimizers.Muon,
        keras.optimizers.Nadam,
        keras.optimizers.RMSprop,
        keras.optimizers.ScheduleFreeAdamW,
        keras.optimizers.SGD,
        lambda rate, **more: keras.optimizers.LossScaleOptimizer(keras.optimizers.Adam(rate, **more)),
    ],
)
def test_a_group_trains_as_with_an_optimizer_of_its_own(optimizer):
    """At a factor of its learning rate, decay included."""
    kernels = [np.random.default_rng(i).normal(size=(3, 4)).astype("float32") for i in range(2)]

    def train(variables, optimizer):
        for step in range(5):
            gradients = [keras.ops.sin(v * (step + 1.0)) for v in variables]
            optimizer.apply(gradients, variables)
        return [v.numpy() for v in variables]

    layers = [L.Dense(4, use_bias=False, name="slow"), L.Dense(4, use_bias=False, name="fast")]
    model = keras.Sequential(layers)
    for layer, kernel in zip(layers, kernels, strict=True):
        layer.build((None, 3))
        layer.kernel.assign(kernel)
    scaled = optimizer(0.2, weight_decay=0.3)
    looper.scale_learning_rate(scaled, model, {"slow": 0.25})
    together = train([layer.kernel for layer in layers], scaled)
    for found, kernel, rate in zip(together, kernels, (0.05, 0.2), strict=True):
        [alone] = train([keras.Variable(kernel)], optimizer(rate, weight_decay=0.3))
        np.testing.assert_allclose(found, alone, rtol=2e-6, atol=1e-6)
    assert np.abs(together[0] - train([keras.Variable(kernels[0])], optimizer(0.2, weight_decay=0.3))[0]).max() > 1e-3


def test_layers_that_were_frozen_when_they_were_built_can_be_trained():
    """Keras makes variables then that a GradientTape does not watch."""

    class Own(looper.Trainer):
        def build(self):
            self.model, self.loss = Subclassed(), models.cross_entropy()
            self.optimizer = keras.optimizers.SGD(0.1)
            looper.freeze(self.model, until="head")

        def train_step(self, batch):
            with tf.GradientTape(persistent=True) as tape:
                loss = self.compute_loss(batch, training=True)
            self.minimize(loss, tape)
            return {"loss": loss}

    def built():
        model = Subclassed()
        looper.freeze(model, until="head")
        model(np.zeros((1, 6)))
        assert not any(v.value.trainable for v in model.parts[0].weights)
        return model

    for trainer in (Own(), trainer_of(built)):
        unfreezing = looper.callbacks.Unfreeze(at=looper.Every(steps=2), layers="in")
        trainer.fit(models.data(), steps=2, batch_size=10, callbacks=[unfreezing], **QUIET)
        before = values(trainer.model.parts[0])
        trainer.fit(models.data(), steps=4, batch_size=10, callbacks=[unfreezing], **QUIET)
        assert all((a != b).any() for a, b in zip(values(trainer.model.parts[0]), before, strict=True))


def test_what_changes_between_two_fits_is_compiled_anew():
    trainer = trainer_of(sequential, lambda: keras.optimizers.SGD(0.1))
    fit = {"batch_size": 10, **QUIET}
    looper.freeze(trainer.model, until="head", dropout=True)
    trainer.fit(models.data(), epochs=1, **fit)
    seed = trainer.model.get_layer("base").get_layer("drop").seed_generator.state
    looper.freeze(trainer.model, until="head")
    looper.scale_learning_rate(trainer.optimizer, trainer.model, {"head": 0.0})
    before, head = seed.numpy(), values(trainer.model.get_layer("head"))
    trainer.fit(models.data(), epochs=2, **fit)
    np.testing.assert_array_equal(seed, before)
    assert_equal(values(trainer.model.get_layer("head")), head)


def discriminative(optimizer, **options):
    def model():
        made = small()
        looper.freeze(made, until="two")
        return made

    trainer = trainer_of(model, optimizer, precision="float64", **options)
    looper.scale_learning_rate(trainer.optimizer, trainer.model, {"two": 0.5, "one": 0.1})
    callback = looper.callbacks.Unfreeze(at=looper.Every(steps=4), layers="one")
    trainer.fit(models.data(dtype="float64"), steps=8, batch_size=10, callbacks=[callback], **QUIET)
    return values(trainer.model)


def multi():
    def choose(variable):
        return slow if "bias" in variable.path else fast

    slow, fast = keras.optimizers.SGD(0.02), keras.optimizers.AdamW(0.05)
    return keras.optimizers.MultiOptimizer(choose)


@pytest.mark.parametrize("optimizer", [lambda: OPTIMIZERS["adamw"](0.05), multi], ids=["adamw", "multi"])
def test_two_replicas_equal_one(optimizer):
    one = discriminative(optimizer)
    for a, b in zip(discriminative(optimizer, strategy="mirrored", devices=2), one, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("at", [looper.Every(steps=2), looper.Every(epochs=1)])
def test_logs_and_evaluations_know_what_is_trained(at):
    """Regularizers count while their layers are trained."""
    x, y = models.data()
    quiet = {"epochs": 2, "batch_size": 10, "log_every": looper.Every(steps=5), **QUIET}

    def model():
        layers = [L.Dense(8, kernel_regularizer=keras.regularizers.L2(1.0), name="in"), L.Dense(3, name="head")]
        made = keras.Sequential([keras.Input((6,)), *layers])
        looper.freeze(made, until="head")
        return made

    for execution in ("graph",) if at.epochs else ("graph", "eager"):
        trainer = trainer_of(model, lambda: keras.optimizers.SGD(0.0), execution=execution)
        plain = float(models.cross_entropy()(y, trainer.model(x)))
        penalty = float(np.square(trainer.model.get_layer("in").get_weights()[0]).sum())
        unfreezing = looper.callbacks.Unfreeze(at=at)
        history = trainer.fit((x, y), eval_data=(x, y), callbacks=[unfreezing], **quiet)
        share, after = (0.0, 0.0) if at.epochs else (0.6, 1.0)  # in the first epoch of five steps; at its end
        np.testing.assert_allclose(history["loss"], [plain + share * penalty, plain + penalty], rtol=1e-5)
        np.testing.assert_allclose(history["eval/loss"], [plain + after * penalty, plain + penalty], rtol=1e-5)


# What survives.


def gradual(workdir, callbacks=(), make=sequential, groups=("block", "base"), **options):
    def model():
        made = make()
        looper.freeze(made, until="head")
        return made

    options = {"ema": 0.8} | options
    trainer = trainer_of(model, lambda: keras.optimizers.AdamW(0.02), workdir=workdir, **options)
    rates = [0.01, 0.003][: len(groups)]
    unfreezing = looper.callbacks.Unfreeze(at=looper.Every(steps=4), layers=list(groups), learning_rate=rates)
    trainer.fit(
        models.data(),
        epochs=3,
        batch_size=10,
        log_every=looper.Every(steps=3),
        save_every=looper.Every(steps=2),
        callbacks=[unfreezing, *callbacks],
        progress=False,
    )
    return trainer


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """An undisturbed run: its folder and its trainer."""
    folder = tmp_path_factory.mktemp("undisturbed")
    return folder, gradual(folder)


@pytest.mark.xdist_group("freezing: one undisturbed run")
def test_a_run_that_is_killed_ends_with_the_same_bits(finished, tmp_path):
    """At the unfreezing of a group and before its next step, and after that of the next group."""
    for step in (4, 9):
        with pytest.raises(RuntimeError):
            gradual(tmp_path, [Stop(step, "exception")])
    assert_same(everything(gradual(tmp_path)), everything(finished[1]))


@pytest.mark.xdist_group("freezing: one undisturbed run")
def test_a_run_that_is_stopped_after_each_step_ends_with_the_same_bits(finished, tmp_path):
    """Of those around the unfreezing of a group, in step 4."""
    for step in (4, 5):
        with pytest.raises(KeyboardInterrupt):
            gradual(tmp_path, [Stop(step, signal.SIGINT)], steps_per_execution=1)
    assert_same(everything(gradual(tmp_path)), everything(finished[1]))


def test_two_replicas_that_are_killed_end_with_the_same_bits(tmp_path):
    options = {"strategy": "mirrored", "devices": 2, "groups": ("block",)}
    expected = everything(gradual(tmp_path / "undisturbed", **options))
    with pytest.raises(RuntimeError):
        gradual(tmp_path / "killed", [Stop(7, "exception")], **options)
    assert_same(everything(gradual(tmp_path / "killed", **options)), expected)


@pytest.mark.xdist_group("freezing: one undisturbed run")
def test_a_checkpoint_is_restored_by_hand_into_what_was_trained(finished):
    folder, done = finished
    for path in checkpoint.list_checkpoints(folder / "checkpoints")[-2:-1]:
        trainer = trainer_of(sequential, lambda: keras.optimizers.AdamW(0.02), ema=0.8)
        looper.freeze(trainer.model, until="head")
        trainer.fit(models.data(), steps=3, batch_size=10, progress=False)  # what it knows of these is forgotten
        trainer.restore(path)
        assert len(trainer.model.trainable_variables) == len(done.model.trainable_variables)
        trainer.fit(models.data(), epochs=3, batch_size=10, progress=False)
        np.testing.assert_array_equal(trainer.predict(models.data()[0]), done.predict(models.data()[0]))


def test_a_checkpoint_is_restored_by_hand_into_a_model_that_is_not_built(tmp_path):
    done = gradual(tmp_path, make=Subclassed, groups=("block", "in"))
    path = checkpoint.list_checkpoints(tmp_path / "checkpoints")[-2]
    trainer = trainer_of(Subclassed, lambda: keras.optimizers.AdamW(0.02), ema=0.8)
    trainer.restore(path)
    assert not trainer.model.built
    trainer.fit(models.data(), epochs=3, batch_size=10, progress=False)
    np.testing.assert_array_equal(trainer.predict(models.data()[0]), done.predict(models.data()[0]))


def test_a_script_that_unfreezes_by_hand_is_continued(tmp_path):
    """Two fits with an unfreezing in between, killed in the second: both run again, the first has nothing to do."""

    def script(workdir, callbacks=()):
        def model():
            made = small()
            looper.freeze(made, until="head")
            return made

        trainer = trainer_of(model, lambda: keras.optimizers.AdamW(0.02), workdir=workdir)
        saving = {"save_every": looper.Every(steps=2), "batch_size": 10, **QUIET}
        trainer.fit(models.data(), epochs=1, **saving)
        looper.unfreeze(trainer.model, since="norm")
        with pytest.warns(UserWarning, match="are trainable now"):
            trainer.fit(models.data(), epochs=2, callbacks=callbacks, **saving)
        return everything(trainer)

    expected = script(tmp_path / "undisturbed")
    with pytest.raises(RuntimeError):
        script(tmp_path / "killed", [Stop(9, "exception")])
    assert_same(script(tmp_path / "killed"), expected)


def test_the_best_weights_of_before_come_with_their_averages():
    class Back(looper.callbacks.Callback):
        every = looper.Every(steps=3)

        def on_step(self, step, logs):
            if step == 3:
                self.weights = self.run.weights()
                self.predicted = self.run.predict(models.data()[0])

        def on_fit_end(self):
            assert (self.run.predict(models.data()[0]) != self.predicted).any()
            self.run.set_weights(self.weights)
            np.testing.assert_array_equal(self.run.predict(models.data()[0]), self.predicted)

    gradual(None, [Back()])


def test_going_back_from_a_loss_that_is_not_finite_knows_the_new_layers():
    x, y = models.data(examples=60)
    x[47] = np.inf  # in step 5, after the unfreezing
    guard = looper.callbacks.NanGuard("rollback")

    def model():
        made = small()
        looper.freeze(made, until="head")
        return made

    trainer = trainer_of(model)
    unfreezing = looper.callbacks.Unfreeze(at=looper.Every(steps=4))
    with pytest.warns(UserWarning, match="goes back"):
        trainer.fit((x, y), epochs=1, batch_size=10, callbacks=[guard, unfreezing], steps_per_epoch=6, **QUIET)
    assert all(np.isfinite(value.numpy()).all() for value in inside.variables(trainer).values())


# What is wrong.


def fit_with(callback, model=sequential, optimizer=keras.optimizers.SGD):
    trainer = trainer_of(model, optimizer)
    looper.freeze(trainer.model, until="head")
    trainer.fit(models.data(), epochs=1, batch_size=10, callbacks=[callback()], **QUIET)


EVERY = looper.Every(epochs=1)
WRONG = {
    "no layer is called 'blok': did you mean 'block'": lambda m: looper.freeze(m, layers="blok"),
    "until='norm': 2 layers are called so; give one path of base/norm, block/norm": lambda m: looper.freeze(m, "norm"),
    "since=4: 'sequential.*' has 3 layers": lambda m: looper.unfreeze(m, since=4),
    "until='head' and layers='block': give one of them": lambda m: looper.freeze(m, until="head", layers="block"),
    "the layer 'other' is not in the model": lambda m: looper.freeze(m, layers=L.Dense(3, name="other")),
    "3.5 is float: expected a layer, its name": lambda m: looper.freeze(m, layers=3.5),
    r"layers=\[\]: expected at least one": lambda m: looper.freeze(m, layers=[]),
    "'model' is str: expected a Keras model": lambda m: looper.freeze("model"),
    "the factor of 'head' is -1: expected a number": lambda m: looper.scale_learning_rate(
        keras.optimizers.SGD(), m, {"head": -1}
    ),
    r"factors=\[0.1\]: expected a dict": lambda m: looper.scale_learning_rate(keras.optimizers.SGD(), m, [0.1]),
    r"Unfreeze\(at=Every\(minutes=1\)\): expected looper\.Every\(epochs": lambda m: looper.callbacks.Unfreeze(
        looper.Every(minutes=1)
    ),
    "2 groups and 3 learning rates": lambda m: looper.callbacks.Unfreeze(EVERY, ["a", "b"], [1e-3, 1e-4, 1e-5]),
    r"Unfreeze\(learning_rate=-1.0\): expected": lambda m: looper.callbacks.Unfreeze(EVERY, learning_rate=-1.0),
    r"Unfreeze\(layers=\[\]\): expected at least one": lambda m: looper.callbacks.Unfreeze(EVERY, []),
    "no layer is called 'bse': did you mean 'base'": lambda m: fit_with(
        lambda: looper.callbacks.Unfreeze(EVERY, "bse")
    ),
    r"Unfreeze\(layers='head'\): nothing there is frozen": lambda m: fit_with(
        lambda: looper.callbacks.Unfreeze(EVERY, "head")
    ),
    "the MultiOptimizer has 2 to relate it to": lambda m: fit_with(
        lambda: looper.callbacks.Unfreeze(EVERY, "base", 0.1), optimizer=multi
    ),
}


@pytest.mark.parametrize("message", WRONG)
def test_wrong_input_is_one_clear_line(message):
    model = sequential()
    with pytest.raises(looper.InputError, match=message) as error:
        WRONG[message](model)
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 300


def test_other_learning_rates_are_another_configuration(tmp_path):
    def run(factor):
        def optimizer():
            return keras.optimizers.SGD(0.1)

        class Recipe(looper.Trainer):
            def build(self):
                self.model, self.optimizer, self.loss = small(), optimizer(), models.cross_entropy()
                looper.scale_learning_rate(self.optimizer, self.model, {"one": factor})

        Recipe(workdir=tmp_path).fit(models.data(), epochs=1, batch_size=10, progress=False)

    run(0.1)
    run(0.1)
    with pytest.raises(looper.InputError, match=r"factors.* was 0.1, is now 0.2"):
        run(0.2)
