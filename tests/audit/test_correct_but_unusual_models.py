"""Models that are right and unusual: the audit has no finding of severity "error" for any, and trains what they train.

Each case also says what must be in the report: the `training` values of a layer, or what it did.
"""

import dataclasses
from collections.abc import Callable

import keras
import numpy as np
import pytest
import tensorflow as tf

import looper

L = keras.layers
X = np.random.default_rng(0).normal(1, 2, (16, 6)).astype("float32")
Y = np.random.default_rng(1).normal(size=(16, 4)).astype("float32")
STEPS = np.random.default_rng(2).normal(size=(16, 5, 6)).astype("float32")
WORDS = np.random.default_rng(3).integers(0, 9, (16, 5))


class Recipe(looper.Trainer):
    def build(self):
        super().build()
        self.optimizer, self.loss = keras.optimizers.SGD(0.01), keras.losses.MeanSquaredError()


def small_base(**options):
    layers = [L.Dense(8, name="d"), L.BatchNormalization(name="n"), L.ReLU(), L.Dropout(0.5, name="drop")]
    return keras.Sequential([keras.Input((6,)), *layers], **options)


def functional_frozen_base():
    """Keras' guide to transfer learning."""
    base = keras.Sequential([keras.Input((6,)), L.Dense(8), L.BatchNormalization(name="n")], name="base")
    base.trainable = False
    inputs = keras.Input((6,))
    return keras.Model(inputs, L.Dense(4)(base(inputs, training=False)))


class FineTuned(keras.Model):
    """The same guide's fine-tuning: trained, in inference mode."""

    def __init__(self):
        super().__init__()
        self.base, self.drop, self.head = small_base(), L.Dropout(0.2), L.Dense(4)

    def call(self, x, training=None):
        return self.head(self.drop(self.base(x, training=False), training=training))


class Gan(looper.Trainer):
    def build(self):
        self.model = keras.Sequential([keras.Input((6,)), L.Dense(6), L.BatchNormalization(name="n")])
        self.critic = keras.Sequential([keras.Input((6,)), L.Dense(1), L.Dropout(0.5, name="drop")])
        self.optimizer, self.critic_optimizer = keras.optimizers.SGD(0.01), keras.optimizers.SGD(0.01)

    def train_step(self, batch):
        x, _ = batch
        with tf.GradientTape() as g_tape, tf.GradientTape() as c_tape:
            made = self.model(x, training=True)
            fake, true = self.critic(made, training=True), self.critic(x, training=True)
            g_loss, c_loss = -tf.reduce_mean(fake), tf.reduce_mean(fake) - tf.reduce_mean(true)
        self.minimize(g_loss, g_tape, variables=self.model.trainable_variables)
        self.minimize(c_loss, c_tape, self.critic_optimizer, self.critic.trainable_variables)
        return {"loss": g_loss}

    def eval_step(self, batch):
        return {"loss": tf.reduce_mean(self.critic(self.model(batch[0], training=False), training=False))}


class Distillation(Recipe):
    def build(self):
        super().build()
        self.teacher = keras.Sequential([small_base(), L.Dense(4)])
        self.teacher.trainable = False

    def compute_loss(self, batch, training):
        x, _ = batch
        return self.loss(self.teacher(x, training=False), self.model(x, training=training))


class MonteCarlo(keras.Model):
    def __init__(self):
        super().__init__()
        self.hidden, self.drop, self.head = L.Dense(8), L.Dropout(0.5), L.Dense(4)

    def call(self, x, training=None):
        return self.head(self.drop(self.hidden(x), training=True))


class Vae(keras.Model):
    def __init__(self):
        super().__init__()
        self.encode, self.decode = L.Dense(4), L.Dense(4)
        self.seeds = keras.random.SeedGenerator(1)

    def call(self, x):
        mean, spread = tf.split(self.encode(x), 2, -1)
        self.add_loss(tf.reduce_mean(mean**2 + spread**2))
        return self.decode(mean + tf.exp(spread) * keras.random.normal(tf.shape(mean), seed=self.seeds))


class SharedTwice(keras.Model):
    def __init__(self):
        super().__init__()
        self.dense, self.drop = L.Dense(4), L.Dropout(0.5)

    def call(self, x, training=None):
        return self.drop(self.dense(x), training=training) + self.drop(self.dense(-x), training=training)


class NoFlagInCall(keras.Model):
    """`BadModel`: not bad where the flag is passed to the model."""

    def __init__(self):
        super().__init__()
        self.dense, self.norm, self.drop = L.Dense(4), L.BatchNormalization(), L.Dropout(0.5)

    def call(self, x):
        return self.drop(self.norm(self.dense(x)))


class Conditional(L.Layer):
    def call(self, x, training=None):
        return tf.nn.relu(x) if training else tf.nn.sigmoid(x)


class StochasticDepth(L.Layer):
    def __init__(self):
        super().__init__()
        self.inner, self.seeds = L.Dense(6), keras.random.SeedGenerator(1)

    def call(self, x, training=None):
        y = self.inner(x)
        if training:
            keep = keras.random.uniform([tf.shape(x)[0], 1], seed=self.seeds) < 0.7
            return x + tf.where(keep, y / 0.7, 0.0)
        return x + y


class RenormalizesInTraining(L.Layer):
    """The custom layer of a question, with a weight that Keras knows."""

    def build(self, shape):
        self.w = self.add_weight(name="w", shape=(shape[-1], 4))

    def call(self, x, training=None):
        if training:
            self.w.assign(tf.math.l2_normalize(self.w))
        return x @ self.w


class Module(tf.Module):
    def __init__(self):
        super().__init__()
        self.w = tf.Variable(np.full((6, 4), 0.1, "float32"), name="w")

    def __call__(self, x, training=False):
        y = x @ self.w
        return tf.nn.dropout(y, 0.5) if training else y


class WithoutKeras(looper.Trainer):
    def build(self):
        self.net = Module()
        self.optimizer = keras.optimizers.SGD(0.01)

    def compute_loss(self, batch, training):
        return tf.reduce_mean((self.net(batch[0], training=training) - batch[1]) ** 2, -1)


class Transformer(keras.Model):
    def __init__(self):
        super().__init__()
        self.embed, self.attend = L.Embedding(9, 8), L.MultiHeadAttention(2, 4, dropout=0.1)
        self.norm, self.drop, self.head = L.LayerNormalization(), L.Dropout(0.1), L.Dense(4)

    def call(self, x, training=None):
        x = self.embed(x)
        x = self.norm(x + self.drop(self.attend(x, x, training=training), training=training))
        return self.head(tf.reduce_mean(x, 1))


class ZeroGamma(keras.Model):
    """A residual branch that begins at zero: the gradients before the zero are zero at first."""

    def __init__(self):
        super().__init__()
        self.branch, self.norm = L.Dense(6), L.BatchNormalization(gamma_initializer="zeros")
        self.head = L.Dense(4)

    def call(self, x, training=None):
        return self.head(x + self.norm(self.branch(x), training=training))


class NormOfItsOwn(L.BatchNormalization):
    """A subclass of a layer of Keras."""


class NumberForAFlag(keras.Model):
    def __init__(self):
        super().__init__()
        self.drop, self.head = L.Dropout(0.5), L.Dense(4)

    def call(self, x, training=None):
        return self.head(self.drop(x, training=1 if training else 0))


class CompiledCall(keras.Model):
    def __init__(self):
        super().__init__()
        self.drop, self.head = L.Dropout(0.5), L.Dense(4)

    @tf.function
    def call(self, x, training=None):
        return self.head(self.drop(x, training=training))


class MovingTeacher(Recipe):
    """Mean teacher: its weights follow the student's, in training only."""

    def build(self):
        super().build()
        self.teacher = keras.Sequential([keras.Input((6,)), L.Dense(4)])
        self.teacher.trainable = False

    def train_step(self, batch):
        logs = super().train_step(batch)
        for mine, its in zip(self.model.weights, self.teacher.weights, strict=True):
            its.assign(0.9 * its + 0.1 * mine)
        return logs


class LogsOutsideTheTape(Recipe):
    """Calls the model again after the update, for a log."""

    def train_step(self, batch):
        logs = super().train_step(batch)
        return {**logs, "after": self.loss(batch[1], self.model(batch[0], training=False))}


def sequential(*layers, shape=(6,)):
    return lambda: keras.Sequential([keras.Input(shape), *(layer() for layer in layers)])


def recurrent():
    layers = [
        L.Bidirectional(L.LSTM(4, dropout=0.3, return_sequences=True), name="lstm"),
        L.GRU(4, recurrent_dropout=0.2),
    ]
    return keras.Sequential([keras.Input((5, 6)), *layers, L.Dense(4)])


def stateful():
    return keras.Sequential([keras.Input((5, 6), batch_size=16), L.LSTM(4, stateful=True, name="lstm"), L.Dense(4)])


def distributed():
    inner = keras.Sequential([L.Dense(4), L.BatchNormalization(name="n"), L.Dropout(0.3)], name="inner")
    return keras.Sequential([keras.Input((5, 6)), L.TimeDistributed(inner, name="t"), L.GlobalAveragePooling1D()])


def named_inputs_and_outputs():
    a, b = keras.Input((6,), name="a"), keras.Input((6,), name="b")
    h = L.Dropout(0.2)(L.Concatenate()([a, L.BatchNormalization(name="n")(b)]))
    return keras.Model({"a": a, "b": b}, {"p": L.Dense(4, name="p")(h), "q": L.Dense(4, name="q")(h)})


def only_batch_normalization_is_trained():
    model = keras.Sequential([keras.Input((6,)), L.Dense(4), L.BatchNormalization(name="n")])
    model.layers[0].trainable = False
    return model


def frozen_by_looper(dropout):
    def make():
        base = small_base(name="base")
        inputs = keras.Input((6,))
        model = keras.Model(inputs, L.Dense(4)(base(inputs)))
        looper.freeze(base, dropout=dropout)
        return model

    return make


@dataclasses.dataclass(frozen=True)
class Case:
    """A trainer that is right.

    Attributes:
        make: makes it.
        batch: what to audit with.
        row: the path of a layer and what it received in training and in evaluation.
        warnings: the kinds of the warnings that there are.
    """

    name: str
    make: Callable[[], looper.Trainer]
    row: tuple[str, list, list]
    batch: tuple = (X, Y)
    warnings: tuple[str, ...] = ()


def case(name, made_of, path, training=(True,), evaluation=(False,), batch=(X, Y), warnings=(), **options):
    """`made_of` is a trainer's class, or makes a model."""
    is_trainer = isinstance(made_of, type) and issubclass(made_of, looper.Trainer)
    make = (lambda: made_of(**options)) if is_trainer else (lambda: Recipe(model=made_of, **options))
    return Case(name, make, (path, list(training), list(evaluation)), batch, warnings)


CASES = [
    case("the transfer guide, frozen", functional_frozen_base, "model/base/n"),
    case("the transfer guide, fine-tuned", FineTuned, "model/base/n", [False], warnings=("hard-coded",)),
    case("frozen by looper", frozen_by_looper(dropout=False), "model/base/drop", [False]),
    case("frozen by looper, dropout on purpose", frozen_by_looper(dropout=True), "model/base/drop"),
    case("a GAN", Gan, "critic/drop"),
    case("teacher and student", Distillation, "teacher", [False], model=FineTuned, warnings=("hard-coded",)),
    case("Monte Carlo dropout", MonteCarlo, "model/drop", [True], [True], warnings=("trains-in-evaluation",)),
    case("a variational autoencoder", Vae, "model/encode", warnings=("evaluation-varies",)),
    case("a shared layer", SharedTwice, "model/drop"),
    case("a call without training", NoFlagInCall, "model/norm"),
    case("a layer with a condition", sequential(lambda: L.Dense(4), lambda: Conditional(name="c")), "model/c"),
    case("stochastic depth", sequential(lambda: StochasticDepth(), lambda: L.Dense(4)), "model/stochastic_depth"),
    case("weights normalized in training", sequential(lambda: RenormalizesInTraining(name="r")), "model/r"),
    case("a module without Keras", WithoutKeras, "net", warnings=("undriven-random",)),
    case("recurrent layers with dropout", recurrent, "model/lstm/forward_layer/cell", batch=(STEPS, Y)),
    case(
        "a stateful recurrent layer",
        stateful,
        "model/lstm",
        batch=(STEPS, Y),
        warnings=("changed-by-evaluation", "evaluation-varies"),
    ),
    case("time-distributed", distributed, "model/t/layer/n", batch=(STEPS, Y)),
    case("a transformer", Transformer, "model/attend/dropout_layer", batch=(WORDS, Y)),
    case("a branch that begins at zero", ZeroGamma, "model/norm", warnings=("zero-gradient",)),
    case("a subclass of a layer of Keras", sequential(lambda: L.Dense(4), lambda: NormOfItsOwn(name="n")), "model/n"),
    case("a number as the flag", NumberForAFlag, "model/drop"),
    case("a tf.function inside", CompiledCall, "model"),
    case("a moving teacher", MovingTeacher, "model", model=sequential(lambda: L.Dense(4))),
    case("a log after the update", LogsOutsideTheTape, "model", [True, False], model=sequential(lambda: L.Dense(4))),
    case(
        "named inputs and outputs",
        named_inputs_and_outputs,
        "model/n",
        batch=({"a": X, "b": X}, {"p": Y, "q": Y}),
    ),
    case("batch normalization alone is trained", only_batch_normalization_is_trained, "model/n"),
    case("spectral normalization", sequential(lambda: L.SpectralNormalization(L.Dense(4), name="s")), "model/s"),
    case("mixed precision", NoFlagInCall, "model/norm", precision="mixed_float16"),
    case("accumulation", NoFlagInCall, "model/norm", accumulate=4),
    case("two replicas", NoFlagInCall, "model/norm", strategy="mirrored", devices=2),
    case("eager execution", NoFlagInCall, "model/norm", execution="eager"),
    case("averaged weights", NoFlagInCall, "model/norm", ema=0.99),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_has_no_error(case):
    keras.utils.set_random_seed(0)
    report = case.make().audit(case.batch)
    assert report.ok, f"{report}"
    assert {f.kind for f in report.findings if f.severity == "warning"} == set(case.warnings), f"{report}"
    path, training, evaluation = case.row
    [row] = [row for row in report.rows if row.path == path] or pytest.fail(f"{report}")
    assert [value for value, _ in row.training] == training, f"{report}"
    assert [value for value, _ in row.evaluation] == evaluation, f"{report}"


AUDITED_ALONE = {
    "eager execution",  # nothing is traced
    *("frozen by looper, dropout on purpose", "a shared layer", "a call without training", "time-distributed"),
    *("a subclass of a layer of Keras", "named inputs and outputs", "batch normalization alone is trained"),
    *("spectral normalization", "recurrent layers with dropout", "averaged weights"),
}
"""What a trace shows of these is what a trace of the others shows: layers of Keras, called as others are."""


@pytest.mark.parametrize("case", [c for c in CASES if c.name not in AUDITED_ALONE], ids=lambda case: case.name)
def test_trains_without_an_error_at_the_start(case, capfd):
    trainer = case.make()
    trainer.fit(case.batch, steps=1, batch_size=16, eval_data=case.batch, progress=False)
    assert "error" not in capfd.readouterr().err.replace("mean_squared_error", "")
