"""An epoch's own means: in the history, the CSV file and the terminal, as in Keras' `fit`, however often is logged."""

import csv
import io
import json

import keras
import numpy as np
import pytest
import tensorflow as tf

import looper
from looper.callbacks import CSVLogger, ProgressBar
from looper.run.history import History

R = np.random.RandomState(0)
X, Y = R.randn(44, 4).astype("float32"), (R.rand(44, 1) > 0.5).astype("float32")
METRICS = {
    "accuracy": keras.metrics.BinaryAccuracy,
    "auc": keras.metrics.AUC,
    "precision": keras.metrics.Precision,
    "iou": lambda name: keras.metrics.BinaryIoU(threshold=0.5, name=name),
    "error": keras.metrics.RootMeanSquaredError,
}


class Largest(keras.metrics.Metric):
    """What it holds after several batches is no sum."""

    def __init__(self, name="largest"):
        super().__init__(name=name)
        self.value = self.add_weight(name="value", initializer="zeros")

    def update_state(self, y, predicted, sample_weight=None):
        self.value.assign(keras.ops.maximum(self.value, keras.ops.max(predicted)))

    def result(self):
        return self.value


def make():
    return keras.Sequential([keras.Input((4,)), keras.layers.Dense(1, "sigmoid", kernel_initializer="ones")])


def make_trainer(workdir=None, metrics=METRICS, options=None):
    return looper.Trainer(
        model=make,
        optimizer=lambda: keras.optimizers.SGD(0.1),
        loss="binary_crossentropy",
        metrics=lambda: [kind(name=name) for name, kind in metrics.items()],
        workdir=workdir,
        **(options or {"execution": "graph"}),
    )


def trained(workdir=None, log=3, epochs=3, metrics=METRICS, options=None, data=(X, Y), **fit):
    trainer = make_trainer(workdir, metrics, options)
    fit = {"batch_size": 4, "shuffle": False, "log_every": looper.Every(steps=log), "progress": False} | fit
    return trainer.fit(data, epochs=epochs, **fit)


@pytest.fixture(scope="module")
def of_keras():
    model = make()
    metrics = [kind(name=name) for name, kind in METRICS.items()]
    model.compile(optimizer=keras.optimizers.SGD(0.1), loss="binary_crossentropy", metrics=metrics)
    return model.fit(X, Y, batch_size=4, epochs=3, shuffle=False, verbose=0).history


OPTIONS = {
    "several windows": ({"execution": "graph"}, 3),
    "one window": ({"execution": "graph"}, 100),
    "eager": ({"execution": "eager"}, 5),
    "a loop in XLA": ({"execution": "xla_loop"}, 4),
    "two replicas": ({"strategy": "mirrored", "devices": 2, "execution": "graph"}, 4),
}


@pytest.mark.parametrize("case", OPTIONS)
def test_history_has_one_value_an_epoch_as_keras(case, of_keras):
    options, log = OPTIONS[case]
    found = trained(log=log, options=options).epochs
    assert found.keys() - {"learning_rate", "gradient_norm"} == of_keras.keys()
    for name, values in of_keras.items():
        # float32 sums of 44 examples, added up in other parts
        np.testing.assert_allclose(found[name], values, rtol=2e-5, err_msg=name)


@pytest.mark.parametrize("log", [1, 11, 4])
def test_of_data_whose_end_is_found_late(log, of_keras):
    """A dataset of unknown length: that an epoch has ended may be known only when nothing is left to log."""
    data = tf.data.Dataset.from_tensor_slices((X, Y)).batch(4).filter(lambda x, y: True)
    found = trained(log=log, data=data, batch_size=None).epochs
    for name, values in of_keras.items():
        np.testing.assert_allclose(found[name], values, rtol=2e-5, err_msg=name)


@pytest.mark.parametrize("first", [True, False])
def test_a_callback_of_keras_in_one_half_of_an_epoch(first, of_keras):
    """With one, metrics are not emptied within an epoch; sums over parts of it are added up all the same."""
    trainer = make_trainer(metrics={"hits": keras.metrics.TruePositives}, options={"execution": "graph"})
    options = {"batch_size": 4, "shuffle": False, "progress": False, "log_every": looper.Every(steps=3)}
    given = [[keras.callbacks.TerminateOnNaN()], []]
    trainer.fit((X, Y), steps=7, callbacks=given[not first], **options)
    trainer.fit((X, Y), steps=11, callbacks=given[first], **options)
    whole = trained(metrics={"hits": keras.metrics.TruePositives}, epochs=1)
    assert trainer.history.epochs["hits"] == whole.epochs["hits"]
    assert whole.epochs["hits"] == [sum(whole["hits"])] != [0.0]  # each log is of its window alone


def test_other_metrics_within_an_epoch_have_no_value_over_it():
    trainer = make_trainer(metrics={"auc": keras.metrics.AUC}, options={"execution": "graph"})
    options = {"batch_size": 4, "shuffle": False, "progress": False, "log_every": looper.Every(steps=3)}
    trainer.fit((X, Y), steps=7, **options)
    trainer.metrics = [keras.metrics.AUC(num_thresholds=50, name="auc")]
    trainer.fit((X, Y), steps=22, **options)
    assert len(trainer.history.epochs["auc"]) == 1  # of the second epoch
    assert len(trainer.history.epochs["loss"]) == 2


def test_an_epoch_whose_end_is_logged_after_its_checkpoint_is_logged_once(tmp_path):
    """The file has the row of an epoch that the checkpoint of the same step does not know to have ended."""
    trained(tmp_path, epochs=1)
    path = tmp_path / "metrics.jsonl"
    before = path.read_text()
    found = History()
    found.load(path, 11, 0)
    assert found.epochs == {} and len(found["loss"]) == 4
    found.load(path, 11, 1)
    assert len(found.epochs["loss"]) == 1
    trained(tmp_path, epochs=1)
    assert path.read_text() == before


def test_an_epoch_that_is_continued_has_the_means_over_all_of_it(tmp_path, of_keras):
    """The first process ends at step 17, in the middle of a window of the second epoch."""
    names = ("accuracy", "auc")
    some = {name: METRICS[name] for name in names}
    trained(tmp_path, metrics=some, epochs=None, steps=17, log=3, steps_per_epoch=11)
    found = trained(tmp_path, metrics=some, log=3, steps_per_epoch=11).epochs
    for name in ("loss", *names):
        np.testing.assert_allclose(found[name], of_keras[name], rtol=2e-5, err_msg=name)
    read = History()
    read.load(tmp_path / "metrics.jsonl", 33, 3)
    assert {name: read.epochs[name] for name in found} == found
    read.load(tmp_path / "metrics.jsonl", 32, 2)
    assert read.epochs["loss"] == found["loss"][:2]
    assert not any(name.startswith("epoch/") for name in read)


def test_a_metric_whose_value_over_an_epoch_is_not_known_is_left_out():
    metrics = {"accuracy": METRICS["accuracy"], "largest": Largest}
    several, one = (trained(log=log, metrics=metrics) for log in (3, 11))
    assert "largest" not in several.epochs and len(several["largest"]) == 12
    assert one.epochs["largest"] == one["largest"]


def test_the_terminal_and_the_csv_file_have_them(tmp_path, of_keras):
    said = io.StringIO()
    trained(tmp_path, callbacks=[CSVLogger(), ProgressBar(stream=said, plain_seconds=0.0)], eval_data=(X, Y))
    with (tmp_path / "log.csv").open() as file:
        rows = list(csv.DictReader(file))
    for name, values in of_keras.items():
        np.testing.assert_allclose([float(row[name]) for row in rows], values, rtol=2e-5, err_msg=name)
    lines = [line for line in said.getvalue().splitlines() if line.startswith("epoch")]
    ends = [line for line in lines if any(f"step {step}/33 " in line for step in (11, 22, 33))]
    assert len(ends) == 3 and len(lines) == 3 + 9  # windows end after 3, 6 and 9 steps, too
    for line, loss in zip(ends, of_keras["loss"], strict=True):
        assert f"loss {loss:.4g}  " in line
    assert json.loads((tmp_path / "metrics.jsonl").read_text().splitlines()[4])["epoch/loss"] == float(rows[0]["loss"])
