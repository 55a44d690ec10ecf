"""What belongs to the whole process is the caller's: random numbers, directories, threads, names of logs."""

import os
import random
import threading

import keras
import numpy as np
import pytest
import tensorflow as tf

import looper
from looper.base.errors import InputError
from tests.support import models

L = models.L
X, Y = models.data(examples=32)
REPLICAS = {"strategy": "mirrored", "devices": 2}
FIT = {"epochs": 2, "batch_size": 8, "progress": False}


def lazy():
    """Built, and so drawn, when it sees data."""
    return keras.Sequential([L.Dense(16, activation="relu"), L.Dropout(0.3), L.Dense(3)])


def make(model=lazy, **options):
    parts = {"optimizer": lambda: keras.optimizers.Adam(0.01), "loss": models.cross_entropy}
    return looper.Trainer(model=model, **parts | {"execution": "graph"} | options)


def draws():
    return random.random(), float(np.random.uniform())


@pytest.mark.parametrize(("options", "seed"), [({}, 1), ({"execution": "eager"}, 2), (REPLICAS, 3)], ids=str)
def test_the_callers_draws_are_as_without_looper(options, seed):
    random.seed(seed)
    np.random.seed(seed)
    expected = [draws() for _ in range(6)]
    random.seed(seed)
    np.random.seed(seed)
    found = [draws()]
    trainer = make(**options)
    found.append(draws())
    trainer.fit((X, Y), eval_data=(X, Y), **FIT)
    found.append(draws())
    trainer.evaluate((X, Y))
    found.append(draws())
    trainer.predict(X)
    trainer.audit((X, Y))
    found.append(draws())
    looper.unfreeze(trainer.model)
    trainer.train_on_batch((X[:8], Y[:8]))
    found.append(draws())
    assert found == expected


@pytest.mark.parametrize("options", [{}, REPLICAS], ids=str)
def test_what_the_caller_draws_changes_no_weight(options):
    found = []
    for seed in (1, 2):
        trainer = make(**options)
        random.seed(seed)
        np.random.seed(seed)
        trainer.fit((X, Y), **FIT)
        found.append(trainer.model.get_weights())
    for one, other in zip(*found, strict=True):
        np.testing.assert_array_equal(one, other)


class Drawing(looper.Trainer):
    """Its own data and model draw from NumPy, and so does a part that is built in the middle."""

    def build(self):
        self.drawn = [float(np.random.uniform())]
        self.model, self.loss, self.optimizer = lazy(), models.cross_entropy(), keras.optimizers.SGD(0.1)

    def train_data(self):
        self.drawn.append(float(np.random.uniform()))
        return X, Y


def test_a_recipes_own_draws_go_by_its_seed():
    found = []
    for seed in (3, 3, 4):
        trainer = Drawing(seed=seed)
        trainer.fit(**FIT)
        found.append(trainer.drawn)
    assert found[0] == found[1] != found[2] and len(set(found[0])) == 2


def test_two_trainers_in_two_threads_do_not_disturb_each_other():
    kinds = [{"precision": "float64"}, {"precision": "mixed_bfloat16"}]

    def train(options, found):
        trainer = make(**options)
        trainer.fit((X, Y), eval_data=(X, Y), **FIT)
        found.append([trainer.audit((X, Y)).ok, *trainer.model.get_weights(), trainer.predict(X)])

    alone = [[] for _ in kinds]
    for options, found in zip(kinds, alone, strict=True):
        train(options, found)
    together = [[] for _ in kinds]
    for _ in range(2):
        threads = [threading.Thread(target=train, args=each) for each in zip(kinds, together, strict=True)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    for [expected], found in zip(alone, together, strict=True):
        assert len(found) == 2
        for each in found:
            for mine, other in zip(each, expected, strict=True):
                assert np.asarray(mine).dtype == np.asarray(other).dtype
                np.testing.assert_array_equal(mine, other)


def test_a_relative_workdir_stays_where_it_is(tmp_path, monkeypatch):
    class Move(looper.callbacks.Callback):
        def on_epoch_end(self, epoch, logs):
            (tmp_path / f"elsewhere_{epoch}").mkdir()
            os.chdir(tmp_path / f"elsewhere_{epoch}")

    monkeypatch.chdir(tmp_path)
    given = [Move(), looper.callbacks.CSVLogger("own.csv"), looper.callbacks.TensorBoard("board")]
    make(workdir="here").fit((X, Y), callbacks=given, save_every=looper.Every(epochs=1), **FIT)
    files = {path.relative_to(tmp_path).parts[0] for path in tmp_path.rglob("*") if path.is_file()}
    assert files == {"here", "own.csv", "board"}
    assert len(list((tmp_path / "here" / "checkpoints").glob("step_*"))) == 2
    assert len((tmp_path / "own.csv").read_text().splitlines()) == 3


class Named(looper.Trainer):
    name, metric, where = "loss", None, "train"

    def build(self):
        self.model, self.loss, self.optimizer = models.dense(norm=False), models.cross_entropy(), "sgd"
        self.metrics = [] if self.metric is None else [keras.metrics.SparseCategoricalAccuracy(self.metric)]

    def compute_loss(self, batch, training):
        loss = super().compute_loss(batch, training)
        return (loss, {self.name: tf.constant(7.0)}) if training == (self.where == "train") else loss


@pytest.mark.parametrize(
    ("name", "options"),
    [("step", {}), ("learning_rate", {"execution": "eager"}), ("gradient_norm/x", REPLICAS), ("examples", {})],
    ids=str,
)
def test_a_log_of_loopers_own_name_is_one_line(name, options):
    for where in ("train", "eval"):
        trainer = type("Recipe", (Named,), {"name": name, "where": where})(**options)
        with pytest.raises(InputError, match=f"a step returns a log called '{name}': looper logs that itself"):
            trainer.fit((X, Y), eval_data=(X, Y), **FIT)


def test_a_metric_of_loopers_own_name_is_one_line():
    with pytest.raises(InputError, match="there is a metric called 'steps_per_second': looper logs that itself"):
        type("Recipe", (Named,), {"metric": "steps_per_second"})()


def test_what_a_notebook_shows(tmp_path):
    trainer = make(workdir=tmp_path, model=lambda: models.dense(norm=False))
    assert repr(trainer.history) == "History: nothing was logged yet"
    history = trainer.fit((X, Y), eval_data=(X, Y), **FIT)
    last = f"loss {history['loss'][-1]:.4g}, eval/loss {history['eval/loss'][-1]:.4g}"
    assert repr(history) == f"History of 8 steps: {last}"
    assert repr(trainer) == f"<Trainer at step 8, model of 163 weights, in {tmp_path}>"
    assert repr(looper.Every(minutes=5)) == "Every(minutes=5)"
