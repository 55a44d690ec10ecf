"""Mistakes that a reader found: each was shown by a script, and stays a test."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import looper
from looper.data import augment
from looper.recipe.metrics import Window
from tests.support import models

L = models.L
X = np.ones((16, 1), "float32")


def line(**options) -> keras.Model:
    return keras.Sequential([keras.Input((1,)), L.Dense(1, use_bias=False, kernel_initializer="ones", **options)])


def trainer(**changes) -> looper.Trainer:
    parts = {"model": line, "optimizer": lambda: keras.optimizers.SGD(0.1), "loss": "mse"}
    return looper.Trainer(**{**parts, **changes})


def weight(mine: looper.Trainer) -> float:
    return float(mine.model.weights[0].numpy()[0, 0])


def test_arrays_that_were_written_to_are_read_again():
    x, y = X.copy(), X.copy()
    mine = trainer()
    mine.fit((x, y), epochs=20, batch_size=16, progress=False)
    y[:] = 5
    mine.fit((x, y), epochs=80, batch_size=16, progress=False)
    assert weight(mine) == pytest.approx(5, abs=1e-3)
    assert mine.evaluate((x, y))["loss"] == pytest.approx(0, abs=1e-6)


def test_the_same_arrays_in_another_structure_are_other_data():
    class Sums(looper.Trainer):
        def predict_step(self, batch):
            return tf.add_n(
                [factor * batch[name] for name, factor in (("p", 1), ("q", 10), ("u", 100)) if name in batch]
            )

    a, b = np.ones((2, 1), "float32"), 2 * np.ones((2, 1), "float32")
    mine = Sums()
    assert mine.predict({"p": a, "q": b})[0] == 21
    assert mine.predict({"u": a, "q": b})[0] == 120


def test_a_list_that_has_grown_is_read_to_its_end():
    examples = [(np.ones(1, "float32"), np.ones(1, "float32"))] * 4
    mine = trainer()
    assert mine.evaluate(examples)["examples"] == 4
    examples.append(examples[0])
    assert mine.evaluate(examples)["examples"] == 5


@pytest.mark.parametrize("ema", [None, 0.9])
def test_a_script_that_unfreezes_between_two_fits_is_continued(ema, tmp_path):
    """Stopped in its second phase, it ends as one that was not: optimizer state and averages find their weights."""

    def run(folder, stop_after=None):
        keras.utils.set_random_seed(0)
        mine = looper.Trainer(
            model=lambda: keras.Sequential([keras.Input((6,)), L.Dense(6, name="base"), L.Dense(6, name="head")]),
            optimizer=lambda: keras.optimizers.Adam(0.01),
            loss="mse",
            ema=ema,
            workdir=tmp_path / folder,
        )
        x, _ = models.data(examples=40)
        fit = {"batch_size": 8, "progress": False, "save_every": looper.Every(steps=1)}
        mine.model.layers[0].trainable = False
        mine.fit((x, x), epochs=2, **fit)
        mine.model.layers[0].trainable = True

        class Kill(looper.callbacks.Callback):
            def on_save(self, step, path):
                if step == stop_after:
                    raise RuntimeError("killed")

        mine.fit((x, x), epochs=4, callbacks=[Kill()], **fit)
        return mine

    whole = run("whole")
    for stop_after in (12, 17):
        folder = f"stopped_after_{stop_after}"
        with pytest.raises(RuntimeError, match="killed"):
            run(folder, stop_after)
        again = run(folder)
        assert again.step == whole.step == 20
        for mine, other in zip(again.model.weights, whole.model.weights, strict=True):
            np.testing.assert_array_equal(mine.numpy(), other.numpy())
        x, _ = models.data(examples=8)
        np.testing.assert_array_equal(again.predict(x), whole.predict(x))
        finished = run(folder)
        np.testing.assert_array_equal(finished.predict(x), whole.predict(x))


def test_restored_averages_are_those_of_their_own_weights(tmp_path):
    """Whatever the order in which they were made, and in a trainer that has done nothing yet."""

    def make():
        model = keras.Sequential([keras.Input((1,)), L.Dense(1, use_bias=False), L.Dense(1, use_bias=False)])
        return trainer(model=model, ema=0.9)

    mine = make()
    mine.model.layers[0].trainable = False
    mine.fit((X, 3 * X), epochs=1, batch_size=4, progress=False)
    mine.model.layers[0].trainable = True
    with pytest.warns(UserWarning, match="variables are trainable now"):
        mine.fit((X, 3 * X), epochs=3, batch_size=4, progress=False)
    mine.save(tmp_path / "saved")
    other = make()
    other.restore(tmp_path / "saved")
    np.testing.assert_array_equal(other.predict(X), mine.predict(X))


def test_options_of_the_pipeline_need_minimize():
    class Around(looper.Trainer):
        def build(self):
            self.model, self.optimizer = line(), keras.optimizers.SGD(0.1)

        def train_step(self, batch):
            with tf.GradientTape() as tape:
                loss = tf.reduce_mean((self.model(batch[0], training=True) - batch[1]) ** 2)
            variables = self.model.trainable_variables
            self.optimizer.apply(tape.gradient(loss, variables), variables)
            return {"loss": loss}

    Around().fit((X, X), epochs=1, progress=False)
    for options, name in (({"ema": 0.5}, "ema"), ({"clip_norm": 1.0}, "clip_norm")):
        with pytest.raises(looper.InputError, match=f"{name} act.* in self.minimize"):
            Around(**options).fit((X, X), epochs=1, progress=False)


def test_weights_that_are_set_before_training_are_evaluated():
    mine = trainer(ema=0.9)
    assert mine.evaluate((X, 5 * X))["loss"] == 16
    mine.model.set_weights([np.array([[5.0]])])
    assert mine.evaluate((X, 5 * X))["loss"] == 0


def test_callbacks_of_keras_that_keep_weights_are_refused_with_averages(tmp_path):
    stopping = keras.callbacks.EarlyStopping(restore_best_weights=True)
    for callback, name in (
        (stopping, "EarlyStopping"),
        (keras.callbacks.ModelCheckpoint(tmp_path / "m.keras"), "Check"),
    ):
        with pytest.raises(looper.InputError, match=f"ema= evaluates their averages: take looper.callbacks.{name}"):
            trainer(ema=0.9).fit((X, X), epochs=1, eval_data=(X, X), callbacks=[callback], progress=False)


def test_averages_of_keras_that_never_began_are_not_put_in():
    spoiled = np.full_like(X, np.nan)
    mine = trainer(optimizer=lambda: keras.optimizers.SGD(0.1, use_ema=True))
    mine.fit((spoiled, X), epochs=1, callbacks=[looper.callbacks.NanGuard("skip")], progress=False)
    assert weight(mine) == 1


@pytest.mark.parametrize("replicas", [{}, {"strategy": "mirrored", "devices": 2}])
def test_gradients_that_are_only_accumulated_do_not_move_the_averages(replicas):
    def run(batch_size, **options):
        mine = trainer(optimizer=lambda: keras.optimizers.SGD(0.1, **options), ema=0.7, **replicas)
        mine.fit((X, 3 * X), epochs=3, batch_size=batch_size, progress=False)
        return mine.predict(X)[0, 0]

    assert run(4, gradient_accumulation_steps=4) == pytest.approx(run(16), rel=1e-6)  # float32 sums in another order


def test_overwritten_weights_are_constrained_on_replicas_too():
    def run(**replicas):
        mine = trainer(
            model=lambda: line(kernel_constraint=keras.constraints.MaxNorm(1.2)),
            optimizer=lambda: keras.optimizers.SGD(0.4, use_ema=True, ema_momentum=0.5, ema_overwrite_frequency=2),
            **replicas,
        )
        mine.fit((X, 9 * X), epochs=2, batch_size=16, progress=False)
        return weight(mine)

    assert run(strategy="mirrored", devices=2) == pytest.approx(run(), rel=1e-6)


def test_a_skipped_steps_finite_logs_count():
    window = Window()
    window.add(np.array([[32, 1, 64.0, 32.0, np.inf, 1.0], [32, 0, 32.0, 32.0, 2.0, 1.0]]))
    assert window.means(["loss", "norm"]) == {"loss": 1.5, "norm": 2.0}


def test_metrics_after_a_rollback_are_those_that_were_put_back():
    x, y = np.ones((40, 1), "float32"), np.ones((40, 1), "float32")
    x[22] = np.nan
    linear = looper.callbacks.LambdaCallback(on_step=lambda step, logs: None, every=looper.Every(steps=2))
    mine = trainer(optimizer=lambda: keras.optimizers.SGD(0.0), metrics=["mae"], steps_per_execution=1)
    history = mine.fit(
        (x, 2 * y),
        epochs=1,
        batch_size=2,
        shuffle=False,
        log_every=looper.Every(steps=20),
        callbacks=[linear, looper.callbacks.NanGuard("rollback")],
        progress=False,
    )
    assert history["mae"] == [1.0]


def test_metrics_that_cannot_be_copied_run_beside_callbacks_of_keras():
    def distance(y, predicted):
        return tf.abs(y - predicted)

    class Odd(keras.metrics.Mean):
        def __init__(self):
            super().__init__(name="odd")

        def update_state(self, y, predicted, sample_weight=None):
            return super().update_state(y)

    for metrics in ([distance], [Odd()]):
        history = trainer(metrics=metrics).fit(
            (X, X), epochs=1, callbacks=[keras.callbacks.TerminateOnNaN()], progress=False
        )
        assert len(history["loss"]) == 1


class OwnLoss(looper.Trainer):
    def build(self):
        self.model, self.optimizer = line(), keras.optimizers.SGD(0.1)

    def compute_loss(self, batch, training):
        x, y = batch
        return (self.model(x, training=training) - y) ** 2


@pytest.mark.parametrize(
    ("attempt", "message"),
    [
        (
            lambda: OwnLoss().fit((X, X), epochs=1, class_weight={0: 1.0}),
            "class_weight is for looper's own compute_loss",
        ),
        (
            lambda: trainer(loss_weights="a").fit((X, X), epochs=1, progress=False),
            "loss_weights has 'a'; expected numb",
        ),
        (
            lambda: trainer(metrics=["mae"], loss=None).fit(X, epochs=1, progress=False),
            "no targets y to compare with|no l",
        ),
        (lambda: augment.crop(1.5), "crop: padding=1.5: expected a positive whole number"),
        (lambda: augment.mixup(-1.0), "mixup: alpha=-1.0: expected a positive number"),
        (lambda: augment.cutout(-2), "cutout: size=-2: expected a positive whole number"),
        (lambda: augment.augmented((X, X), augment.flip(), seed="a"), "seed='a': expected a whole number"),
    ],
)
def test_one_line(attempt, message):
    with pytest.raises(looper.InputError, match=message) as caught:
        attempt()
    assert "\n" not in str(caught.value)


def test_class_weights_of_sequences_with_a_weight_per_example():
    x, y = np.ones((8, 3, 1), "float32"), np.zeros((8, 3, 1), "int32")
    each = np.linspace(0, 2, 8).astype("float32")

    def run(data, **options):
        mine = looper.Trainer(
            model=lambda: keras.Sequential([keras.Input((3, 1)), L.Dense(2, "softmax")]),
            optimizer=lambda: keras.optimizers.SGD(0.1),
            loss="sparse_categorical_crossentropy",
        )
        mine.fit(data, epochs=1, progress=False, **options)
        return mine.predict(x)

    both = run((x, y, each), class_weight={0: 2.0})
    np.testing.assert_allclose(both, run((x, y, np.repeat(2 * each[:, None], 3, 1))), rtol=1e-6)


def test_nested_lists_of_a_generator_are_one_array():
    def batches():
        for _ in range(3):
            yield np.ones((8, 1), "float32"), [[3.0]] * 8

    def run(**options):
        mine = trainer(**options)
        mine.fit(batches, epochs=1, progress=False)
        return weight(mine)

    assert run(accumulate=2) == pytest.approx(run(), rel=1e-6)


def test_a_loss_can_be_subtracted():
    class Less(looper.Trainer):
        def build(self):
            self.model, self.optimizer, self.loss = line(), keras.optimizers.SGD(0.1), "mse"

        def compute_loss(self, batch, training):
            return 3.0 - -super().compute_loss(batch, training)

    assert Less().evaluate((X, 3 * X))["loss"] == 7
