"""`callbacks=` of `evaluate` and `predict`: Keras' own are called as by Keras, looper's at both ends."""

import keras
import numpy as np
import pytest

import looper
from looper import callbacks
from looper.run.watch import Watch
from tests.support import models

X, Y = models.data(examples=50)


class Noting(keras.callbacks.Callback):
    """Notes each call; `stop` is the batch after which it ends all."""

    def __init__(self, stop=None):
        super().__init__()
        self.stop, self.calls = stop, []

    def _note(self, name, *args, logs=None):
        outputs = (logs or {}).get("outputs")
        numbers = None if logs is None else {key: len(outputs) if key == "outputs" else logs[key] for key in logs}
        self.calls.append((*args, name, numbers))

    def on_test_begin(self, logs=None):
        self._note("test begins", logs=logs)

    def on_test_batch_begin(self, batch, logs=None):
        self._note("test batch begins", batch, logs=logs)

    def on_test_batch_end(self, batch, logs=None):
        self._note("test batch ends", batch, logs=logs)
        if batch == self.stop:
            self.model.stop_evaluating = True

    def on_test_end(self, logs=None):
        self._note("test ends", logs=logs)

    def on_predict_begin(self, logs=None):
        self._note("prediction begins")

    def on_predict_batch_begin(self, batch, logs=None):
        self._note("prediction batch begins", batch)

    def on_predict_batch_end(self, batch, logs=None):
        self._note("prediction batch ends", batch, logs=logs)
        if batch == self.stop:
            self.model.stop_predicting = True

    def on_predict_end(self, logs=None):
        self._note("prediction ends")


@pytest.fixture(scope="module")
def trainer():
    metrics = lambda: [keras.metrics.SparseCategoricalAccuracy("accuracy")]  # noqa: E731
    return looper.Trainer(model=models.dense, loss=models.cross_entropy, metrics=metrics)


@pytest.mark.parametrize("stop", [None, 1])
def test_keras_callbacks_are_called_as_keras_calls_them(trainer, stop):
    ours, theirs = Noting(stop), Noting(stop)
    found = trainer.evaluate((X, Y), batch_size=16, callbacks=[ours])
    predicted = trainer.predict(X, batch_size=16, callbacks=[ours])
    assert not {"stop_evaluating", "stop_predicting"} & vars(trainer.model).keys()
    model = keras.models.clone_model(trainer.model)
    model.set_weights(trainer.model.get_weights())
    model.compile(loss=models.cross_entropy(), metrics=["accuracy"])
    expected = model.evaluate(X, Y, batch_size=16, callbacks=[theirs], verbose=0, return_dict=True)
    model.predict(X, batch_size=16, callbacks=[theirs], verbose=0)
    assert [call[:-1] for call in ours.calls] == [call[:-1] for call in theirs.calls]
    for (*_, mine), (*_, keras_) in zip(ours.calls, theirs.calls, strict=True):
        assert mine == (keras_ and pytest.approx(keras_, rel=1e-5))  # float32 in Keras
    assert len(ours.calls) == (20 if stop is None else 12)
    assert {name: found[name] for name in expected} == pytest.approx(expected, rel=1e-5)
    assert found["examples"] == len(predicted) == (50 if stop is None else 32)


def test_a_keras_callback_that_looks_at_no_batch_costs_no_execution_a_batch(trainer, monkeypatch):
    class Ends(keras.callbacks.Callback):
        def on_test_end(self, logs=None):
            self.logs = logs

    ends = Ends()
    begun, begin = [], Watch.begin
    monkeypatch.setattr(Watch, "begin", lambda self: begun.append(self.each_batch) or begin(self))
    trainer.evaluate((X, Y), batch_size=16, callbacks=[ends])
    trainer.evaluate((X, Y), batch_size=16, callbacks=[Noting()])
    assert ends.logs.keys() == {"loss", "accuracy"}
    assert begun == [False, True, True, True, True]


def test_each_of_several_sets_begins_anew(trainer):
    """What ended one of them does not cut the next one short."""
    noting = Noting(stop=1)
    found = trainer.evaluate(looper.data.named(one=(X, Y), two=(X, Y)), batch_size=16, callbacks=[noting])
    assert found["one/examples"] == 32 and found["two/examples"] == 50  # its batches are numbered on


def test_what_keras_callbacks_look_at_is_there(trainer, tmp_path):
    trainer.evaluate((X, Y), callbacks=[keras.callbacks.TensorBoard(str(tmp_path))])
    assert not hasattr(trainer.model, "optimizer")


def test_looper_s_callbacks_are_called_at_both_ends(trainer):
    calls = []
    hooks = ("on_eval_begin", "on_eval_end", "on_predict_begin", "on_predict_end")
    noting = callbacks.LambdaCallback(**{hook: lambda *args, hook=hook: calls.append((hook, *args)) for hook in hooks})
    found = trainer.evaluate((X, Y), callbacks=[noting])
    trainer.predict(X, callbacks=noting)
    row = {"step": 0, "epoch": 0, **{f"eval/{name}": value for name, value in found.items()}}
    assert calls == [("on_eval_begin", 0), ("on_eval_end", 0, row), ("on_predict_begin", 0), ("on_predict_end", 0)]


def test_wrong_callbacks(trainer):
    with pytest.raises(looper.InputError, match=r"EarlyStopping in evaluate\(\) asks for its run, .* give it to fit"):
        trainer.evaluate((X, Y), callbacks=[callbacks.EarlyStopping("eval/loss")])
    with pytest.raises(looper.InputError, match=r"CSVLogger writes what a fit does: give it to fit\(\)\."):
        trainer.evaluate((X, Y), callbacks=[callbacks.CSVLogger("log.csv")])
    with pytest.raises(looper.InputError, match="callbacks: 3 is int; expected an instance"):
        trainer.predict(X, callbacks=[3])
    nothing = looper.Trainer()
    nothing.predict_step = lambda batch: np.zeros(1)
    with pytest.raises(looper.InputError, match=r"Keras callbacks need self.model: it is NoneType"):
        nothing.predict(X, callbacks=[Noting()])
