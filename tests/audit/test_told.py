"""What a recipe does that looper cannot make right is told: metrics that nothing updates, draws that are not saved."""

from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf

import looper
from tests.support import models

L = keras.layers
X, Y = models.data(examples=32)
TWO = {"strategy": "mirrored", "devices": 2}
WAYS = [{"execution": "graph"}, {"execution": "xla_loop"}, {"execution": "graph", **TWO}]


class Untold(looper.Trainer):
    """Has a metric, and a loss of its own that forgets it."""

    def build(self):
        self.model, self.optimizer = models.dense(0.0, norm=False), keras.optimizers.SGD(0.1)
        self.loss, self.metrics = models.cross_entropy(), [keras.metrics.SparseCategoricalAccuracy("accuracy")]

    def compute_loss(self, batch, training):
        outputs = self.model(batch[0], training=training)
        self.update(batch[1], outputs, training)
        return self.loss(batch[1], outputs)

    def update(self, y, outputs, training):
        pass


class InEvaluation(Untold):
    def update(self, y, outputs, training):
        if not training:
            self.metrics[0].update_state(y, outputs)


class InAFunction(Untold):
    """The function is traced once, before the steps are."""

    def build(self):
        super().build()
        self.in_a_graph = tf.function(lambda y, outputs: self.metrics[0].update_state(y, outputs))

    def update(self, y, outputs, training):
        tf.cond(tf.size(y) > 0, lambda: self.in_a_graph(y, outputs), lambda: None)


def fit(trainer, **options):
    return trainer.fit((X, Y), eval_data=(X, Y), epochs=2, batch_size=8, progress=False, **options)


@pytest.mark.parametrize("options", WAYS, ids=str)
def test_a_metric_that_no_step_updates_is_left_out_and_told(options, recwarn):
    trainer = Untold(**options)
    history = fit(trainer)
    assert not {"accuracy", "eval/accuracy"} & history.names()
    assert {"loss", "learning_rate", "eval/loss"} <= history.names()
    assert "accuracy" not in trainer.evaluate((X, Y))
    assert [str(w.message) for w in recwarn if "accuracy" in str(w.message)] == [
        "accuracy: no step of training or evaluation updates this metric, so that it is left out of their logs. "
        "Call its update_state() in compute_loss."
    ]


def test_that_idle_replicas_put_it_back_is_no_update():
    history = Untold(execution="graph", **TWO).fit(models.data(examples=33), epochs=1, batch_size=8, progress=False)
    assert "accuracy" not in history.names()


def test_no_monitor_waits_for_it():
    with pytest.raises(looper.InputError, match="eval/accuracy"):
        fit(Untold(execution="graph"), callbacks=[looper.callbacks.EarlyStopping("eval/accuracy")])


@pytest.mark.parametrize("options", WAYS, ids=str)
def test_a_metric_of_evaluation_alone_is_no_mistake(options, recwarn):
    trainer = InEvaluation(**options)
    history = fit(trainer)
    assert "accuracy" not in history.names() and history["eval/accuracy"][-1] > 0
    assert trainer.evaluate((X, Y))["accuracy"] == pytest.approx(np.mean(trainer.predict(X).argmax(1) == Y))
    assert not [w for w in recwarn if "metric" in str(w.message)]
    assert "accuracy" not in trainer.train_on_batch((X, Y))
    [finding] = [f for f in trainer.audit((X, Y)).findings if f.kind == "metric-not-updated"]
    assert (finding.severity, finding.path) == ("note", "accuracy")


@pytest.mark.parametrize("kind", [InEvaluation, Untold])
def test_without_an_evaluation_nothing_is_known_to_be_wrong(kind, recwarn):
    trainer = kind(execution="graph", strict=True)
    assert "accuracy" not in trainer.fit((X, Y), epochs=1, batch_size=8, progress=False).names()
    assert not [w for w in recwarn if "metric" in str(w.message)]


class InPython(Untold):
    """Python may do anything."""

    def update(self, y, outputs, training):
        tf.py_function(lambda y, outputs: self.metrics[0].update_state(y, outputs) and None, [y, outputs], [])


def test_what_python_updates_is_logged():
    trainer = InPython(execution="graph")
    assert "accuracy" in fit(trainer).names()
    assert trainer.evaluate((X, Y))["accuracy"] == pytest.approx(np.mean(trainer.predict(X).argmax(1) == Y))


def test_an_audit_knows_an_update_that_adds_zero():
    class Nothing(InEvaluation):
        def build(self):
            super().build()
            self.metrics = [keras.metrics.Mean("nothing")]

        def update(self, y, outputs, training):
            self.metrics[0].total.assign_add(0.0)

    assert Nothing(execution="graph").audit((X, Y)).findings == ()


def test_what_a_function_of_ones_own_updates_is_seen():
    trainer = InAFunction(execution="graph")
    trainer.train_on_batch((X, Y))
    assert {"accuracy", "eval/accuracy"} <= fit(trainer).names()
    assert "accuracy" in trainer.train_on_batch((X, Y))


def test_an_audit_lists_it():
    [finding] = Untold(execution="graph").audit((X, Y)).findings
    assert (finding.severity, finding.kind, finding.path) == ("warning", "metric-not-updated", "accuracy")


class InALayer(L.Layer):
    def call(self, x):
        return x + tf.random.normal(tf.shape(x))  # of the layer


DRAWS = {
    "in a function": lambda x: tf.function(lambda x: x + tf.random.normal(tf.shape(x)))(x),
    "normal": lambda x: x + tf.random.normal(tf.shape(x)),
    "with a seed": lambda x: x + tf.random.uniform(tf.shape(x), seed=3),
    "dropout": lambda x: tf.nn.dropout(x, 0.5),
    "in a condition": lambda x: tf.cond(tf.size(x) > 0, lambda: x + tf.random.normal([]), lambda: x),
    "in a layer": InALayer(),
}


class Draws(looper.Trainer):
    draw = staticmethod(lambda x: x)

    def build(self):
        self.model, self.optimizer = keras.Sequential([keras.Input((6,)), L.Dense(3)]), keras.optimizers.SGD(0.1)
        self.loss, self.noise = models.cross_entropy(), keras.random.SeedGenerator(0)
        self.generator = tf.random.Generator.from_seed(0)

    def compute_loss(self, batch, training):
        return super().compute_loss((self.draw(batch[0]), batch[1]), training)


@pytest.mark.parametrize("options", WAYS, ids=str)
@pytest.mark.parametrize("name", DRAWS)
def test_draws_that_no_variable_drives_are_told_with_their_line(name, options, recwarn):
    trainer = Draws(**options)
    trainer.draw = DRAWS[name]
    trainer.fit((X, Y), epochs=1, batch_size=8, progress=False)
    [said] = [str(w.message) for w in recwarn if "it draws random numbers that no variable drives" in str(w.message)]
    assert "keras.random.normal(shape, seed=self.noise)" in said
    number = int(said.removeprefix("test_told.py:").partition(":")[0])
    code = Path(__file__).read_text().splitlines()[number - 1]
    assert f'"{name}": ' in code or (name == "in a layer" and "# of the layer" in code)


def test_draws_that_are_saved_or_always_the_same_are_not_told(recwarn):
    trainer, dropout = Draws(execution="graph"), L.Dropout(0.5)

    def draw(x):
        drawn = keras.random.normal(tf.shape(x), seed=trainer.noise) + trainer.generator.normal(tf.shape(x))
        return dropout(x, training=True) + drawn

    trainer.draw = draw
    trainer.fit((X, Y), epochs=1, batch_size=8, progress=False)
    assert not [w for w in recwarn if "random" in str(w.message)]


def test_an_audit_lists_draws():
    trainer = Draws(execution="graph")
    trainer.draw = DRAWS["dropout"]
    assert "undriven-random" in {finding.kind for finding in trainer.audit((X, Y)).findings}


class WithoutEvaluation(looper.Trainer):
    """Its network is not called `model`, so that nothing is known of how to evaluate."""

    def build(self):
        self.net, self.optimizer = models.dense(0.5, norm=False), keras.optimizers.SGD(0.1)
        self.loss = models.cross_entropy()

    def train_step(self, batch):
        with tf.GradientTape() as tape:
            loss = self.loss(batch["y"], self.net(batch["x"], training=True))
        self.minimize(loss, tape, variables=self.net.trainable_variables)
        return {"loss": loss}


class WithOtherBatches(WithoutEvaluation):
    def eval_step(self, batch):
        return {"loss": self.loss(batch[1], self.net(batch[0], training=False))}


class WithItsData(WithOtherBatches):
    def eval_data(self):
        return X, Y


@pytest.mark.parametrize("options", [{"execution": "graph"}, {"execution": "eager"}, {"execution": "graph", **TWO}])
def test_an_audit_works_on_what_there_is(options):
    batch = {"x": X[:8], "y": Y[:8]}
    for kind in (WithoutEvaluation, WithOtherBatches):
        report = kind(**options).audit(batch)
        [finding] = report.findings
        assert (finding.severity, finding.kind) == ("note", "not-evaluated") and "eval_step" in finding.remedy
        assert any(row.path.startswith("net/") and row.training for row in report.rows)
        assert not any(row.evaluation for row in report.rows)
    report = WithItsData(**options).audit(batch)
    assert report.findings == ()
    assert any(row.evaluation for row in report.rows)


def test_what_is_wrong_with_ones_own_evaluation_data_is_an_error():
    class Wrong(WithOtherBatches):
        def eval_data(self):
            return {"x": X, "y": Y}

    with pytest.raises((KeyError, looper.InputError)):
        Wrong(execution="graph").audit({"x": X[:8], "y": Y[:8]})


class Critic(looper.Trainer):
    """Wasserstein's loss: what the last bias adds to both means cancels."""

    def build(self):
        hidden = [L.Dense(4, "leaky_relu", name="hidden"), L.Dense(1, name="score")]
        self.critic, self.optimizer = keras.Sequential([keras.Input((6,)), *hidden]), keras.optimizers.SGD(0.1)

    def compute_loss(self, batch, training):
        score = self.critic(tf.concat([batch, -batch], 0), training=training)
        real, made = tf.split(score, 2)
        return tf.reduce_mean(made) - tf.reduce_mean(real)


@pytest.mark.parametrize("options", [{"execution": "graph"}, {"execution": "eager"}, {"execution": "graph", **TWO}])
def test_a_bias_that_cancels_is_told_from_a_dead_layer(options):
    [finding] = Critic(**options).audit(X[:8]).findings
    assert (finding.severity, finding.kind, finding.path) == ("note", "zero-gradient", "critic/score/bias")
    assert "that of critic/score/kernel is not" in finding.meaning

    class Dead(Critic):
        def build(self):
            super().build()
            self.critic.get_layer("score").kernel.assign(tf.zeros([4, 1]))

    found = {finding.path: finding.severity for finding in Dead(**options).audit(X[:8]).findings}
    assert found == {"critic/hidden/kernel": "warning", "critic/score/bias": "note"}


OUTSIDE = keras.random.SeedGenerator(3)
DRAWN = {
    "unseeded": lambda trainer, x: keras.random.normal(tf.shape(x)),
    "made in the step": lambda trainer, x: keras.random.normal(tf.shape(x), seed=keras.random.SeedGenerator(1)),
    "made outside": lambda trainer, x: keras.random.uniform(tf.shape(x), seed=OUTSIDE),
    "in a function": lambda trainer, x: tf.function(lambda: keras.random.normal(tf.shape(x), seed=OUTSIDE))(),
}
RIGHT = {
    "made in build": lambda trainer, x: keras.random.normal(tf.shape(x), seed=trainer.noise),
    "a number": lambda trainer, x: keras.random.normal(tf.shape(x), seed=7),
}


class DrawsWithKeras(Draws):
    drawn = staticmethod(lambda trainer, x: x)

    def draw(self, x):
        return x + self.drawn(self, x)


@pytest.mark.parametrize("execution", ["graph", "xla_step"])
@pytest.mark.parametrize("name", DRAWN)
def test_seed_generators_that_replicas_cannot_have_are_one_line(name, execution):
    trainer = DrawsWithKeras(execution=execution, **TWO)
    trainer.drawn = DRAWN[name]
    line = next(i for i, code in enumerate(Path(__file__).read_text().splitlines(), 1) if f'"{name}": lambda t' in code)
    with pytest.raises(looper.InputError, match=rf"test_told.py:{line}: .*set self.noise = .*seed=self.noise"):
        trainer.fit((X, Y), epochs=1, batch_size=8, progress=False)


ALONE = {name: DRAWN[name] for name in ("unseeded", "made outside", "in a function")}


@pytest.mark.parametrize(("name", "options"), [(name, {}) for name in ALONE | RIGHT] + [(name, TWO) for name in RIGHT])
def test_seed_generators_that_work_are_no_mistake(name, options, recwarn):
    trainer = DrawsWithKeras(execution="graph", **options)
    trainer.drawn = (ALONE | RIGHT)[name]
    trainer.fit((X, Y), epochs=1, batch_size=8, progress=False)
    assert not [w for w in recwarn if "seed" in str(w.message)]
    kinds = {finding.kind for finding in trainer.audit((X, Y)).findings} - {"evaluation-varies"}  # it draws there, too
    assert kinds == ({"constant-random"} if name == "a number" else set())


class MakesALayer(Draws):
    def draw(self, x):
        return L.Dense(6)(x)


@pytest.mark.parametrize("options", WAYS, ids=str)
def test_what_is_made_in_a_step_is_one_line(options):
    with pytest.raises(looper.InputError, match=r"makes a variable, a layer or a seed generator in a step.*build\(\)"):
        MakesALayer(**options).fit((X, Y), epochs=1, batch_size=8, progress=False)


class Weighted(looper.Trainer):
    """Has a weight in its loss, and a number that the step itself counts with."""

    weight, traced = 0.5, 0

    def build(self):
        self.model, self.optimizer = models.dense(norm=False), keras.optimizers.SGD(0.1)
        self.loss, self.annealed = models.cross_entropy(), tf.Variable(1.0, trainable=False)

    def compute_loss(self, batch, training):
        self.traced += 1
        return self.weight * self.annealed * self.loss(batch[1], self.model(batch[0], training=training))


class Anneal(looper.callbacks.Callback):
    def __init__(self, trainer):
        self.trainer = trainer

    def on_epoch_end(self, epoch, logs):
        self.trainer.weight = 0.25
        self.trainer.annealed.assign(0.5)


@pytest.mark.parametrize("options", [*WAYS, {"execution": "xla_step"}], ids=str)
def test_a_number_that_changed_since_the_step_was_compiled_is_told(options, recwarn):
    trainer = Weighted(**options)
    trainer.fit((X, Y), epochs=3, batch_size=8, progress=False, callbacks=[Anneal(trainer)])
    [said] = [w for w in recwarn if "when the step was compiled" in str(w.message)]
    assert str(said.message).startswith("self.weight was 0.5 when the step was compiled, and is 0.25 now")
    assert said.filename == __file__


def test_a_number_that_changed_between_two_fits_is_told(recwarn):
    trainer = Weighted(execution="graph")
    trainer.fit((X, Y), epochs=1, batch_size=8, progress=False)
    trainer.weight = 2.0
    trainer.fit((X, Y), epochs=2, batch_size=8, progress=False)
    assert [str(w.message)[:41] for w in recwarn if "compiled" in str(w.message)] == [
        "self.weight was 0.5 when the step was com"
    ]


def test_eager_steps_read_the_number_each_time(recwarn):
    trainer = Weighted(execution="eager")
    trainer.fit((X, Y), epochs=2, batch_size=8, progress=False, callbacks=[Anneal(trainer)])
    assert not [w for w in recwarn if "compiled" in str(w.message)]


def test_single_batches_tell_of_a_number_that_changed(recwarn):
    trainer = Weighted(execution="graph")
    for weight in (0.5, 0.5, np.float32(0.25), 0.125):
        trainer.weight = weight
        trainer.train_on_batch((X, Y))
    [said] = [w for w in recwarn if "when the step was compiled" in str(w.message)]
    assert said.filename == __file__ and "is 0.25 now" in str(said.message)
