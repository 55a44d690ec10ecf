"""Faults that are planted, one of each kind and combinations: the effect of each is real, and the audit finds it.

For each: `real` shows, by training and evaluating and not by the audit, that the fault does what it is planted for;
then the audit must report exactly the findings that are listed, each at its path.
"""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf

import looper

L = keras.layers
X = np.random.default_rng(0).normal(1, 2, (16, 6)).astype("float32")
Y = np.random.default_rng(1).normal(size=(16, 16)).astype("float32")


class Block(L.Layer):
    """Batch normalization and dropout, called by `how(norm, dropout, x, training)`."""

    def __init__(self, how):
        super().__init__()
        self.norm, self.dropout, self.how = L.BatchNormalization(), L.Dropout(0.5), how

    def call(self, x, training=None):
        return self.how(self.norm, self.dropout, x, training=training)


def rightly(norm, dropout, x, training):
    return dropout(norm(x, training=training), training=training)


class Model(keras.Model):
    def __init__(self, how=rightly):
        super().__init__()
        self.dense, self.block = L.Dense(16, use_bias=False), Block(how)

    def call(self, x, training=None):
        return self.block(self.dense(x), training=training)


class Recipe(looper.Trainer):
    def build(self):
        super().build()
        self.optimizer, self.loss = keras.optimizers.SGD(0.01), keras.losses.MeanSquaredError()


def recipe(make, **options):
    return Recipe(model=make, **options)


# What is real, measured without the audit.


def train(trainer, **options):
    trainer.fit((X, Y), steps=1, batch_size=16, progress=False, **options)


def values(trainer, name):
    return {v.path: v.numpy() for v in trainer.model.variables if name in v.path}


def changes(trainer, name, act):
    """Whether `act` changes the model's variables whose path has `name` in it."""
    build(trainer)
    before = values(trainer, name)
    assert before, f"there is no variable {name!r}"
    act(trainer)
    return any(not np.array_equal(before[path], value) for path, value in values(trainer, name).items())


def build(trainer):
    if not trainer.model.built:
        trainer.model(X[:2], training=False)


def statistics_stay(trainer):
    return not changes(trainer, "moving_mean", train)


def statistics_move(trainer):
    return changes(trainer, "moving_mean", train)


def evaluation_moves_statistics(trainer):
    return changes(trainer, "moving_mean", lambda t: t.evaluate((X, Y)))


def no_mask_is_drawn(trainer):
    return not changes(trainer, "seed_generator_state", train)


def masks_are_drawn(trainer):
    return changes(trainer, "seed_generator_state", train)


def statistics_stay_and_no_mask_is_drawn(trainer):
    build(trainer)
    before = values(trainer, "moving_mean") | values(trainer, "seed_generator_state")
    train(trainer)
    after = values(trainer, "moving_mean") | values(trainer, "seed_generator_state")
    return all(np.array_equal(before[path], after[path]) for path in before)


def predictions_vary(trainer):
    return not np.array_equal(trainer.predict(X), trainer.predict(X))


def evaluations_vary(trainer):
    return trainer.evaluate((X, Y)) != trainer.evaluate((X, Y))


def fit_fails(match):
    def real(trainer):
        with pytest.raises(looper.InputError, match=match):
            train(trainer)
        return True

    return real


@dataclasses.dataclass(frozen=True)
class Fault:
    """A planted fault.

    Attributes:
        make: makes the trainer.
        real: whether the fault has its effect.
        found: the findings, as (severity, kind, path), notes left out.
    """

    name: str
    make: Callable[[], looper.Trainer]
    real: Callable[[looper.Trainer], bool]
    found: tuple[tuple[str, str, str], ...]
    batch: tuple = (X, Y)


# The recipe's own methods.


class ForgetsTheFlag(Recipe):
    def compute_loss(self, batch, training):
        x, y = batch
        return self.loss(y, self.model(x))


class AlwaysFalse(Recipe):
    def compute_loss(self, batch, training):
        x, y = batch
        return self.loss(y, self.model(x, training=False))


class OwnStepWithoutFlag(Recipe):
    def train_step(self, batch):
        x, y = batch
        with tf.GradientTape() as tape:
            loss = self.loss(y, self.model(x))
        self.minimize(loss, tape)
        return {"loss": loss}


class OutsideTheTape(Recipe):
    def train_step(self, batch):
        x, y = batch
        outputs = self.model(x, training=True)
        with tf.GradientTape() as tape:
            loss = self.loss(y, outputs)
        self.minimize(loss, tape)
        return {"loss": loss}


class EvaluatesInTraining(Recipe):
    def eval_step(self, batch):
        x, y = batch
        return {"loss": self.loss(y, self.model(x, training=True))}


class TensorFlag(Recipe):
    def compute_loss(self, batch, training):
        x, y = batch
        return self.loss(y, self.model(x, training=tf.constant(training)))


class UpdatesInEvaluation(Recipe):
    def eval_step(self, batch):
        x, y = batch
        with tf.GradientTape() as tape:
            loss = self.loss(y, self.model(x, training=False))
        variables = self.model.trainable_variables
        for variable, gradient in zip(variables, tape.gradient(loss, variables), strict=True):
            variable.assign_sub(0.1 * gradient)
        return {"loss": loss}


class CountsInEvaluation(Recipe):
    def build(self):
        super().build()
        self.seen = keras.Variable(0.0, trainable=False)

    def eval_step(self, batch):
        self.seen.assign_add(1.0)
        return super().eval_step(batch)


class TrainsTheHeadOnly(Recipe):
    """The naive way to freeze: the base's variables are not given to `minimize`."""

    def train_step(self, batch):
        with tf.GradientTape() as tape:
            loss = self.compute_loss(batch, training=True)
        self.minimize(loss, tape, variables=self.model.head.trainable_variables)
        return {"loss": loss}


class BaseAndHead(keras.Model):
    def __init__(self, base=None):
        super().__init__()
        self.base = base or keras.Sequential([keras.Input((6,)), L.Dense(8, name="d"), L.BatchNormalization(name="n")])
        self.head = L.Dense(16)

    def call(self, x, training=None):
        return self.head(self.base(x, training=training))


def base_whose_variables_are_frozen():
    model = BaseAndHead()
    for variable in model.base.trainable_variables:
        variable.trainable = False
    return model


def base_with_active_dropout():
    base = keras.Sequential([keras.Input((6,)), L.Dense(8), L.Dropout(0.5, name="drop")])
    base.trainable = False
    return BaseAndHead(base)


class ForgetsTheEncoder(Recipe):
    def build(self):
        super().build()
        self.encoder = keras.Sequential([keras.Input((6,)), L.Dense(6, name="encode", use_bias=False)])

    def train_step(self, batch):
        x, y = batch
        with tf.GradientTape() as tape:
            loss = self.loss(y, self.model(self.encoder(x, training=True), training=True))
        self.minimize(loss, tape, variables=self.model.trainable_variables)
        return {"loss": loss}


def encoder_stays(trainer):
    before = trainer.encoder.get_weights()
    train(trainer)
    return all(np.array_equal(a, b) for a, b in zip(before, trainer.encoder.get_weights(), strict=True))


class Distillation(Recipe):
    """The teacher is called in training mode, and its statistics move."""

    def build(self):
        super().build()
        self.teacher = keras.Sequential([keras.Input((6,)), L.Dense(16, name="d"), L.BatchNormalization(name="n")])

    def train_step(self, batch):
        x, _ = batch
        target = self.teacher(x, training=True)
        with tf.GradientTape() as tape:
            loss = self.loss(target, self.model(x, training=True))
        self.minimize(loss, tape, variables=self.model.trainable_variables)
        return {"loss": loss}


def teacher_moves(trainer):
    norm = trainer.teacher.get_layer("n")
    before = norm.moving_mean.numpy()
    train(trainer)
    return not np.array_equal(before, norm.moving_mean.numpy())


class Gan(Recipe):
    """The generator is called without a flag."""

    def build(self):
        self.model = keras.Sequential([keras.Input((6,)), L.Dense(6, name="g"), L.BatchNormalization(name="n")])
        self.critic = keras.Sequential([keras.Input((6,)), L.Dense(1), L.Dropout(0.5)])
        self.optimizer = keras.optimizers.SGD(0.01)
        self.critic_optimizer = keras.optimizers.SGD(0.01)

    def train_step(self, batch):
        x, _ = batch
        with tf.GradientTape() as g_tape, tf.GradientTape() as c_tape:
            made = self.model(x)
            fake, true = self.critic(made, training=True), self.critic(x, training=True)
            g_loss, c_loss = -tf.reduce_mean(fake), tf.reduce_mean(fake) - tf.reduce_mean(true)
        self.minimize(g_loss, g_tape, variables=self.model.trainable_variables)
        self.minimize(c_loss, c_tape, self.critic_optimizer, self.critic.trainable_variables)
        return {"loss": g_loss}

    def eval_step(self, batch):
        return {"loss": tf.reduce_mean(self.model(batch[0], training=False))}


class HalfLoss(Recipe):
    def compute_loss(self, batch, training):
        x, y = batch
        return tf.cast(tf.square(self.model(x, training=training) - y), tf.float16)


def loss_is_half(trainer):
    loss = trainer.compute_loss((tf.constant(X), tf.constant(Y * 1e4)), training=False)
    return not np.isfinite(loss.numpy()).all()


# Layers.


class Counts(L.Layer):
    def build(self, shape):
        self.count = self.add_weight(name="count", initializer="zeros", trainable=False)

    def call(self, x):
        self.count.assign_add(1.0)
        return x


class Renormalizes(L.Layer):
    """Normalizes its weight in evaluation too."""

    def build(self, shape):
        self.w = self.add_weight(name="w", shape=(shape[-1], 16))

    def call(self, x):
        self.w.assign(tf.math.l2_normalize(self.w))
        return x @ self.w


class AlwaysNoise(L.Layer):
    def call(self, x):
        return x + tf.random.normal(tf.shape(x))


class Conditional(L.Layer):
    def call(self, x, training=None):
        return tf.nn.relu(x) if training else tf.nn.sigmoid(x)


class Declared(L.Layer):
    """Says that it depends on the flag, which its code hides."""

    mode_sensitive = True

    def call(self, x, **flags):
        return x * (2.0 if flags.get("training") else 1.0)


class TrueByDefault(L.Layer):
    def __init__(self):
        super().__init__()
        self.norm = L.BatchNormalization()

    def call(self, x, training=True):
        return self.norm(x, training=training)


class Unused(keras.Model):
    def __init__(self):
        super().__init__()
        self.dense, self.head = L.Dense(16), L.Dense(3)

    def call(self, x, training=None):
        self.head(x)
        return self.dense(x)


class Untracked(L.Layer):
    """The custom layer of a question: a tf.Variable, which Keras 3 does not find."""

    def __init__(self, name):
        super().__init__(name=name)
        self.w = tf.Variable(tf.random.normal([16, 16]))

    def call(self, x, training=None):
        if training:
            self.w.assign(tf.math.l2_normalize(self.w))
        return tf.matmul(x, self.w)


def is_not_trained(trainer):
    w = trainer.model.layers[-1].w
    train(trainer)
    tracked = any(getattr(v, "value", v) is w for v in trainer.model.variables)
    return not tracked and w.trainable


class Module(tf.Module):
    def __init__(self):
        super().__init__()
        self.w = tf.Variable(np.full((6, 16), 0.1, "float32"), name="w")
        self.noisy = Noisy()

    def __call__(self, x, training=False):
        return self.noisy(x @ self.w, training=False)


class Noisy(tf.Module):
    def __call__(self, x, training=False):
        return tf.nn.dropout(x, 0.5) if training else x


class Plain(looper.Trainer):
    """Without Keras, but for the optimizer."""

    def build(self):
        self.net = Module()
        self.optimizer = keras.optimizers.SGD(0.01)

    def compute_loss(self, batch, training):
        outputs = self.net(batch[0], training=training)
        zeros = tf.reduce_mean(tf.cast(outputs == 0, tf.float32))
        return tf.reduce_mean((outputs - batch[1]) ** 2, -1), {"zeros": zeros}


def module_drops_nothing(trainer):
    return trainer.fit((X, Y), steps=1, batch_size=16, progress=False)["zeros"] == [0.0]


class Shared(keras.Model):
    """One dropout called twice: as it should be, and always with True."""

    def __init__(self):
        super().__init__()
        self.dense, self.drop = L.Dense(16), L.Dropout(0.5)

    def call(self, x, training=None):
        return self.drop(self.dense(x), training=training) + self.drop(self.dense(x), training=True)


class Wrapped(keras.Model):
    """Wrappers, called with False."""

    def __init__(self, wrapped, false_to_it=True):
        super().__init__()
        self.first, self.drop, self.wrapped, self.last = L.Dense(6), L.Dropout(0.5), wrapped, L.Dense(16)

    def call(self, x, training=None):
        x = self.drop(self.first(x), training=training)
        return self.last(L.Flatten()(self.wrapped(x[:, None], training=False)))


class Augments(keras.Model):
    def __init__(self):
        super().__init__()
        self.flip, self.flat, self.drop, self.dense = L.RandomFlip(), L.Flatten(), L.Dropout(0.1), L.Dense(16)

    def call(self, x, training=None):
        x = self.flip(tf.reshape(x, [-1, 2, 3, 1]), training=False)
        return self.dense(self.drop(self.flat(x), training=training))


def sequential(*layers):
    return lambda: keras.Sequential([keras.Input((6,)), *(layer() for layer in layers)])


def dense():
    return L.Dense(16, name="dense")


def functional(base_trainable, *, norm=True):
    def make():
        layers = [L.BatchNormalization(name="n")] if norm else []
        base = keras.Sequential([keras.Input((6,)), L.Dense(8), *layers, L.Dropout(0.5, name="drop")], name="base")
        base.trainable = base_trainable
        inputs = keras.Input((6,))
        return keras.Model(inputs, L.Dense(16)(base(inputs, training=False)))

    return make


def blocks(how):
    return lambda: recipe(lambda: Model(how))


def nothing_gets_through(trainer):
    return float(tf.reduce_max(tf.abs(trainer.model(X, training=True)))) == 0.0


def normalizes_to_zero(trainer):
    return float(np.abs(trainer.model.layers[-1](trainer.model.layers[0](X[:1]), training=True)).max()) == 0.0


def gradient_is_zero(trainer):
    with tf.GradientTape() as tape:
        loss = tf.reduce_mean((trainer.model(X, training=True) - Y) ** 2)
    return not np.any(tape.gradient(loss, trainer.model.get_layer("dead").kernel.value))


def loses_small_probabilities(trainer):
    logits = np.zeros((1, 6), "float32")
    outputs = trainer.model.layers[-1](tf.constant([[0.0, -20.0]], trainer.model.layers[-1].compute_dtype))
    del logits
    return outputs.dtype == tf.float16 and float(outputs[0, 1]) == 0.0


def draws_nothing(trainer, generators):
    before = [generator.state.numpy() for generator in generators]
    train(trainer)
    return all(np.array_equal(a, b.state) for a, b in zip(before, generators, strict=True))


def cells_drop_nothing(trainer):
    build(trainer)
    trainer.model.drop.rate = 0.0  # so that theirs is the only dropout (LSTM draws masks that it does not use)
    return np.array_equal(trainer.model(X, training=True), trainer.model(X, training=True))


def flip_draws_nothing(trainer):
    return draws_nothing(trainer, [trainer.model.flip.generator])


class UpsideDown(L.Dropout):
    def call(self, x, training=False):
        return super().call(x, training=not training)


class Helped(L.Layer):
    """Its flag is read in another method."""

    def call(self, x, training=None):
        return self.switch(x, training=training)

    def switch(self, x, training):
        return tf.nn.relu(x) if training else tf.nn.sigmoid(x)


def first_line_of(function):
    """As a finding names it."""
    return f"{Path(function.__code__.co_filename).name}:{function.__code__.co_firstlineno + 1}"


class OwnDropout(keras.Model):
    """Random numbers in the model's own call, before a layer that is innocent."""

    def __init__(self):
        super().__init__()
        self.first, self.last = L.Dense(8), L.Dense(16)

    def call(self, x):
        return self.last(tf.nn.dropout(self.first(x), 0.5))


class ModuleTeacher(Recipe):
    """The student, called after a module, does not get the flag."""

    def build(self):
        super().build()
        self.teacher = Module()

    def train_step(self, batch):
        target = self.teacher(batch[0], training=False)
        with tf.GradientTape() as tape:
            loss = self.loss(target, self.model(batch[0], training=False))
        self.minimize(loss, tape, variables=self.model.trainable_variables)
        return {"loss": loss}


class InAFunction(Recipe):
    """The model is called without the flag, in a tf.function of the recipe's own."""

    def build(self):
        super().build()
        self.called = tf.function(lambda x: self.model(x))

    def compute_loss(self, batch, training):
        return self.loss(batch[1], self.called(batch[0]))


FAULTS = [
    Fault(
        "dropout upside down",
        lambda: recipe(sequential(dense, lambda: UpsideDown(0.5, name="u"))),
        lambda trainer: np.any(trainer.predict(X) == 0) and not np.any(trainer.model(X, training=True) == 0),
        (("error", "against-the-flag", "model/u"), ("warning", "evaluation-varies", "model/u")),
    ),
    Fault(
        "False to a layer that reads it in another method",
        lambda: recipe(lambda: Own(Helped())),
        lambda trainer: float(tf.reduce_min(trainer.model(X, training=True))) > 0,
        (("error", "hard-coded", "model/own"),),
    ),
    Fault(
        "random numbers in the model's own call",
        lambda: recipe(OwnDropout),
        predictions_vary,
        (("warning", "evaluation-varies", "model"), ("warning", "undriven-random", first_line_of(OwnDropout.call))),
    ),
    Fault(
        "False to the model, after a module",
        lambda: ModuleTeacher(model=Model),
        statistics_stay_and_no_mask_is_drawn,
        (("error", "hard-coded", "model"), ("warning", "no-optimizer", "teacher/w")),
    ),
    Fault(
        "the flag forgotten in a tf.function",
        lambda: InAFunction(model=Model),
        statistics_stay_and_no_mask_is_drawn,
        (("error", "no-flag", "model"),),
    ),
    Fault(
        "compute_loss without the flag",
        lambda: ForgetsTheFlag(model=Model),
        statistics_stay_and_no_mask_is_drawn,
        (("error", "no-flag", "model"),),
    ),
    Fault(
        "compute_loss with False",
        lambda: AlwaysFalse(model=Model),
        statistics_stay_and_no_mask_is_drawn,
        (("error", "hard-coded", "model"),),
    ),
    Fault(
        "train_step without the flag",
        lambda: OwnStepWithoutFlag(model=Model),
        statistics_stay_and_no_mask_is_drawn,
        (("error", "no-flag", "model"),),
    ),
    Fault(
        "train_step outside the tape",
        lambda: OutsideTheTape(model=Model),
        fit_fails("no gradient reaches"),
        (("error", "outside-tape", "model"),),
    ),
    Fault(
        "eval_step with True",
        lambda: EvaluatesInTraining(model=Model),
        evaluation_moves_statistics,
        (("error", "trains-in-evaluation", "model"),),
    ),
    Fault(
        "a tensor as the flag",
        lambda: TensorFlag(model=Model),
        fit_fails("model: the step gives it training= as a"),
        (("error", "tensor-flag", "model"),),
    ),
    Fault(
        "None passed on purpose",
        blocks(lambda norm, dropout, x, training: dropout(norm(x, training=None), training=training)),
        statistics_stay,
        (("error", "explicit-none", "model/block/norm"),),
    ),
    Fault(
        "None that leaks",
        blocks(lambda norm, dropout, x, training: dropout(norm(x, training=None))),
        statistics_stay_and_no_mask_is_drawn,
        (("error", "explicit-none", "model/block/norm"), ("error", "leaked-flag", "model/block/dropout")),
    ),
    Fault(
        "False to batch normalization",
        blocks(lambda norm, dropout, x, training: dropout(norm(x, training=False), training=training)),
        statistics_stay,
        (("warning", "hard-coded", "model/block/norm"),),
    ),
    Fault(
        "False that leaks",
        blocks(lambda norm, dropout, x, training: norm(dropout(x, training=False))),
        statistics_stay_and_no_mask_is_drawn,
        (("error", "hard-coded", "model/block/dropout"), ("error", "leaked-flag", "model/block/norm")),
    ),
    Fault(
        "True to batch normalization",
        blocks(lambda norm, dropout, x, training: dropout(norm(x, training=True), training=training)),
        evaluation_moves_statistics,
        (("error", "trains-in-evaluation", "model/block/norm"),),
    ),
    Fault(
        "True to dropout",
        blocks(lambda norm, dropout, x, training: dropout(norm(x, training=training), training=True)),
        predictions_vary,
        (("warning", "trains-in-evaluation", "model/block/dropout"),),
    ),
    Fault(
        "True that leaks into evaluation",
        blocks(lambda norm, dropout, x, training: norm(dropout(x, training=True))),
        evaluation_moves_statistics,
        (
            ("error", "leaked-flag", "model/block/norm"),
            ("warning", "trains-in-evaluation", "model/block/dropout"),
        ),
    ),
    Fault(
        "a Functional model's own False, overridden",
        lambda: recipe(functional(True)),
        statistics_move,
        (("error", "overridden", "model/base"),),
    ),
    Fault(
        "a Functional model's own False, overridden, frozen with dropout",
        lambda: recipe(functional(False, norm=False)),
        masks_are_drawn,
        (("warning", "frozen-dropout", "model/base/drop"),),
    ),
    Fault(
        "frozen by leaving it out of minimize",
        lambda: TrainsTheHeadOnly(model=BaseAndHead),
        statistics_move,
        (
            ("error", "frozen-statistics-move", "model/base/n"),
            ("warning", "no-optimizer", "model/base/d/kernel"),
        ),
    ),
    Fault(
        "frozen by its variables",
        lambda: recipe(base_whose_variables_are_frozen),
        statistics_move,
        (("error", "frozen-statistics-move", "model/base/n"),),
    ),
    Fault(
        "frozen with dropout active",
        lambda: recipe(base_with_active_dropout),
        masks_are_drawn,
        (("warning", "frozen-dropout", "model/base/drop"),),
    ),
    Fault(
        "a counter that evaluation moves",
        lambda: recipe(sequential(dense, lambda: Counts(name="counts"))),
        lambda trainer: changes(trainer, "count", lambda t: t.evaluate((X, Y))),
        (("warning", "changed-by-evaluation", "model/counts/count"),),
    ),
    Fault(
        "a weight that evaluation changes",
        lambda: recipe(sequential(lambda: Renormalizes(name="r"))),
        lambda trainer: changes(trainer, "w", lambda t: t.evaluate((X, Y))),
        (("error", "changed-by-evaluation", "model/r/w"),),
    ),
    Fault(
        "an update in eval_step",
        lambda: UpdatesInEvaluation(model=sequential(dense)),
        lambda trainer: changes(trainer, "kernel", lambda t: t.evaluate((X, Y))),
        (("error", "changed-by-evaluation", "model/dense/kernel"),),
    ),
    Fault(
        "a trainer's own counter in eval_step",
        lambda: CountsInEvaluation(model=sequential(dense)),
        lambda trainer: [trainer.evaluate((X, Y)), float(trainer.seen)][1] > 0,
        (("warning", "changed-by-evaluation", "seen"),),
    ),
    Fault(
        "noise in evaluation",
        lambda: recipe(sequential(dense, lambda: AlwaysNoise(name="noise"))),
        evaluations_vary,
        (
            ("warning", "evaluation-varies", "model/noise"),
            ("warning", "undriven-random", first_line_of(AlwaysNoise.call)),
        ),
    ),
    Fault(
        "a trainable layer that is not used",
        lambda: recipe(Unused),
        fit_fails("no gradient reaches"),
        (("error", "no-gradient", "model/head/kernel"),),
    ),
    Fault(
        "a gradient that is zero",
        lambda: recipe(
            sequential(
                lambda: L.Dense(4, "relu", bias_initializer=keras.initializers.Constant(-1e3), name="dead"), dense
            )
        ),
        gradient_is_zero,
        (("warning", "zero-gradient", "model/dead/kernel"),),
    ),
    Fault(
        "a model that no optimizer owns",
        lambda: ForgetsTheEncoder(model=sequential(dense)),
        encoder_stays,
        (("warning", "no-optimizer", "encoder/encode/kernel"),),
    ),
    Fault(
        "a tf.Variable in a Keras layer",
        lambda: recipe(sequential(dense, lambda: Untracked(name="u"))),
        is_not_trained,
        (("error", "no-optimizer", "model/u/w"),),
    ),
    Fault(
        "dropout rate 1",
        lambda: recipe(sequential(dense, lambda: L.Dropout(1.0, name="drop"))),
        nothing_gets_through,
        (("error", "rate-1", "model/drop"), ("error", "no-gradient", "model/dense/kernel")),
    ),
    Fault(
        "batch normalization of one example",
        lambda: recipe(sequential(dense, lambda: L.BatchNormalization(name="n")), accumulate=16),
        normalizes_to_zero,
        (("error", "statistics-of-one", "model/n"), ("warning", "zero-gradient", "model/dense/kernel")),
    ),
    Fault(
        "softmax in float16",
        lambda: recipe(sequential(dense, lambda: L.Softmax(name="softmax")), precision="mixed_float16"),
        loses_small_probabilities,
        (("warning", "float16-softmax", "model/softmax"),),
    ),
    Fault(
        "a loss in float16",
        lambda: HalfLoss(model=sequential(dense)),
        loss_is_half,
        (("error", "float16-loss", "compute_loss"),),
    ),
    Fault(
        "a module without Keras",
        Plain,
        module_drops_nothing,
        (("error", "hard-coded", "net/noisy"),),
    ),
    Fault(
        "a shared layer called with True once",
        lambda: recipe(Shared),
        predictions_vary,
        (("warning", "trains-in-evaluation", "model/drop"),),
    ),
    Fault(
        "False to a TimeDistributed",
        lambda: recipe(lambda: Wrapped(L.TimeDistributed(L.BatchNormalization(name="n")))),
        statistics_stay,
        (("warning", "hard-coded", "model/wrapped"),),
    ),
    Fault(
        "False to a Bidirectional LSTM with dropout",
        lambda: recipe(lambda: Wrapped(L.Bidirectional(L.LSTM(3, dropout=0.5)))),
        cells_drop_nothing,
        # of one time step, from a state of zeros
        (
            ("warning", "hard-coded", "model/wrapped"),
            ("warning", "zero-gradient", "model/wrapped/forward_layer/cell/recurrent_kernel"),
        ),
    ),
    Fault(
        "False to an augmentation",
        lambda: recipe(Augments),
        flip_draws_nothing,
        (("warning", "hard-coded", "model/flip"),),
    ),
    Fault(
        "False to a layer with its own code",
        lambda: recipe(lambda: Own(Conditional())),
        lambda trainer: float(tf.reduce_min(trainer.model(X, training=True))) > 0,
        (("error", "hard-coded", "model/own"),),
    ),
    Fault(
        "False to a layer that declares itself",
        lambda: recipe(lambda: Own(Declared())),
        lambda trainer: np.array_equal(trainer.model(X, training=True), trainer.model(X, training=False)),
        (("error", "hard-coded", "model/own"),),
    ),
    Fault(
        "a teacher in training mode",
        lambda: Distillation(model=sequential(dense)),
        teacher_moves,
        (
            ("error", "frozen-statistics-move", "teacher/n"),
            ("warning", "no-optimizer", "teacher/d/kernel"),
        ),
    ),
    Fault(
        "a generator without the flag",
        Gan,
        statistics_stay,
        (("error", "no-flag", "model"),),
    ),
    Fault(
        "an eval_step without the flag, and a default of True",
        lambda: EvaluatesWithoutFlag(model=lambda: OnTop(TrueByDefault())),
        evaluation_moves_statistics,
        (("error", "trains-in-evaluation", "model/own"),),
    ),
    Fault(
        "several at once",
        lambda: HardCodedAndForgotten(model=lambda: Model(none_to_both)),
        statistics_stay_and_no_mask_is_drawn,
        (
            ("error", "explicit-none", "model/block/norm"),
            ("error", "explicit-none", "model/block/dropout"),
            ("warning", "changed-by-evaluation", "seen"),
        ),
    ),
]


def none_to_both(norm, dropout, x, training):
    return dropout(norm(x, training=None), training=None)


class HardCodedAndForgotten(CountsInEvaluation):
    pass


class Own(keras.Model):
    """A layer that is called with False."""

    def __init__(self, own):
        super().__init__()
        self.dense, self.own = L.Dense(16), own

    def call(self, x, training=None):
        return self.own(self.dense(x), training=False)


class OnTop(Own):
    def call(self, x):
        return self.own(self.dense(x))


class EvaluatesWithoutFlag(Recipe):
    def eval_step(self, batch):
        x, y = batch
        return {"loss": self.loss(y, self.model(x))}


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_the_fault_is_real_and_is_found(fault):
    keras.utils.set_random_seed(0)
    assert fault.real(fault.make())
    report = fault.make().audit(fault.batch)
    found = {(f.severity, f.kind, path) for f in report.findings for path in (f.path, *f.also) if f.severity != "note"}
    assert found >= set(fault.found), f"{report}"
    unexpected = {entry[:2] for entry in found} - {entry[:2] for entry in fault.found}
    assert not unexpected, f"{report}"
