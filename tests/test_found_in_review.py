"""Ways a run went wrong once, each found by a reader."""

import contextlib
import itertools
import os
import signal

import keras
import numpy as np
import pytest
import tensorflow as tf

import looper
from looper.saved import checkpoint
from tests.support import models

X, Y = models.data(examples=48)


def trainer(workdir=None, model=models.dense, optimizer=lambda: keras.optimizers.SGD(0.05), **options):
    return looper.Trainer(model=model, optimizer=optimizer, loss=models.cross_entropy, workdir=workdir, **options)


def fit(mine, **options):
    return mine.fit((X, Y), **{"batch_size": 8, "progress": False, **options})


def weights(mine):
    return [w.numpy() for w in mine.model.weights]


def assert_equal(a, b):
    for one, other in zip(a, b, strict=True):
        np.testing.assert_array_equal(one, other)


def test_a_checkpoint_that_is_replaced_is_never_missing(tmp_path, monkeypatch):
    """Killed at any rename or removal while a checkpoint of the same step is written again."""
    fit(trainer(tmp_path), epochs=1)
    [path] = checkpoint.list_checkpoints(tmp_path / "checkpoints")
    rename, remove = type(path).rename, checkpoint.shutil.rmtree
    for number in range(3):
        calls = itertools.count()

        def or_die(function, number=number, calls=calls):
            def call(*args, **options):
                if next(calls) == number:
                    raise SystemExit("killed")
                return function(*args, **options)

            return call

        again = trainer()
        again.restore(path)
        with monkeypatch.context() as patch, contextlib.suppress(SystemExit):
            patch.setattr(type(path), "rename", or_die(rename))
            patch.setattr(checkpoint.shutil, "rmtree", or_die(remove))
            again.save(path)
        checkpoint.recover(path.parent)
        assert checkpoint.list_checkpoints(path.parent) == [path]
        assert [entry.name for entry in path.parent.iterdir()] == [path.name]
        checkpoint.read_host(path)


@pytest.mark.parametrize("file", ["host.npz", "host.json", "state.index", "state.data-00000-of-00001"])
def test_any_damaged_file_is_found_before_it_is_used(tmp_path, file):
    dataset = tf.data.Dataset.from_tensor_slices((X, Y)).shuffle(48, seed=0).batch(8)
    expected = trainer()
    expected.fit(dataset, epochs=2, progress=False)
    dataset = tf.data.Dataset.from_tensor_slices((X, Y)).shuffle(48, seed=0).batch(8)
    trainer(tmp_path).fit(dataset, steps=4, save_every=looper.Every(steps=2), progress=False)
    newest = checkpoint.list_checkpoints(tmp_path / "checkpoints")[-1] / file
    newest.write_bytes(newest.read_bytes()[:-7])
    dataset = tf.data.Dataset.from_tensor_slices((X, Y)).shuffle(48, seed=0).batch(8)
    mine = trainer(tmp_path)
    with pytest.warns(UserWarning, match="damaged"):
        mine.fit(dataset, epochs=2, progress=False)
    assert_equal(weights(mine), weights(expected))


class Unbuilt(keras.Model):
    def __init__(self):
        super().__init__()
        self.layer = models.L.Dense(3)

    def call(self, x):
        return self.layer(x)


def test_restoring_a_model_that_is_not_built_yet(tmp_path):
    first = trainer(model=Unbuilt)
    fit(first, epochs=2)
    second = trainer(model=Unbuilt)
    second.restore(first.save(tmp_path / "saved"))
    np.testing.assert_array_equal(second.predict(X), first.predict(X))
    assert second.evaluate((X, Y))["loss"] == first.evaluate((X, Y))["loss"]


@pytest.mark.parametrize("new_process", [True, False])
def test_more_epochs_after_an_early_stop(tmp_path, new_process):
    stopping = looper.callbacks.EarlyStopping("loss", patience=1, min_delta=10.0, restore_best_weights=False)
    mine = trainer(tmp_path)
    fit(mine, epochs=10, callbacks=stopping)
    assert mine.epoch == 2
    again = trainer(tmp_path)
    fit(again, epochs=10)
    assert again.epoch == 2, "the same command has nothing left to do"
    mine = trainer(tmp_path) if new_process else mine
    fit(mine, epochs=12)
    assert mine.epoch == 12


def test_putting_a_run_back_by_hand(tmp_path):
    every = looper.Every(steps=2)
    fit(trainer(tmp_path), steps=6, save_every=every)
    back = trainer(tmp_path)
    back.restore(tmp_path / "checkpoints" / "step_00000002")
    back.model.weights[0].assign(back.model.weights[0] * 2)
    fit(back, steps=5, save_every=every)
    steps = [checkpoint.step_of(path) for path in checkpoint.list_checkpoints(tmp_path / "checkpoints")]
    assert steps == [2, 4, 5]
    assert (tmp_path / "previous" / "1" / "checkpoints" / "step_00000006").exists()
    later = trainer(tmp_path)
    fit(later, steps=5)
    assert_equal(weights(later), weights(back))


def test_saving_after_restoring_keeps_the_position(tmp_path):
    first = trainer(tmp_path / "run")
    fit(first, steps=4)
    path = first.save(tmp_path / "one")
    second = trainer()
    second.restore(path)
    third = trainer()
    third.restore(second.save(tmp_path / "two"))
    fit(third, steps=10)
    fit(first, steps=10)
    assert_equal(weights(third), weights(first))


def test_a_recipes_own_data_goes_on_in_another_fit():
    class Own(looper.Trainer):
        def build(self):
            self.model, self.optimizer = models.dense(), keras.optimizers.SGD(0.05)
            self.loss = models.cross_entropy()

        def train_data(self):
            return X.copy(), Y.copy()

    twice, once = Own(), Own()
    for steps in (4, 9):
        twice.fit(steps=steps, batch_size=8, progress=False)
    once.fit(steps=9, batch_size=8, progress=False)
    assert_equal(weights(twice), weights(once))


def test_evaluations_are_not_repeated_when_data_of_unknown_length_is_continued(tmp_path):
    def run(folder, stop=None):
        class Stop(looper.callbacks.Callback):
            def on_execution(self, step):
                if step == stop:
                    os.kill(os.getpid(), signal.SIGINT)

        kept = tf.data.Dataset.from_tensor_slices((X, Y)).filter(lambda x, y: True).batch(8)
        mine = trainer(folder, steps_per_execution=1)
        mine.fit(kept, epochs=2, eval_data=(X, Y), eval_every=looper.Every(steps=6), callbacks=[Stop()], progress=False)
        return mine.history.steps("eval/loss")

    expected = run(tmp_path / "undisturbed")
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "stopped", stop=6)
    assert run(tmp_path / "stopped") == expected == [6, 12]


def test_parts_that_are_set_anew_are_used():
    mine = trainer()
    fit(mine, epochs=1)
    before = weights(mine)[0]
    mine.optimizer = keras.optimizers.SGD(0.0)
    mine.metrics = [keras.metrics.SparseCategoricalAccuracy("accuracy")]
    history = fit(mine, epochs=2)
    np.testing.assert_array_equal(weights(mine)[0], before)
    assert history["learning_rate"][-1] == 0.0
    assert "accuracy" in mine.evaluate((X, Y))


def test_a_gradient_that_is_not_finite_is_named_with_its_step(tmp_path):
    """sqrt at 0: the loss is finite, its gradient is not, and the next loss would be."""

    class Root(looper.Trainer):
        def build(self):
            self.weight = tf.Variable(1.0)
            self.optimizer = keras.optimizers.SGD(0.1)

        def compute_loss(self, batch, training):
            return tf.sqrt(batch * self.weight)

    x = np.ones(64, "float32")
    x[24] = 0
    with pytest.raises(looper.NonFiniteLossError, match=r"the gradient became (nan|inf) at step 4[.] "):
        Root(workdir=tmp_path).fit(x, epochs=1, batch_size=8, shuffle=False, progress=False)


def test_one_of_two_updates_is_skipped():
    """mixed_float16: the first optimizer's gradient is infinite, the second's is not; the step counts as skipped."""

    class Two(looper.Trainer):
        def build(self):
            self.a, self.b = tf.Variable(1.0), tf.Variable(1.0)
            self.first, self.second = keras.optimizers.SGD(0.1), keras.optimizers.SGD(0.1)
            self.first.build([self.a])
            self.second.build([self.b])

        def train_step(self, batch):
            with tf.GradientTape() as tape:
                loss = tf.reduce_mean(self.a * batch)
            self.minimize(loss, tape, self.first, [self.a])
            with tf.GradientTape() as tape:
                other = tf.reduce_mean(self.b * tf.ones_like(batch))
            self.minimize(other, tape, self.second, [self.b])
            return {"loss": loss, "other": other}

    x = np.ones(16, "float32")
    x[3] = np.inf
    two = Two(precision="mixed_float16")
    history = two.fit(x, steps=2, batch_size=8, shuffle=False, log_every=looper.Every(steps=1), progress=False)
    assert history["skipped_steps"] == [1, 0]
    np.testing.assert_allclose(two.a.numpy(), 0.9, rtol=1e-3)
    np.testing.assert_allclose(two.b.numpy(), 0.8, rtol=1e-3)


def test_arithmetic_on_the_default_loss():
    class Half(looper.Trainer):
        def build(self):
            self.model, self.optimizer = models.dense(norm=False), keras.optimizers.SGD(0.05)
            self.loss = models.cross_entropy()

        def compute_loss(self, batch, training):
            return (super().compute_loss(batch, training) - 1.0) / 2

    half, whole = Half(), trainer(model=lambda: models.dense(norm=False))
    assert np.isclose(half.evaluate((X, Y))["loss"], (whole.evaluate((X, Y))["loss"] - 1) / 2)


def test_what_a_keras_user_types_first():
    with pytest.raises(looper.InputError, match=r"fit\(\(x, y\), epochs=...\), not fit\(x, y\)"):
        trainer().fit(X, Y, epochs=1)
    with pytest.raises(looper.InputError, match=r"evaluate\(\(x, y\)\), not evaluate\(x, y\)"):
        trainer().evaluate(X, Y)
    with pytest.raises(looper.InputError, match="there is no model"):
        fit(trainer(model=None), epochs=1)
    with pytest.raises(looper.InputError, match="strategy=3: expected one of"):
        trainer(strategy=3)
    with pytest.raises(looper.InputError, match="a tensor as a Python bool"):

        class Branch(looper.Trainer):
            def build(self):
                self.weight, self.optimizer = tf.Variable(1.0), keras.optimizers.SGD(0.1)

            def compute_loss(self, batch, training):
                return self.weight if tf.reduce_sum(batch) > 0 else -self.weight

        Branch().fit(X, epochs=1, progress=False)
    fit(trainer(), epochs=np.int64(1))


def test_weights_of_a_run_whose_checkpoints_are_all_damaged(tmp_path):
    """An error before the run's files are moved, not a silent start from fresh weights."""
    fit(trainer(tmp_path), epochs=1)
    [path] = checkpoint.list_checkpoints(tmp_path / "checkpoints")
    (path / "state.index").write_bytes(b"")
    with (
        pytest.warns(UserWarning, match="damaged"),
        pytest.raises(looper.InputError, match=r"all checkpoints in .* are damaged"),
    ):
        fit(trainer(tmp_path), epochs=1, resume="weights")
    assert path.exists()
    with pytest.raises(looper.InputError, match="resume='weights': there is no checkpoint in"):
        fit(trainer(tmp_path / "new"), epochs=1, resume="weights")
