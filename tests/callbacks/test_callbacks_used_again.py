"""Callbacks given to another trainer, and to a run that goes on: whose state is whose, and what they need."""

import warnings

import keras
import numpy as np
import pytest

import looper
from looper import callbacks
from looper.run.callback import all_needs
from tests.support import models

L = models.L
REPLICAS = {"strategy": "mirrored", "devices": 2}
MODES = pytest.mark.parametrize("options", [{"execution": "graph"}, {"execution": "eager"}, REPLICAS], ids=str)


def data(scale=1.0, shift=0.0):
    random = np.random.default_rng(0)
    x = random.normal(size=(32, 4)).astype("float32")
    return x, (x @ random.normal(size=(4, 1)) * scale + shift).astype("float32")


def make(**options):
    parts = {
        "model": lambda: keras.Sequential([keras.Input((4,)), L.Dense(1)]),
        "optimizer": lambda: keras.optimizers.SGD(0.05),
        "loss": "mse",
        "metrics": lambda: [keras.metrics.MeanAbsoluteError(name="mae")],
    }
    return looper.Trainer(**parts | {"execution": "graph"} | options)


def fit(trainer, *given, pair=None, epochs=12, **options):
    pair = pair or data()
    fitted = {"batch_size": 8, "progress": False, "eval_data": pair, "epochs": epochs} | options
    trainer.fit(pair, callbacks=list(given), **fitted)
    return trainer


class Counting(callbacks.Callback):
    """Counts epochs; what is its own, and what it holds, survives."""

    def __init__(self):
        self.count, self.names = 0, {"seen": []}

    def on_epoch_end(self, epoch, logs):
        self.count += 1
        self.names["seen"].append(epoch)

    def state(self):
        return {"count": self.count, "names": self.names}

    def restore(self, state):
        self.count, self.names = state["count"], state["names"]


USED = {
    "stopping": (
        lambda: callbacks.EarlyStopping("eval/loss", patience=2, min_delta=0.5),
        lambda c: c.state()["waited"],
    ),
    "plateau": (lambda: callbacks.ReduceLROnPlateau("loss", patience=2, min_delta=0.5), lambda c: c.state()["waited"]),
    "best": (lambda: callbacks.Checkpoint(keep=1, best="eval/loss"), lambda c: c.best.value),
    "own": (Counting, lambda c: (c.count, c.names)),
}


@pytest.mark.parametrize("kind", USED)
def test_given_to_another_trainer_a_callback_begins_afresh(kind, tmp_path):
    new, look = USED[kind]
    again, fresh = new(), new()
    harder = data(30, 5)
    fit(make(workdir=tmp_path / "a"), again)
    fit(make(workdir=tmp_path / "b"), again, pair=harder, epochs=3)
    fit(make(workdir=tmp_path / "c"), fresh, pair=harder, epochs=3)
    assert look(again) == look(fresh)


def test_within_one_trainer_it_goes_on():
    counting, trainer = Counting(), make()
    fit(trainer, counting, epochs=2)
    fit(trainer, counting, epochs=5)
    assert counting.count == 5 and counting.names == {"seen": [0, 1, 2, 3, 4]}


@MODES
def test_a_limit_counts_for_each_trainer(options):
    x, y = data()
    y[3] = np.nan
    guard = callbacks.NanGuard("skip", limit=1)
    for _ in range(3):
        fit(make(**options), guard, pair=(x, y), epochs=1, eval_data=data())
    with pytest.raises(looper.errors.NonFiniteLossError, match="more than NanGuard's limit=1"):
        fit(make(**options), guard, pair=(x, y), epochs=2, eval_data=data())


def left_out(caught):
    return [str(w.message) for w in caught if "is left out" in str(w.message)]


@pytest.mark.parametrize(
    ("then", "now", "went_on", "told"),
    [
        ([("eval/loss", 99)], [("eval/loss", 99)], [True], 0),
        ([("eval/mae", 99)], [("eval/loss", 99)], [False], 1),
        ([("eval/mae", 99), ("eval/loss", 99)], [("eval/loss", 99), ("eval/mae", 99)], [True, True], 0),
        ([("eval/loss", 99), ("eval/loss", 98)], [("eval/loss", 99), ("eval/loss", 98)], [True, True], 0),
        ([("eval/loss", 99), ("eval/loss", 98)], [("eval/loss", 99)], [False], 1),
        ([("eval/loss", 99)], [("eval/loss", 99), ("loss", 99)], [True, False], 0),
        ([("eval/loss", 99)], [], [], 0),
        ([], [("eval/loss", 99)], [False], 0),
    ],
)
def test_a_state_belongs_to_what_a_callback_watches(then, now, went_on, told, tmp_path):
    def stopping(watched):
        return [callbacks.EarlyStopping(monitor, patience=patience, mode="max") for monitor, patience in watched]

    fit(make(workdir=tmp_path), *stopping(then), epochs=3)
    again = stopping(now)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        fit(make(workdir=tmp_path), *again, epochs=4)
    # by the growing logs none is better than the first, so that each epoch waits for one more
    assert [callback.state()["waited"] for callback in again] == [
        {True: 3, False: 0}[on] if callback.best.monitor != "loss" else 0
        for callback, on in zip(again, went_on, strict=True)
    ]
    assert len(left_out(caught)) == told


def test_of_keras_callbacks_it_is_the_wrapped_ones(tmp_path):
    def wrapped(monitor):
        return callbacks.KerasCallback(keras.callbacks.EarlyStopping(monitor, patience=9), every=looper.Every(steps=3))

    assert wrapped("val_loss").identity() == "KerasCallback(EarlyStopping(val_loss, auto))"
    fit(make(workdir=tmp_path), wrapped("val_loss"), steps=6, epochs=None)
    with pytest.warns(UserWarning, match=r"EarlyStopping\(val_loss, auto.* is left out: .*\(val_mae, min"):
        fit(make(workdir=tmp_path), wrapped("val_mae"), epochs=3)


def test_what_held_callbacks_need_is_done():
    class Both(callbacks.Callback):
        def __init__(self, *parts):
            self.parts, self.by_name, self.itself = parts, {"throughput": callbacks.Throughput()}, self

    both = Both([callbacks.NanGuard("skip")])
    assert all_needs([both]) == {"input_wait", "skip_nonfinite"}
    history = fit(make(), both, epochs=1).history
    assert {"input_wait", "skipped_steps"} <= history.names()

    class Mistyped(callbacks.Callback):
        needs = ("input_weight",)

    with pytest.raises(looper.InputError, match=r"Mistyped\.needs='input_weight': did you mean 'input_wait'\?"):
        fit(make(), Mistyped())


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("kind", ["looper", "keras"])
def test_an_evaluation_that_is_never_finite_counts_as_in_keras(value, kind):
    class Evaluated(looper.Trainer):
        def eval_step(self, batch):
            return {"loss": tf.constant(value)}

    import tensorflow as tf

    trainer = Evaluated(model=lambda: keras.Sequential([keras.Input((4,)), L.Dense(1)]), optimizer="sgd", loss="mse")
    monitors = {
        "looper": callbacks.EarlyStopping("eval/loss", patience=3),
        "keras": keras.callbacks.EarlyStopping("val_loss", patience=3),
    }
    assert fit(trainer, monitors[kind], epochs=10).step == 16


def test_a_number_after_nan_is_the_best():
    values = iter([np.nan, np.nan, 3.0, 2.0, np.nan, 4.0])

    class Probe(callbacks.Callback):
        logs = ("probe",)

        def on_epoch_end(self, epoch, logs):
            self.run.log("probe", next(values))

    stopping = callbacks.EarlyStopping("probe", patience=2, mode="min")
    assert fit(make(), Probe(), stopping, epochs=9).step == 6 * 4 and stopping.best.value == 2.0


@pytest.mark.parametrize("cut", ["\n2,", "\n2,8", "\n2,8,0.", "\n2,8,x", "\n", "in the last column"])
def test_a_torn_row_of_a_csv_file_costs_that_row(cut, tmp_path):
    fit(make(workdir=tmp_path), callbacks.CSVLogger(), epochs=3)
    path = tmp_path / "log.csv"
    text = path.read_text()
    kept = text[: text.rindex("\n2,")] + cut if cut != "\n" else text + "\x00\xff,"
    kept = text[:-3] if cut == "in the last column" else kept
    path.write_text(kept, errors="surrogateescape")
    fit(make(workdir=tmp_path), callbacks.CSVLogger(), epochs=5)
    rows = [line.split(",")[0] for line in path.read_text().splitlines()[1:]]
    assert rows == (["0", "1", "3", "4"] if cut != "\n" else ["0", "1", "2", "3", "4"])


def test_columns_that_come_later(tmp_path):
    class Probe(callbacks.Callback):
        def on_epoch_end(self, epoch, logs):
            if epoch == 3:
                self.run.log("probe", 7.0)

    make(workdir=tmp_path).fit(data(), epochs=2, batch_size=8, callbacks=[callbacks.CSVLogger()], progress=False)
    fit(make(workdir=tmp_path), callbacks.CSVLogger(), Probe(), epochs=5)
    header, *rows = [line.split(",") for line in (tmp_path / "log.csv").read_text().splitlines()]
    assert header[:2] == ["epoch", "step"] and {"eval/loss", "eval/mae", "probe"} <= set(header)
    assert [row[header.index("probe")] for row in rows] == ["", "", "", "7.0", ""]
    assert [bool(row[header.index("eval/loss")]) for row in rows] == [False, False, True, True, True]
    assert [row[0] for row in rows] == ["0", "1", "2", "3", "4"]


@pytest.mark.parametrize(("frequency", "steps"), [(3, [3, 6, 9, 12]), (5, [5, 10]), (8, [8]), ("epoch", [4, 8, 12])])
def test_keras_saves_every_so_many_batches(frequency, steps, tmp_path):
    saved = []

    class Saving(keras.callbacks.ModelCheckpoint):
        def _save_model(self, epoch, batch, logs):
            saved.append(4 * epoch + (batch + 1 if batch is not None else 4))

    own = Saving(str(tmp_path / "{epoch}.keras"), save_freq=frequency)
    fit(make(), own, epochs=3)
    theirs, saved = list(saved), []
    model = keras.Sequential([keras.Input((4,)), L.Dense(1)])
    model.compile("sgd", "mse")
    model.fit(*data(), epochs=3, batch_size=8, callbacks=[Saving(own.filepath, save_freq=frequency)], verbose=0)
    assert theirs == saved == steps


@MODES
def test_what_a_callback_freezes_is_frozen_from_the_next_boundary_on(options):
    class Freeze(callbacks.Callback):
        def on_epoch_end(self, epoch, logs):
            if epoch == 0:
                self.run.model.layers[0].trainable = False
            if epoch == 2:
                self.run.model.layers[0].trainable = True

    once = fit(make(**options), epochs=1).model.get_weights()
    trainer = make(**options)
    fit(trainer, Freeze(), epochs=3)
    for mine, other in zip(trainer.model.get_weights(), once, strict=True):
        np.testing.assert_array_equal(mine, other)
    fit(trainer, epochs=4)
    assert (trainer.model.get_weights()[0] != once[0]).all()


def test_a_number_after_infinity_is_the_best():
    best = callbacks.EarlyStopping("loss", mode="max").best
    assert not best.better(-np.inf, 1) and best.value is None
    assert (
        best.better(-1.0, 2) and not best.better(-np.inf, 3) and best.better(np.inf, 4) and not best.better(np.inf, 5)
    )
