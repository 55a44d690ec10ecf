"""What a callback logs by `run.log`: everywhere where looper's own logs are, and monitored like them."""

import csv
import json

import keras
import numpy as np
import pytest

import looper
from looper import callbacks
from tests.callbacks.test_callbacks import scalars
from tests.support import models

X, Y = models.data(examples=24)


class Probe(callbacks.Callback):
    """Logs in each place where a callback may."""

    logs = ("probe/score", "eval/probe")

    def on_epoch_end(self, epoch, logs):
        self.run.log("probe/score", np.float32(epoch) * -1.0)

    def on_eval_end(self, step, logs):
        assert self.run.predict(X).shape == (24, 3)
        self.run.log("eval/probe", keras.ops.convert_to_tensor(2.0 * step))

    def on_fit_end(self):
        self.run.log("undeclared", 7)


class Told(callbacks.Callback):
    def __init__(self):
        self.rows = []

    def on_log(self, step, logs):
        self.rows.append((step, dict(logs)))


def make(workdir=None, **options):
    return looper.Trainer(
        model=lambda: models.dense(norm=False),
        optimizer=lambda: keras.optimizers.SGD(0.1),
        loss=models.cross_entropy,
        workdir=workdir,
        **options,
    )


def fit(trainer, *given, **options):
    options = {"epochs": 3, "eval_data": (X, Y), "progress": False, **options}
    return trainer.fit((X, Y), batch_size=8, callbacks=list(given), **options)


EXPECTED = [
    (3, {"step": 3, "epoch": 0, "probe/score": 0.0, "eval/probe": 6.0}),
    (6, {"step": 6, "epoch": 1, "probe/score": -1.0, "eval/probe": 12.0}),
    (9, {"step": 9, "epoch": 2, "probe/score": -2.0, "eval/probe": 18.0}),
    (9, {"step": 9, "epoch": 2, "undeclared": 7.0}),
]


@pytest.mark.parametrize(
    "options", [{}, {"execution": "eager"}, {"strategy": "mirrored", "devices": 2}], ids=["one", "eager", "two"]
)
def test_all_callbacks_and_files_get_it(options, tmp_path, capsys):
    told = Told()
    given = [Probe(), told, callbacks.CSVLogger(), callbacks.HParams(metrics=["probe/score"])]
    history = fit(make(tmp_path, **options), *given, progress=True)
    assert told.rows == EXPECTED
    assert history["probe/score"] == [0.0, -1.0, -2.0] and history.steps("eval/probe") == [3, 6, 9]
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [row for row in rows if not {"loss", "eval/loss", "epoch/loss"} & row.keys()] == [row for _, row in EXPECTED]
    assert scalars(tmp_path, "probe/score") == [(3, 0.0), (6, -1.0), (9, -2.0)]
    assert scalars(tmp_path, "eval/probe") == [(3, 6.0), (6, 12.0), (9, 18.0)]
    assert scalars(tmp_path, "undeclared") == [(9, 7.0)]
    with (tmp_path / "log.csv").open() as file:
        assert [row["probe/score"] for row in csv.DictReader(file)] == ["-0.0", "-1.0", "-2.0"]
    assert "logged after step 3  probe/score -0  eval/probe 6" in capsys.readouterr().err


def test_it_is_monitored(tmp_path):
    trainer = make(tmp_path)
    stop = callbacks.EarlyStopping("probe/score", patience=1, mode="min", min_delta=1.5)
    best = callbacks.Checkpoint(best="eval/probe", mode="max")
    fit(trainer, Probe(), stop, best, epochs=9)
    assert trainer.epoch == 2, "-1 is no improvement of 1.5 on 0"
    assert best.best_path == tmp_path / "checkpoints" / "step_00000006"


@pytest.mark.parametrize("mode", ["graph", "eager"])
def test_a_continued_run_has_the_rows_of_an_undisturbed_one(mode, tmp_path):
    for epochs in (1, 3):
        fit(make(tmp_path / "parts", execution=mode), Probe(), epochs=epochs)
    fit(make(tmp_path / "whole", execution=mode), Probe())

    def logged(name):
        rows = map(json.loads, (tmp_path / name / "metrics.jsonl").read_text().splitlines())
        return [row for row in rows if {"probe/score", "eval/probe"} & row.keys()]

    assert logged("parts") == logged("whole") == [row for _, row in EXPECTED[:3]]


class Logs(callbacks.Callback):
    def __init__(self, name, value=1.0):
        self.name, self.value = name, value

    def on_step(self, step, logs):
        self.run.log(self.name, self.value)


class Text(callbacks.Callback):
    logs = "probe"


class AnotherAttribute(callbacks.Callback):
    def __init__(self):
        self.logs = {"loss": []}


class Claims(callbacks.Callback):
    logs = ("loss",)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (Logs("loss"), r"run.log\('loss', ...\): training logs that itself"),
        (Logs("eval/loss"), r"run.log\('eval/loss', ...\): training logs that itself"),
        (Logs("step"), r"run.log\('step', ...\): training logs that itself"),
        (Logs("probe", "high"), r"run.log\('probe', 'high'\): expected a number"),
        (Logs("probe", [1.0, 2.0]), r"run.log\('probe', \[1.0, 2.0\]\): expected a number"),
        (Text(), "Text.logs is str: expected a tuple of the names that it logs"),
        (AnotherAttribute(), "AnotherAttribute.logs is dict: expected a tuple .* give another attribute another name"),
        (Claims(), "a callback declares the log 'loss', which training logs itself"),
        (callbacks.EarlyStopping("probe"), "monitor='probe' is not logged"),
    ],
)
def test_what_cannot_be_logged_is_one_line(given, message):
    with pytest.raises(looper.InputError, match=message):
        fit(make(), given)


def test_eager_steps_know_their_names_when_they_have_run():
    with pytest.raises(looper.InputError, match="training logs that itself"):
        fit(make(execution="eager"), Logs("loss"))
