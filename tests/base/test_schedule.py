"""`Every`, and the boundaries that executions are cut at."""

from types import SimpleNamespace

import pytest

import looper
from looper.base.schedule import Every, Ticker, steps_to_boundary
from looper.run import loop
from tests.support import models


def test_seconds_are_looked_at_after_each_execution():
    now = [0.0]
    ticker = Ticker(Every(minutes=1), clock=lambda: now[0])
    due = []
    for second in (30, 59, 60, 61, 119, 121):
        now[0] = second
        due.append(ticker.due(step=1, epochs_done=None))
    assert due == [False, False, True, False, False, True]
    assert ticker.steps_left(5) is None


def test_epochs_and_steps():
    assert [Ticker(Every(epochs=2)).due(10, done) for done in (None, 1, 2, 3, 4)] == [False, False, True, False, True]
    assert steps_to_boundary(0, [Ticker(Every(steps=7)), Ticker(None)], 100, None) == 7
    assert steps_to_boundary(20, [Ticker(Every(steps=7))], 100, 3) == 1
    assert steps_to_boundary(20, [], None) is None


@pytest.mark.parametrize("text", ["", "steps", "10 parsecs", "1.5 steps", "-1 steps", "ten steps"])
def test_periods_that_cannot_be_read(text):
    with pytest.raises(looper.InputError):
        Every.parse(text)


class Recorder(looper.callbacks.Callback):
    def __init__(self, every=None):
        self.every = every
        self.calls = []

    def on_execution(self, step):
        self.calls.append(("execution", step))

    def on_step(self, step, logs):
        self.calls.append(("step", step))

    def on_epoch_end(self, epoch, logs):
        self.calls.append(("epoch", epoch))

    def on_eval_end(self, step, logs):
        self.calls.append(("eval", step))

    def on_save(self, step, path):
        self.calls.append(("save", step))

    def of(self, kind):
        return [value for name, value in self.calls if name == kind]


def run(tmp_path, callbacks, **options):
    trainer = looper.Trainer(
        model=models.dense,
        optimizer=lambda: models.keras.optimizers.SGD(0.1),
        loss="mse",
        workdir=tmp_path,
        steps_per_execution=4,
    )
    x = models.data(examples=80)[0]
    return trainer, trainer.fit((x, x[:, :3]), batch_size=8, callbacks=callbacks, progress=False, **options)


def test_executions_are_cut_at_every_boundary(tmp_path):
    recorder, own = Recorder(), Recorder(looper.Every(steps=6))
    run(
        tmp_path,
        [recorder, own],
        epochs=2,
        log_every=looper.Every(steps=7),
        save_every=looper.Every(steps=9),
        eval_data=(models.data()[0], models.data()[0][:, :3]),
    )
    assert recorder.of("execution") == [4, 6, 7, 9, 10, 12, 16, 17, 18, 20]
    assert recorder.of("step") == [7, 10, 17, 20]  # counted from the beginning of the epoch
    assert own.of("step") == [6, 12, 18]
    assert recorder.of("epoch") == [0, 1]
    assert recorder.of("eval") == [10, 20]
    assert recorder.of("save") == [9, 18, 20]
    # at one step: logs first, then the epoch's end, then evaluation; saving is last
    assert recorder.calls[-4:] == [("step", 20), ("epoch", 1), ("eval", 20), ("save", 20)]


@pytest.mark.parametrize(
    ("seconds", "ends"),
    [
        (1 / 64, [1, 2, 10, 26, 40, 56, 72, 80, 96, 112, 120]),  # 16 take 0.25 s; at most 8 times as many as before
        (1 / 8, [1, *range(2, 121, 2)]),
        (1.0, list(range(1, 121))),
    ],
)
def test_auto_executions_take_a_quarter_of_a_second_and_cross_no_boundary(seconds, ends, monkeypatch):
    """By a clock that each step moves on by so many seconds."""
    now, call, recorder = [0.0], loop.Loop._call, Recorder()

    def called(self, steps, fresh):
        now[0] += seconds * steps
        return call(self, steps, fresh)

    monkeypatch.setattr(loop, "time", SimpleNamespace(monotonic=lambda: now[0]))
    monkeypatch.setattr(loop.Loop, "_call", called)
    trainer = looper.Trainer(model=models.dense, optimizer="sgd", loss="mse")
    x = models.data(examples=960)[0]
    every = looper.Every(steps=40)
    trainer.fit((x, x[:, :3]), batch_size=8, steps=120, log_every=every, callbacks=[recorder], progress=False)
    assert recorder.of("execution") == ends


def test_evaluation_by_steps_and_at_the_end(tmp_path):
    recorder = Recorder()
    data = (models.data()[0], models.data()[0][:, :3])
    run(tmp_path, [recorder], steps=13, eval_every=looper.Every(steps=5), eval_data=data)
    assert recorder.of("eval") == [5, 10, 13]


def test_steps_per_epoch_over_arrays_that_roll_on(tmp_path):
    recorder = Recorder()
    trainer, history = run(tmp_path, [recorder], epochs=3, steps_per_epoch=7)
    assert (trainer.step, trainer.epoch) == (21, 3)
    assert recorder.of("epoch") == [0, 1, 2]
    assert history.steps("loss") == [7, 14, 21]


def test_max_time_stops_and_saves(tmp_path):
    recorder = Recorder()
    trainer, _ = run(tmp_path, [recorder], steps=10**6, max_time=1e-6)
    assert trainer.step < 100
    assert recorder.of("save") == [trainer.step]
