"""The mistakes of looper/base/README.md: each gets the message that stands there, on one line."""

import re
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf

import looper
from looper.base.errors import StepError
from looper.base.lines import line_of_error
from tests.support import models

L = models.L
X, Y = models.data()
PAGE = Path(__file__).parents[2] / "looper" / "base" / "README.md"


def trainer(**changes):
    parts = {"model": models.dense, "optimizer": "sgd", "loss": models.cross_entropy, "metrics": ["accuracy"]}
    return looper.Trainer(**{**parts, **changes})


def fit(mine, data=(X, Y), **options):
    return mine.fit(data, **{"epochs": 1, "progress": False, **options})


def dataset(*arrays):
    return tf.data.Dataset.from_tensor_slices(arrays or (X, Y))


class Own(looper.Trainer):
    def build(self):
        self.model = models.dense(norm=False)
        self.optimizer = keras.optimizers.SGD(0.1)
        self.loss = models.cross_entropy()


class BranchesOnATensor(Own):
    def compute_loss(self, batch, training):
        loss = tf.reduce_mean(self.model(batch[0], training=training) ** 2)
        return loss if loss > 1 else 2 * loss


class ReturnsNothing(Own):
    def train_step(self, batch):
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean(self.model(batch[0], training=True) ** 2)
        self.minimize(loss, tape)


class HasAnUnusedLayer(Own):
    def build(self):
        super().build()
        self.head = L.Dense(2, name="head")
        self.head.build((None, 6))


def two_outputs():
    x = keras.Input((6,))
    return keras.Model(x, {"kind": L.Dense(3)(x), "size": L.Dense(2)(x)})


def another_configuration(folder):
    fit(trainer(workdir=folder))
    fit(trainer(workdir=folder, optimizer=lambda: keras.optimizers.SGD(0.5)))


def early_stopping(monitor, **options):
    return fit(trainer(), callbacks=[looper.callbacks.EarlyStopping(monitor)], **options)


def nan_data():
    x = X.copy()
    x[30] = np.nan
    linear = lambda: keras.Sequential([keras.Input((6,)), L.Dense(3)])  # noqa: E731
    fit(trainer(model=linear), dataset(x, Y).batch(10))


def one_hot():
    return np.eye(3, dtype="float32")[Y]


MISTAKES = {
    "`fit(x, y)`, as in Keras": lambda _: trainer().fit(X, Y, epochs=1),
    "a misspelt option": lambda _: fit(trainer(), epoch=3),
    "`validation_data=`, as in Keras": lambda _: fit(trainer(), validation_data=(X, Y)),
    "neither `epochs` nor `steps`": lambda _: trainer().fit((X, Y)),
    "a dataset that is not batched": lambda _: fit(trainer(), dataset()),
    "`batch_size` for a dataset": lambda _: fit(trainer(), dataset().batch(10), batch_size=10),
    "a generator, trained for more `steps` than it has": lambda _: fit(
        trainer(), iter([models.data(examples=10)] * 5), epochs=None, steps=20
    ),
    "a dataset with `repeat()`, trained for `epochs`": lambda _: fit(trainer(), dataset().repeat().batch(10)),
    "arrays of different lengths": lambda _: fit(trainer(), (X, Y[:40])),
    "class numbers for a loss that wants one-hot targets": lambda _: fit(
        trainer(loss="categorical_crossentropy", metrics=[]), batch_size=10
    ),
    "data of another shape than the model's input": lambda _: fit(trainer(), (X[:, :5], Y), batch_size=10),
    "a loss for an output that does not exist": lambda _: fit(
        trainer(model=two_outputs, loss={"kinds": "mse"}, metrics=[]), (X, {"kind": one_hot()})
    ),
    "Keras' name for an evaluation's loss": lambda _: early_stopping("val_loss", eval_data=(X, Y)),
    "a monitor without evaluation data": lambda _: early_stopping("eval/loss"),
    "a Python `if` on a tensor": lambda _: fit(BranchesOnATensor()),
    "a `train_step` that returns nothing": lambda _: fit(ReturnsNothing()),
    "a trainable layer that the loss does not use": lambda _: fit(HasAnUnusedLayer(), batch_size=10),
    "a model made outside the strategy": lambda _: trainer(model=models.dense(), strategy="mirrored", devices=2),
    "a workdir with another run in it": another_configuration,
    "NaN in the data": lambda _: nan_data(),
}


TWO = {"strategy": "mirrored", "devices": 2}
OUTSIDE = keras.random.SeedGenerator(0)


def own(train_step=None, compute_loss=None, build=None, **more):
    """A recipe with these methods."""
    methods = {"train_step": train_step, "compute_loss": compute_loss, **more}
    kind = type("Recipe", (Own,), {name: method for name, method in methods.items() if method is not None})
    if build is not None:

        def build_more(self):
            Own.build(self)
            build(self)

        kind.build = build_more
    return kind


def loss_of(trainer, batch):
    return trainer.loss(batch[1], trainer.model(batch[0], training=True))


def asserts(self, batch, training):
    tf.debugging.assert_less(tf.reduce_max(batch[0]), -9.0, message="too bright")
    return loss_of(self, batch)


def makes_a_layer(self, batch, training):
    return loss_of(self, (L.Dense(6)(batch[0]), batch[1]))


def draws(draw):
    def compute_loss(self, batch, training):
        return loss_of(self, (batch[0] + draw(batch[0]), batch[1]))

    return compute_loss


def applies(self, batch):
    with tf.GradientTape() as tape:
        loss = loss_of(self, batch)
    variables = self.model.trainable_variables
    self.optimizer.apply(tape.gradient(loss, variables), variables)
    return {"loss": loss}


def gradients_alone(self, batch):
    with tf.GradientTape() as tape:
        loss = loss_of(self, batch)
    self.apply_gradients(self.gradients(loss, tape))
    return {"loss": loss}


def twice(self, batch):
    for _ in range(2):
        with tf.GradientTape() as tape:
            loss = loss_of(self, batch)
        self.minimize(loss, tape)
    return {"loss": loss}


def in_a_condition(self, batch):
    with tf.GradientTape() as tape:
        loss = loss_of(self, batch)

    def update():
        self.minimize(loss, tape)
        return 0.0

    tf.cond(tf.reduce_max(batch[0]) > 0, update, lambda: 0.0)
    return {"loss": loss}


def python_step(self, batch, training):
    return loss_of(self, batch) * int(self.step)


def parted(self, batch, training):
    return loss_of(self, batch["labelled"]) + tf.reduce_mean(self.model(batch["more"], training=True))


def assigns(self, batch, training):
    self.seen.assign(tf.reduce_mean(batch[0]))
    return loss_of(self, batch)


def weighs(self, batch, training):
    return self.weight * loss_of(self, batch)


def lightens(trainer):
    def on_epoch_end(epoch, logs):
        trainer.weight = 0.5

    return [looper.callbacks.LambdaCallback(on_epoch_end=on_epoch_end)]


def annealed(trainer):
    fit(trainer, batch_size=10, epochs=2, callbacks=lightens(trainer))


class LogsTheLoss(looper.callbacks.Callback):
    def on_step(self, step, logs):
        self.run.log("loss", 1.0)


def with_two_optimizers(self):
    self.first, self.second, self.optimizer = self.optimizer, keras.optimizers.SGD(0.1), None


def by_the_first(self, batch):
    with tf.GradientTape() as tape:
        loss = loss_of(self, batch)
    self.minimize(loss, tape, self.first)
    return {"loss": loss}


def tokens():
    return keras.Sequential([keras.Input((6,), dtype="int32"), L.Embedding(5, 2), L.Flatten(), L.Dense(3)])


def of_parts():
    parts = {"labelled": (X[:8], Y[:8]), "more": X[:32]}
    return tf.data.Dataset.from_tensors(parts)


IN_RECIPES = {
    "an operation of the recipe that fails": lambda _: fit(own(compute_loss=asserts)(execution="graph")),
    "a word that an `Embedding` does not have": lambda _: fit(
        trainer(model=tokens, metrics=[], execution="graph"), (np.full((8, 6), 7), Y[:8])
    ),
    "a layer that is made in a step": lambda _: fit(own(compute_loss=makes_a_layer)(execution="graph"), batch_size=10),
    "`keras.random` without a seed, on two replicas": lambda _: fit(
        own(compute_loss=draws(lambda x: keras.random.normal(tf.shape(x))))(**TWO), batch_size=10
    ),
    "a seed generator made outside the recipe, on two replicas": lambda _: fit(
        own(compute_loss=draws(lambda x: keras.random.normal(tf.shape(x), seed=OUTSIDE)))(**TWO), batch_size=10
    ),
    "`tf.random` in a step": lambda _: fit(
        own(compute_loss=draws(lambda x: tf.random.normal(tf.shape(x))))(execution="graph"), batch_size=10
    ),
    "a metric that the recipe's own loss forgets": lambda _: fit(
        own(
            compute_loss=lambda self, batch, training: loss_of(self, batch),
            build=lambda self: setattr(self, "metrics", [keras.metrics.SparseCategoricalAccuracy("accuracy")]),
        )(execution="graph"),
        batch_size=10,
        eval_data=(X, Y),
    ),
    "Lightning's name of a method": lambda _: own(training_step=lambda self, batch: None)(),
    "Keras' `compute_loss`": lambda _: own(compute_loss=lambda self, x, y, y_pred: None)(),
    "an optimizer's own `apply`, on two replicas": lambda _: fit(own(applies)(**TWO), batch_size=10),
    "gradients without their variables": lambda _: fit(own(gradients_alone)(execution="graph"), batch_size=10),
    "several updates a step, with `accumulate`": lambda _: fit(own(twice)(accumulate=2), batch_size=10),
    "an update inside a `tf.cond`, on two replicas": lambda _: fit(own(in_a_condition)(**TWO), batch_size=10),
    "the step's number as a Python number": lambda _: fit(own(compute_loss=python_step)(execution="graph")),
    "parts of different lengths that are not declared": lambda _: fit(own(compute_loss=parted)(**TWO), of_parts()),
    "a variable that each replica assigns its own": lambda _: fit(
        own(
            compute_loss=assigns,
            build=lambda self: setattr(self, "seen", tf.Variable(0.0, trainable=False)),
        )(**TWO),
        batch_size=10,
    ),
    "a Python number that a callback changes": lambda _: annealed(
        own(compute_loss=weighs, weight=1.0)(execution="graph")
    ),
    "several evaluation sets in a dict": lambda _: fit(trainer(), eval_data={"val": (X, Y), "test": (X[:5], Y[:5])}),
    "a callback that logs under a name of looper's": lambda _: fit(trainer(), callbacks=[LogsTheLoss()]),
    "a schedule for one of several optimizers": lambda _: fit(
        own(by_the_first, build=with_two_optimizers)(),
        callbacks=[looper.callbacks.LearningRateScheduler(lambda epoch: 0.1)],
    ),
}
"""Mistakes in a recipe, or with one of its own."""


def rows() -> dict[str, str]:
    found = re.findall(r"^\| (.+?) \| (.+?) \|$", PAGE.read_text(), re.MULTILINE)
    return {mistake: message for mistake, message in found if not set(mistake) <= set("- ") and mistake != "mistake"}


def test_the_tables_have_these_rows():
    assert list(rows()) == [*MISTAKES, *IN_RECIPES]
    assert len(MISTAKES) == len(IN_RECIPES) == 20


def assert_written(mistake, said):
    written = rows()[mistake].strip("`").replace("\\|", "|")
    parts = [re.escape(part) for part in written.replace("runs/x", "…").split("…")]  # "…": what differs from run to run
    assert re.fullmatch(".*".join(parts), said), said


@pytest.mark.parametrize("mistake", MISTAKES)
def test_message(mistake, tmp_path):
    with pytest.raises((looper.InputError, looper.NonFiniteLossError)) as caught:
        MISTAKES[mistake](tmp_path)
    assert "\n" not in str(caught.value)
    assert_written(mistake, str(caught.value))


WITHOUT_A_LINE = {
    "a word that an `Embedding` does not have": "no line of the recipe calls it",
    "a metric that the recipe's own loss forgets": "nothing is called there",
    "parts of different lengths that are not declared": "it is about the data",
    "a variable that each replica assigns its own": "it is found in the values",
    "a Python number that a callback changes": "it is found in the value; the warning has the line of fit",
    "several evaluation sets in a dict": "the line of fit shows it",
    "a schedule for one of several optimizers": "the line of fit shows it",
    "several updates a step, with `accumulate`": "it is about all of train_step",
}
"""Mistakes in recipes whose message can name none, and why."""


@pytest.mark.parametrize("mistake", IN_RECIPES)
def test_message_in_recipes(mistake, recwarn):
    """An error or a warning; it names the line, or comes from it, where there is one."""
    try:
        IN_RECIPES[mistake](None)
        said, at = None, None
    except (looper.InputError, StepError) as error:
        said, at = str(error), line_of_error(error)
    if said is None:
        told = [warning for warning in recwarn if issubclass(warning.category, UserWarning)]
        assert len(told) == 1, [str(warning.message) for warning in told]
        said = str(told[0].message)
    assert "\n" not in said
    assert_written(mistake, said)
    here = Path(__file__).name
    assert (f"{here}:" in said or (at or "").startswith(here)) != (mistake in WITHOUT_A_LINE), (said, at)
