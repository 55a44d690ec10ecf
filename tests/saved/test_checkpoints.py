"""Checkpoints that are replaced, damaged, restored before a model is built, or put back by hand."""

import contextlib
import itertools
import os
import shutil
import signal

import keras
import numpy as np
import pytest
import tensorflow as tf

import looper
from looper.saved import checkpoint
from tests.support import dense, models


def test_a_checkpoint_that_is_replaced_is_never_missing(tmp_path, monkeypatch):
    """Killed at any rename or removal while a checkpoint of the same step is written again."""
    dense.fit(dense.trainer(tmp_path), epochs=1)
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

        again = dense.trainer()
        again.restore(path)
        with monkeypatch.context() as patch, contextlib.suppress(SystemExit):
            patch.setattr(type(path), "rename", or_die(rename))
            patch.setattr(checkpoint.shutil, "rmtree", or_die(remove))
            again.save(path)
        checkpoint.recover(path.parent)
        assert checkpoint.list_checkpoints(path.parent) == [path]
        assert [entry.name for entry in path.parent.iterdir()] == [path.name]
        checkpoint.read_host(path)


def test_any_damaged_file_is_found_before_it_is_used(tmp_path):
    """Whichever of a checkpoint's files is cut short; the run goes on from the checkpoint before."""

    def fit(folder=None, **options):
        dataset = tf.data.Dataset.from_tensor_slices((dense.X, dense.Y)).shuffle(48, seed=0).batch(8)
        mine = dense.trainer(folder)
        mine.fit(dataset, progress=False, **options)
        return dense.weights(mine)

    expected = fit(epochs=2)
    fit(tmp_path / "run", steps=4, save_every=looper.Every(steps=2))
    newest = checkpoint.list_checkpoints(tmp_path / "run" / "checkpoints")[-1]
    other = dense.trainer()
    before = dense.weights(other)
    for file in ("host.npz", "host.json", "state.index", "state.data-00000-of-00001"):
        damaged = tmp_path / file / newest.name
        shutil.copytree(newest, damaged)
        (damaged / file).write_bytes((newest / file).read_bytes()[:-7])
        with pytest.raises(looper.InputError, match="damaged"):
            other.restore(damaged)
        dense.assert_equal(dense.weights(other), before)
    shutil.copytree(damaged, newest, dirs_exist_ok=True)
    with pytest.warns(UserWarning, match="damaged"):
        found = fit(tmp_path / "run", epochs=2)
    dense.assert_equal(found, expected)


class Unbuilt(keras.Model):
    def __init__(self):
        super().__init__()
        self.layer = models.L.Dense(3)

    def call(self, x):
        return self.layer(x)


def test_restoring_a_model_that_is_not_built_yet(tmp_path):
    first = dense.trainer(model=Unbuilt)
    dense.fit(first, epochs=2)
    second = dense.trainer(model=Unbuilt)
    second.restore(first.save(tmp_path / "saved"))
    np.testing.assert_array_equal(second.predict(dense.X), first.predict(dense.X))
    assert second.evaluate((dense.X, dense.Y))["loss"] == first.evaluate((dense.X, dense.Y))["loss"]


def test_more_epochs_after_an_early_stop(tmp_path):
    """In another process, and in the same."""
    stopping = looper.callbacks.EarlyStopping("loss", patience=1, min_delta=10.0, restore_best_weights=False)
    mine = dense.trainer(tmp_path / "run")
    dense.fit(mine, epochs=10, callbacks=stopping)
    assert mine.epoch == 2
    again = dense.trainer(tmp_path / "run")
    dense.fit(again, epochs=10)
    assert again.epoch == 2, "the same command has nothing left to do"
    shutil.copytree(tmp_path / "run", tmp_path / "other process")
    for trainer in (mine, dense.trainer(tmp_path / "other process")):
        dense.fit(trainer, epochs=12)
        assert trainer.epoch == 12


def test_putting_a_run_back_by_hand(tmp_path):
    every = looper.Every(steps=2)
    dense.fit(dense.trainer(tmp_path), steps=6, save_every=every)
    back = dense.trainer(tmp_path)
    back.restore(tmp_path / "checkpoints" / "step_00000002")
    back.model.weights[0].assign(back.model.weights[0] * 2)
    dense.fit(back, steps=5, save_every=every)
    steps = [checkpoint.step_of(path) for path in checkpoint.list_checkpoints(tmp_path / "checkpoints")]
    assert steps == [2, 4, 5]
    assert (tmp_path / "previous" / "1" / "checkpoints" / "step_00000006").exists()
    later = dense.trainer(tmp_path)
    dense.fit(later, steps=5)
    dense.assert_equal(dense.weights(later), dense.weights(back))


def test_saving_after_restoring_keeps_the_position(tmp_path):
    first = dense.trainer(tmp_path / "run")
    dense.fit(first, steps=4)
    path = first.save(tmp_path / "one")
    second = dense.trainer()
    second.restore(path)
    third = dense.trainer()
    third.restore(second.save(tmp_path / "two"))
    dense.fit(third, steps=10)
    dense.fit(first, steps=10)
    dense.assert_equal(dense.weights(third), dense.weights(first))


def test_evaluations_are_not_repeated_when_data_of_unknown_length_is_continued(tmp_path):
    def run(folder, stop=None):
        class Stop(looper.callbacks.Callback):
            def on_execution(self, step):
                if step == stop:
                    os.kill(os.getpid(), signal.SIGINT)

        kept = tf.data.Dataset.from_tensor_slices((dense.X, dense.Y)).filter(lambda x, y: True).batch(8)
        mine = dense.trainer(folder, steps_per_execution=1)
        mine.fit(
            kept,
            epochs=2,
            eval_data=(dense.X, dense.Y),
            eval_every=looper.Every(steps=6),
            callbacks=[Stop()],
            progress=False,
        )
        return mine.history.steps("eval/loss")

    expected = run(tmp_path / "undisturbed")
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "stopped", stop=6)
    assert run(tmp_path / "stopped") == expected == [6, 12]


def test_weights_of_a_run_whose_checkpoints_are_all_damaged(tmp_path):
    """An error before the run's files are moved, not a silent start from fresh weights."""
    dense.fit(dense.trainer(tmp_path), epochs=1)
    [path] = checkpoint.list_checkpoints(tmp_path / "checkpoints")
    (path / "state.index").write_bytes(b"")
    with (
        pytest.warns(UserWarning, match="damaged"),
        pytest.raises(looper.InputError, match=r"all checkpoints in .* are damaged"),
    ):
        dense.fit(dense.trainer(tmp_path), epochs=1, resume="weights")
    assert path.exists()
    with pytest.raises(looper.InputError, match="resume='weights': there is no checkpoint in"):
        dense.fit(dense.trainer(tmp_path / "new"), epochs=1, resume="weights")


def test_a_script_that_unfreezes_between_two_fits_is_continued(tmp_path):
    """Stopped twice in its second phase, it ends as one that was not: optimizer state and averages find their
    weights."""

    def run(folder, stop_after=None):
        keras.utils.set_random_seed(0)
        mine = looper.Trainer(
            model=lambda: keras.Sequential(
                [keras.Input((6,)), models.L.Dense(6, name="base"), models.L.Dense(6, name="head")]
            ),
            optimizer=lambda: keras.optimizers.Adam(0.01),
            loss="mse",
            ema=0.9,
            workdir=tmp_path / folder,
        )
        x, _ = models.data(examples=40)
        fit = {"batch_size": 8, "progress": False, "save_every": looper.Every(steps=1)}
        mine.model.layers[0].trainable = False
        mine.fit((x, x), epochs=2, **fit)
        mine.model.layers[0].trainable = True

        class Kill(looper.callbacks.Callback):
            def on_saved(self, step, path):
                if step == stop_after:
                    raise RuntimeError("killed")

        mine.fit((x, x), epochs=4, callbacks=[Kill()], **fit)
        return mine

    whole = run("whole")
    for stop_after in (12, 17):
        with pytest.raises(RuntimeError, match="killed"):
            run("stopped", stop_after)
    again = run("stopped")
    assert again.step == whole.step == 20
    for mine, other in zip(again.model.weights, whole.model.weights, strict=True):
        np.testing.assert_array_equal(mine.numpy(), other.numpy())
    x, _ = models.data(examples=8)
    np.testing.assert_array_equal(again.predict(x), whole.predict(x))
    finished = run("stopped")
    np.testing.assert_array_equal(finished.predict(x), whole.predict(x))
