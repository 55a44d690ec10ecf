"""`train_on_batch`: the step of `fit` on one batch after another, for a loop of one's own."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import looper
from tests.support import inside, line, models

X, Y = models.data(examples=40)
BATCH = 8
EACH = looper.Every(steps=1)
TWO = {"strategy": "mirrored", "devices": 2}


def trainer(**changes):
    parts = {
        "model": lambda: models.dense(0.5),
        "optimizer": lambda: keras.optimizers.Adam(0.01),
        "loss": models.cross_entropy,
        "metrics": lambda: [keras.metrics.SparseCategoricalAccuracy("accuracy")],
        "execution": "graph",
    }
    return looper.Trainer(**{**parts, **changes})


def batches(epochs=1):
    return [(X[i : i + BATCH], Y[i : i + BATCH]) for _ in range(epochs) for i in range(0, 40, BATCH)]


def fit(mine, epochs=1, **options):
    data = (X, Y)
    return mine.fit(data, epochs=epochs, batch_size=BATCH, shuffle=False, log_every=EACH, progress=False, **options)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"execution": "xla_step", "model": models.dense},
        {"execution": "eager"},
        {"accumulate": 2, "clip_norm": 0.1, "ema": 0.9},
        TWO,
    ],
    ids=["graph", "xla_step", "eager", "accumulate", "two"],
)
def test_a_loop_of_ones_own_is_a_fit(options):
    fitted, by_batch = trainer(**options), trainer(**options)
    history = fit(fitted, epochs=2)
    found = [by_batch.train_on_batch(batch) for batch in batches(2)]
    assert by_batch.step == fitted.step == 10
    for name in ("loss", "accuracy", "gradient_norm", "learning_rate"):
        np.testing.assert_allclose([logs[name] for logs in found], history[name], rtol=2e-5, atol=1e-6)
    assert {type(value) for logs in found for value in logs.values()} == {float}
    for name, value in inside.values(fitted).items():
        if "metric" not in name and "accuracy" not in name:
            np.testing.assert_allclose(inside.values(by_batch)[name], value, rtol=1e-4, atol=1e-5, err_msg=name)


def test_one_trace_for_one_shape_and_one_for_all_others():
    mine = trainer()
    for examples in (8, 8, 5, 3, 8, 7):
        mine.train_on_batch((X[:examples], Y[:examples]))
    assert [execution.traces for execution in inside.executions(mine)] == [1, 1]


def test_it_composes_with_fit_save_restore_and_evaluate(tmp_path):
    class Counted(looper.Trainer):
        def compute_loss(self, batch, training):
            return super().compute_loss(batch, training), {"at": tf.cast(self.step, tf.float32)}

    def make():
        return Counted(model=models.dense(0.5), optimizer="adam", loss=models.cross_entropy(), execution="graph")

    def begun():
        mine = make()
        found = [mine.train_on_batch(batch)["at"] for batch in batches()[:3]]
        assert (found, mine.step, mine.epoch) == ([0, 1, 2], 3, 0)
        return mine

    mine = begun()
    mine.save(tmp_path / "saved")
    assert mine.evaluate((X, Y))["at"] == 3
    expected = fit(mine)
    assert expected["at"] == [3, 4, 5, 6, 7]
    assert (mine.step, mine.epoch) == (8, 1)
    last = mine.train_on_batch(batches()[0])
    assert last["at"] == 8
    mine.save(tmp_path / "later")

    again = make()
    again.restore(tmp_path / "saved")
    assert fit(again)["loss"] == expected["loss"]
    assert again.train_on_batch(batches()[0])["loss"] == last["loss"]

    other = make()
    other.restore(tmp_path / "later")
    assert other.step == 9
    assert other.train_on_batch(batches()[1])["loss"] == mine.train_on_batch(batches()[1])["loss"]
    other.save(tmp_path / "last")
    third = make()
    third.restore(tmp_path / "last")
    assert third.step == 10


def test_data_may_depend_on_training():
    mine, weights = line.trainer(), []
    for _ in range(5):
        weights.append(line.weight(mine))
        mine.train_on_batch((line.X, line.X * weights[-1] / 2))
    np.testing.assert_allclose(weights, [0.9**step for step in range(5)], rtol=1e-6)


def test_metrics_are_of_this_batch_and_a_fit_begins_its_own():
    class Never(looper.Trainer):
        def compute_loss(self, batch, training):
            return super().compute_loss(batch, training) * 0.0

    mine = Never(model=models.dense, optimizer="sgd", loss=models.cross_entropy, metrics=["accuracy"])
    found = [mine.train_on_batch(batch)["accuracy"] for batch in batches()]
    assert len(set(found)) > 1
    fitted = mine.fit((X, Y), epochs=1, batch_size=BATCH, shuffle=False, progress=False)["accuracy"]
    np.testing.assert_allclose(fitted, np.mean(found), rtol=1e-6)


def test_an_optimizer_that_was_built_anew_in_between_is_the_one_that_counts():
    layers = [models.L.Dense(4), models.L.Dense(3)]
    trainer = looper.Trainer(
        model=keras.Sequential([keras.Input((6,)), *layers]),
        optimizer="adam",
        loss=models.cross_entropy(),
        execution="graph",
    )
    batch = models.data(examples=8)
    trainer.train_on_batch(batch)
    for trainable in (False, True):
        layers[0].trainable = trainable
        if not trainable:
            trainer.fit(batch, steps=trainer.step + 1, batch_size=8, progress=False)
    trainer.train_on_batch(batch)
    assert len(trainer.optimizer.variables) == 10
    before = [v.numpy() for v in trainer.optimizer.variables]
    trainer.train_on_batch(batch)
    assert sum(not np.array_equal(v.numpy(), b) for v, b in zip(trainer.optimizer.variables, before, strict=True)) >= 8


def test_what_is_frozen_in_between_is_not_trained():
    mine = trainer(model=models.dense)
    mine.train_on_batch(batches()[0])
    layer = next(layer for layer in mine.model.layers if layer.weights)
    layer.trainable = False
    before = layer.get_weights()
    with pytest.warns(UserWarning, match="variables are trainable now"):
        mine.train_on_batch(batches()[0])
    np.testing.assert_array_equal(layer.get_weights()[0], before[0])
    layer.trainable = True
    with pytest.warns(UserWarning, match="variables are trainable now"):
        mine.train_on_batch(batches()[0])
    assert (layer.get_weights()[0] != before[0]).any()


def test_batches_as_data_yields_them():
    inputs = {"a": keras.Input((2,), name="a"), "b": keras.Input((1,), name="b")}
    model = keras.Model(inputs, keras.layers.Dense(1)(keras.layers.Concatenate()(list(inputs.values()))))
    mine = looper.Trainer(model=model, optimizer="sgd", loss="mse")
    x = {"a": np.ones((4, 2)), "b": [[1], [2], [3], [4]]}
    for batch in ((x, np.ones((4, 1))), [x, tf.ones([4, 1])], (x, np.ones((4, 1)), np.ones(4))):
        assert np.isfinite(mine.train_on_batch(batch)["loss"])
    assert mine.step == 3


def test_no_callback_is_run():
    class Never(looper.callbacks.Callback):
        def on_step(self, step, logs):
            raise AssertionError

    class Recipe(looper.Trainer):
        def callbacks(self):
            return [Never()]

    Recipe(model=line.model(), optimizer="sgd", loss="mse").train_on_batch((line.X, line.X))


@pytest.mark.parametrize(
    ("batch", "error", "said"),
    [
        ((1.0, 2.0), looper.InputError, r"train_on_batch\(\) takes one batch of examples.* scalars\."),
        ((line.X[:0], line.X[:0]), looper.InputError, r"a batch has no examples \(step 1\)"),
        ((line.X * np.inf, line.X), looper.NonFiniteLossError, "the loss became .* at step 1"),
        ((line.X, line.X, line.X[:, 0], line.X), looper.InputError, r"the data yields tuple of shapes"),
    ],
    ids=["scalars", "empty", "infinite", "four"],
)
def test_a_batch_that_is_wrong_is_one_line(batch, error, said):
    with pytest.raises(error, match=f"^{said}[^\n]*$"):
        line.trainer().train_on_batch(batch)


def test_x_and_y_as_two_arguments_is_one_line():
    with pytest.raises(looper.InputError, match=r"train_on_batch\(\(x, y\)\), not train_on_batch\(x, y\)"):
        line.trainer().train_on_batch(line.X, line.X)


def test_strict_audits_its_step():
    class Wrong(looper.Trainer):
        def compute_loss(self, batch, training):
            return tf.square(self.model(batch[0]) - batch[1])

    model = keras.Sequential([keras.Input((1,)), keras.layers.Dropout(0.5), keras.layers.Dense(1)])
    with pytest.raises(looper.InputError, match="strict=True, and the audit found"):
        Wrong(model=model, optimizer="sgd", strict=True).train_on_batch((line.X, line.X))
