"""Recipes with several optimizers and models: what is logged of each, and callbacks that name theirs."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import looper
from looper import callbacks
from tests.support import models

L = models.L
X, _ = models.data(examples=24)


class Adversaries(looper.Trainer):
    """A maker and a judge, and nothing called model or optimizer."""

    def build(self):
        self.maker = keras.Sequential([keras.Input((6,)), L.Dense(6, name="made")])
        self.judge = keras.Sequential([keras.Input((6,)), L.Dense(4, name="seen"), L.Dense(1)])
        self.makers, self.judges = keras.optimizers.SGD(0.25), keras.optimizers.Adam(0.5)
        self.makers.build(self.maker.trainable_variables)
        self.judges.build(self.judge.trainable_variables)

    def train_step(self, batch):
        for model, optimizer, sign in ((self.judge, self.judges, 1.0), (self.maker, self.makers, -1.0)):
            with tf.GradientTape() as tape:
                loss = sign * self.judge(self.maker(batch, training=True), training=True)
            self.minimize(loss, tape, optimizer, model.trainable_variables)
        return {"loss": loss}

    def eval_step(self, batch):
        return {"loss": -self.judge(self.maker(batch, training=False), training=False)}


def fit(trainer, *given, **options):
    options = {"epochs": 3, "batch_size": 8, "progress": False, "log_every": looper.Every(epochs=1), **options}
    return trainer.fit(X, callbacks=list(given), **options)


@pytest.mark.parametrize("options", [{}, {"execution": "eager"}, {"strategy": "mirrored", "devices": 2}], ids=str)
def test_rates_and_norms_have_the_attributes_names(options):
    history = fit(Adversaries(**options))
    assert history["learning_rate/makers"] == [0.25] * 3 and history["learning_rate/judges"] == [0.5] * 3
    assert len(history["gradient_norm/makers"]) == len(history["gradient_norm/judges"]) == 3
    assert {"learning_rate", "gradient_norm"}.isdisjoint(history.names())


def test_the_only_optimizer_may_have_any_name():
    class Only(looper.Trainer):
        def build(self):
            self.model, self.sgd = models.dense(norm=False), keras.optimizers.SGD(0.25)

        def train_step(self, batch):
            with tf.GradientTape() as tape:
                loss = tf.square(self.model(batch, training=True))
            self.minimize(loss, tape, self.sgd)
            return {"loss": loss}

    assert fit(Only(), callbacks.LearningRateScheduler(lambda epoch: 0.5**epoch))["learning_rate"] == [1.0, 0.5, 0.25]


def test_callbacks_set_the_rate_of_the_one_they_name(tmp_path):
    scheduler = callbacks.LearningRateScheduler(lambda epoch: 0.5**epoch, optimizer="judges")
    plateau = callbacks.ReduceLROnPlateau("loss", patience=1, min_delta=1e9, factor=0.1, optimizer="makers")
    history = fit(Adversaries(workdir=tmp_path), scheduler, plateau)
    assert history["learning_rate/judges"] == [1.0, 0.5, 0.25]
    np.testing.assert_allclose(history["learning_rate/makers"], [0.25, 0.25, 0.025])


def test_callbacks_look_at_the_model_that_they_name(tmp_path):
    class WithAnOptimizer(Adversaries):
        def build(self):
            super().build()
            looper.freeze(self.judge, layers="seen")
            self.optimizer = keras.optimizers.SGD(0.25)

        def train_step(self, batch):
            with tf.GradientTape() as tape:
                loss = tf.square(self.judge(self.maker(batch, training=True), training=True))
            self.minimize(loss, tape)
            return {"loss": loss}

    trainer = WithAnOptimizer(workdir=tmp_path)
    before = trainer.judge.get_layer("seen").kernel.numpy()
    histograms = callbacks.Histograms(model="judge")
    fit(trainer, callbacks.Unfreeze(looper.At([3]), "seen", model="judge"), histograms, epochs=2)
    assert trainer.judge.get_layer("seen").trainable
    assert (trainer.judge.get_layer("seen").kernel.numpy() != before).any()
    paths = [variable.path for variable in trainer.judge.trainable_variables]
    events = EventAccumulator(str(tmp_path))
    events.Reload()
    written = {tag for tags in events.Tags().values() if isinstance(tags, list) for tag in tags}
    assert {f"weights/{path}" for path in paths} <= written


def test_any_model_is_written(tmp_path):
    trainer = Adversaries()
    trainer.save_model(tmp_path / "judge.keras", model="judge")
    loaded = keras.saving.load_model(tmp_path / "judge.keras")
    np.testing.assert_array_equal(loaded.get_weights()[0], trainer.judge.get_weights()[0])


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            callbacks.LearningRateScheduler(lambda epoch: 0.1),
            "LearningRateScheduler is for self.optimizer, and the recipe has none of this name: give optimizer=, one "
            "of 'makers', 'judges'",
        ),
        (
            callbacks.ReduceLROnPlateau("loss", optimizer="maker"),
            r"ReduceLROnPlateau\(optimizer='maker'\): did you mean 'makers'\?",
        ),
        (callbacks.Histograms(model="juge"), r"Histograms\(model='juge'\): did you mean 'judge'\?"),
        (callbacks.Unfreeze(looper.At([3])), "Unfreeze is for self.model, .* give model=, one of 'maker', 'judge'"),
    ],
)
def test_what_is_not_there_is_one_line(given, message, tmp_path):
    with pytest.raises(looper.InputError, match=message):
        fit(Adversaries(workdir=tmp_path), given)
    with pytest.raises(looper.InputError, match=r"writes self.judges: did you mean 'judge'\?"):
        Adversaries().save_model(tmp_path / "x.keras", model="judges")


class Later(Adversaries):
    """The judge's first layer is frozen at first; with `lazily`, the steps build the optimizers."""

    lazily = False

    def build(self):
        super().build()
        self.judges = keras.optimizers.Adam(0.5)
        looper.freeze(self.judge, layers="seen")
        if self.lazily:
            self.makers = keras.optimizers.SGD(0.25)
        else:
            self.judges.build(self.judge.trainable_variables)


class Lazily(Later):
    lazily = True


def unfreezing():
    """At a step in the middle of an epoch; anew for each run, as a new process makes it."""
    return callbacks.Unfreeze(looper.At([4]), "seen", learning_rate=0.125, model="judge", optimizer="judges")


def judged_by_hand(trainer):
    """The recipe's nine steps in a loop, what is unfrozen with an optimizer of its own."""
    maker, judge = trainer.maker, trainer.judge
    makers, judges, later = keras.optimizers.SGD(0.25), keras.optimizers.Adam(0.5), keras.optimizers.Adam(0.125)
    seen = judge.get_layer("seen").weights
    others = [v for v in judge.weights if all(v is not one for one in seen)]
    batches = np.split(X, 3)
    for step in range(9):
        batch = batches[step % 3]
        for sign, updates in (
            (1.0, [(judges, others), *([(later, seen)] if step >= 4 else [])]),
            (-1.0, [(makers, maker.weights)]),
        ):
            variables = [v for _, group in updates for v in group]
            with tf.GradientTape() as tape:
                tape.watch([v.value for v in variables])
                loss = sign * tf.reduce_mean(judge(maker(batch, training=True), training=True))
            found = iter(tape.gradient(loss, [v.value for v in variables]))
            for optimizer, group in updates:
                optimizer.apply([next(found) for _ in group], group)
    return [v.numpy() for v in (*maker.weights, *judge.weights)]


def weights(trainer):
    return [v.numpy() for v in (*trainer.maker.weights, *trainer.judge.weights)]


UNFROZEN = {"epochs": None, "steps": 9, "shuffle": False}


@pytest.mark.parametrize("recipe", [Later, Lazily])
@pytest.mark.parametrize("options", [{}, {"execution": "eager"}, {"strategy": "mirrored", "devices": 2}], ids=str)
def test_another_optimizer_gets_what_is_unfrozen(recipe, options):
    expected = judged_by_hand(Later())
    trainer = recipe(**options)
    fit(trainer, unfreezing(), **UNFROZEN)
    for mine, other in zip(weights(trainer), expected, strict=True):
        assert models.norm_difference(mine, other) < 1e-5  # sums in another order, in float32


@pytest.mark.parametrize(
    ("recipe", "options", "steps"),
    [(Later, {}, 3), (Later, {}, 6), (Lazily, {}, 3), (Lazily, {"strategy": "mirrored", "devices": 2}, 6)],
    ids=str,
)
def test_a_run_that_another_optimizer_unfroze_is_continued(recipe, options, steps, tmp_path):
    undisturbed = recipe(**options)
    fit(undisturbed, unfreezing(), **UNFROZEN)
    fit(recipe(workdir=tmp_path, **options), unfreezing(), **UNFROZEN | {"steps": steps})
    again = recipe(workdir=tmp_path, **options)
    fit(again, unfreezing(), **UNFROZEN)
    restored = recipe(**options)
    restored.restore(tmp_path / "checkpoints" / f"step_{steps:08}")
    fit(restored, unfreezing(), **UNFROZEN)
    for expected, *found in zip(weights(undisturbed), weights(again), weights(restored), strict=True):
        for mine in found:
            np.testing.assert_array_equal(mine, expected)


def test_an_optimizer_gets_what_is_unfrozen_between_two_fits():
    trainer = Later()
    fit(trainer, **UNFROZEN | {"steps": 4})
    looper.unfreeze(trainer.judge)
    trainer.judges.learning_rate = 0.125
    with pytest.warns(
        UserWarning, match=r"4 variables are trainable now, 2 were before.* of self\.judges 4 keep"
    ) as told:
        fit(trainer, **UNFROZEN)
    assert __file__ in [warning.filename for warning in told]
    assert len([v for v in trainer.judges.variables if "momentum" in v.name]) == 4
