"""A run that is stopped at any step and started again ends with the same bits as an undisturbed one."""

import json
import os
import random
import signal
import zlib

import keras
import numpy as np
import pytest
import tensorflow as tf

import looper
from looper import checkpoint
from looper.loop import StopSignals
from tests import models

EPOCHS = 12
SPEEDS = ("steps_per_second", "examples_per_second")


def arrays():
    return models.data(examples=50)


def dataset():
    x, y = models.data(examples=50)
    return tf.data.Dataset.from_tensor_slices((x, y)).shuffle(20, seed=5).batch(8)


def unknown_length():
    x, y = models.data(examples=60)
    kept = tf.data.Dataset.from_tensor_slices((x, y)).shuffle(60, seed=5).filter(lambda x, y: x[0] > -0.5)
    return kept.batch(8)


class Stop(looper.callbacks.Callback):
    """Stops the run in the given way once `step` steps are done."""

    def __init__(self, step, how):
        self.step, self.how = step, how

    def on_execution(self, step):
        if step >= self.step:
            if self.how == "exception":
                raise RuntimeError("stopped by the test")
            os.kill(os.getpid(), self.how)


def make_trainer(workdir, **options):
    def make_model():
        layers = [models.L.Dense(16, activation="relu"), models.L.BatchNormalization(), models.L.Dropout(0.5)]
        return keras.Sequential([keras.Input((6,)), *layers, models.L.Dense(3)])

    return looper.Trainer(
        model=make_model,
        optimizer=lambda: keras.optimizers.AdamW(keras.optimizers.schedules.CosineDecay(0.05, 60)),
        loss=models.cross_entropy,
        metrics=lambda: [keras.metrics.SparseCategoricalAccuracy("accuracy")],
        workdir=workdir,
        **options,
    )


def train(workdir, make_data, callbacks=(), **options):
    trainer = make_trainer(workdir, **options)
    data = make_data()
    stopping = looper.callbacks.EarlyStopping("eval/loss", patience=2, min_delta=0.05)
    trainer.fit(
        data,
        epochs=EPOCHS,
        batch_size=8 if make_data is arrays else None,
        eval_data=models.data(examples=30),
        log_every=looper.Every(steps=5),
        save_every=looper.Every(steps=4),
        callbacks=[stopping, *callbacks],
        progress=False,
    )
    return trainer


def everything(trainer):
    values = {name: v.numpy() for name, v in trainer._state().variables.items()}
    rows = [{k: v for k, v in row.items() if k not in SPEEDS} for row in trainer.history.rows]
    return values, rows, trainer.step, trainer.epoch


def assert_same(a, b):
    assert a[2:] == b[2:]
    assert a[1] == b[1]
    assert a[0].keys() == b[0].keys()
    for name, value in a[0].items():
        np.testing.assert_array_equal(value, b[0][name], err_msg=name)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    kept = {}

    def get(make_data, **options):
        key = (make_data, *options.items())
        if key not in kept:
            kept[key] = everything(train(tmp_path_factory.mktemp("undisturbed"), make_data, **options))
        return kept[key]

    return get


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM, "exception"])
@pytest.mark.parametrize("make_data", [arrays, dataset, unknown_length])
def test_stop_and_continue(undisturbed, tmp_path, make_data, how):
    expected = undisturbed(make_data)
    assert expected[2] < EPOCHS * 7, "early stopping is part of this test"
    step = random.Random(str((make_data.__name__, how))).randrange(1, expected[2])
    with pytest.raises((KeyboardInterrupt, SystemExit, RuntimeError)) as stopped:
        train(tmp_path, make_data, [Stop(step, how)])
    if how == signal.SIGTERM:
        assert stopped.value.code == 75
    saved = [checkpoint.step_of(path) for path in checkpoint.list_checkpoints(tmp_path / "checkpoints")]
    if how == "exception":
        assert saved[-1:] == [(step - 1) // 4 * 4] * (step > 4)  # save_every=Every(steps=4), not at the exception
    else:
        assert saved[-1] >= step
    assert_same(everything(train(tmp_path, make_data)), expected)


@pytest.mark.parametrize("make_data", [arrays, dataset])
def test_stop_at_every_step_of_two_epochs(undisturbed, tmp_path, make_data):
    """One run, stopped and started again after each execution."""
    expected = undisturbed(make_data)
    for step in range(1, 10):
        with pytest.raises(KeyboardInterrupt):
            train(tmp_path, make_data, [Stop(step, signal.SIGINT)], steps_per_execution=1)
    assert_same(everything(train(tmp_path, make_data)), expected)


def test_two_replicas_keep_their_own_seeds_and_statistics(undisturbed, tmp_path):
    options = {"strategy": "mirrored", "devices": 2}
    expected = undisturbed(arrays, **options)
    seeds = [value for name, value in expected[0].items() if "seed_generator_state" in name]
    assert len(seeds) == 2
    assert (seeds[0] != seeds[1]).any()
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path, arrays, [Stop(9, signal.SIGINT)], **options)
    assert_same(everything(train(tmp_path, arrays, **options)), expected)


def test_a_finished_run_is_not_trained_again(tmp_path):
    first = train(tmp_path, arrays)
    again = train(tmp_path, arrays)
    assert_same(everything(again), everything(first))


def test_a_larger_number_continues(tmp_path):
    def run(folder, *totals):
        for epochs in totals:
            trainer = make_trainer(folder)
            trainer.fit(arrays(), epochs=epochs, batch_size=8, progress=False)
        return everything(trainer)

    assert_same(run(tmp_path / "twice", 2, 4), run(tmp_path / "once", 4))


def test_continuing_in_the_same_process_equals_one_fit(tmp_path):
    data = arrays()
    twice, once = make_trainer(None), make_trainer(None)
    for epochs in (1, 3):
        twice.fit(data, epochs=epochs, batch_size=8, progress=False)
    once.fit(data, epochs=3, batch_size=8, progress=False)
    assert_same(everything(twice), everything(once))


def test_a_damaged_checkpoint_is_named_and_the_one_before_it_used(undisturbed, tmp_path):
    expected = undisturbed(arrays)
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path, arrays, [Stop(13, signal.SIGINT)], steps_per_execution=1)
    newest = checkpoint.list_checkpoints(tmp_path / "checkpoints")[-1]
    file = newest / "state.data-00000-of-00001"
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 0xFF
    file.write_bytes(content)
    with pytest.warns(UserWarning, match=f"damaged.*{newest.name}"):
        trainer = train(tmp_path, arrays)
    assert_same(everything(trainer), expected)


def test_a_second_interrupt_stops_at_once():
    """The first is noted, for the end of the execution."""
    with StopSignals() as signals:
        os.kill(os.getpid(), signal.SIGINT)
        assert signals.received == signal.SIGINT
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)


def test_nothing_in_a_checkpoint_is_unpickled(tmp_path):
    """An array of Python objects, such as an attacker would write, is a damaged file: no code in it runs."""
    path = make_trainer(None).save(tmp_path / "here")
    np.savez(path / "host.npz", array_0=np.array([Touches(tmp_path / "touched")], object))
    content = json.loads((path / "host.json").read_text())
    content["files"]["host.npz"] = zlib.crc32((path / "host.npz").read_bytes())
    content["host"]["window"] = {"__array__": "array_0"}
    (path / "host.json").write_text(json.dumps(content))
    with pytest.raises(looper.InputError, match="the checkpoint is damaged"):
        make_trainer(None).restore(path)
    assert not (tmp_path / "touched").exists()


class Touches:
    """Makes a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return self.path.touch, ()


def test_resume_weights_and_resume_false_keep_the_old_files(tmp_path):
    first = make_trainer(tmp_path)
    first.fit(arrays(), epochs=2, batch_size=8, progress=False)
    trained = [w.numpy() for w in first.model.weights]
    second = make_trainer(tmp_path)
    second.fit(arrays(), steps=1, batch_size=16, resume="weights", progress=False)
    assert second.step == 1
    assert models.norm_difference(second.model.weights[0].numpy(), trained[0]) < 0.2
    third = make_trainer(tmp_path)
    third.fit(arrays(), steps=1, batch_size=8, resume=False, progress=False)
    assert models.norm_difference(third.model.weights[0].numpy(), trained[0]) > 0.2
    kept = sorted(path.parent.name for path in (tmp_path / "previous").glob("*/checkpoints"))
    assert kept == ["1", "2"]


def test_save_and_restore_by_hand(tmp_path):
    data = arrays()
    first = make_trainer(None)
    first.fit(data, steps=9, batch_size=8, progress=False)
    path = first.save(tmp_path / "here")
    first.fit(data, steps=20, batch_size=8, progress=False)
    second = make_trainer(None)
    second.restore(path)
    assert second.step == 9
    second.fit(arrays(), steps=20, batch_size=8, progress=False)
    assert_same(everything(second)[:1] + ([],), everything(first)[:1] + ([],))
