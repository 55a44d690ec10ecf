"""Inside the steps `self.step` and `self.epoch` are tensors that count as the loop outside does."""

import contextlib
import math

import keras
import numpy as np
import pytest
import tensorflow as tf

import looper
from looper.data import stacks
from looper.step import autotune, counting, programs
from tests.support import inside

X, Y = np.ones((48, 3), "float32"), np.zeros((48, 1), "float32")
EACH = looper.Every(steps=1)
TWO = {"strategy": "mirrored", "devices": 2}


class Counted(looper.Trainer):
    """Logs the numbers that a step reads, and divides its loss by one, so that training depends on it."""

    def build(self):
        assert (self.step, self.epoch) == (0, 0)
        self.model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(1, kernel_initializer="ones")])
        self.optimizer = keras.optimizers.SGD(0.01)

    def compute_loss(self, batch, training):
        assert self.step.dtype == self.epoch.dtype == tf.int64
        at, epoch = tf.cast(self.step, tf.float32), tf.cast(self.epoch, tf.float32)
        loss = tf.square(self.model(batch[0], training=training) - batch[1]) / (1.0 + at)
        return loss, {"at": at, "in_epoch": epoch}

    def predict_step(self, batch):
        return super().predict_step(batch) * 0 + tf.cast(self.step * 10 + self.epoch, tf.float32)


class CountedInAnOwnStep(Counted):
    def train_step(self, batch):
        logs = super().train_step(batch)
        return {**logs, "twice": 2 * tf.cast(self.step, tf.float32)}

    def transform_gradients(self, gradients, variables):
        return [gradient * tf.cast(self.step + 1, gradient.dtype) for gradient in gradients]


def fit(trainer, **options):
    options = {"epochs": 3, "batch_size": 8, "log_every": EACH, "progress": False, **options}
    return trainer.fit((X, Y), **options)


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        (Counted, {"execution": "graph"}),
        (Counted, {"execution": "graph", "accumulate": 2}),
        (Counted, {"execution": "xla_step"}),
        (Counted, {"execution": "xla_step", "accumulate": 2, **TWO}),
        (Counted, {"execution": "xla_loop"}),
        (Counted, {"execution": "eager"}),
        (CountedInAnOwnStep, {"execution": "graph", **TWO}),
        (CountedInAnOwnStep, {"execution": "eager", "accumulate": 2, **TWO}),
    ],
    ids=lambda value: value.__name__ if isinstance(value, type) else "-".join(map(str, value.values())),
)
def test_steps_and_epochs_are_counted_in_each_mode(kind, options):
    trainer = kind(steps_per_execution=4, **options)
    history = fit(trainer)
    assert history["at"] == list(range(18))
    assert history["in_epoch"] == [0] * 6 + [1] * 6 + [2] * 6
    if kind is CountedInAnOwnStep:
        assert history["twice"] == [2.0 * n for n in range(18)]
    assert (trainer.step, trainer.epoch) == (18, 3)
    if options["execution"] != "eager":
        assert {execution.traces for execution in inside.executions(trainer, "train")} == {1}


@pytest.mark.parametrize("execution", ["graph", "xla_step", "xla_loop"])
def test_the_steps_of_one_call_are_counted(execution, monkeypatch):
    """Boundaries are rare here, so that a call has many steps, over several stacks of batches."""
    monkeypatch.setattr(stacks, "STACK", 4)
    trainer = Counted(execution=execution, steps_per_execution=6)
    history = fit(trainer, log_every=looper.Every(steps=6))
    assert history["at"] == [2.5, 8.5, 14.5]  # means over six steps
    assert history["in_epoch"] == [0, 1, 2]


def test_batches_of_two_sizes_in_one_call_are_counted():
    """For XLA the smaller last batch is a call of its own within a call of the loop."""
    data = tf.data.Dataset.from_tensor_slices((X[:44], Y[:44])).batch(8)
    trainer = Counted(execution="xla_loop", steps_per_execution=6)
    history = trainer.fit(data, epochs=2, log_every=looper.Every(steps=6), progress=False)
    means = [np.average(range(first, first + 6), weights=[8] * 5 + [4]) for first in (0, 6)]
    np.testing.assert_allclose(history["at"], means, rtol=1e-6)


def test_data_of_unknown_length():
    data = tf.data.Dataset.from_tensor_slices((X, Y)).filter(lambda x, y: True).batch(8)
    history = Counted(steps_per_execution=4).fit(data, epochs=2, log_every=EACH, progress=False)
    assert history["at"] == list(range(12))
    assert history["in_epoch"] == [0] * 6 + [1] * 6


@pytest.mark.parametrize("execution", ["graph", "xla_loop"])
def test_a_continued_run_goes_on_counting(execution, tmp_path):
    def trainer(name):
        return Counted(execution=execution, workdir=tmp_path / name)

    whole = fit(trainer("whole"), steps=11, epochs=None)
    fit(trainer("parts"), steps=7, epochs=None)
    parts = fit(trainer("parts"), steps=11, epochs=None)
    for name in ("loss", "at", "in_epoch"):
        assert parts[name] == whole[name]
    assert whole["at"] == list(range(11))


def test_trying_modes_begins_at_the_same_number(monkeypatch):
    monkeypatch.setattr(autotune, "LEAST_STEPS", 100)
    monkeypatch.setattr(autotune, "SECONDS_TO_COMPILE", 0.0)
    monkeypatch.setattr(autotune, "SECONDS_PER_OPERATION", 0.0)
    call, first = programs.StackedExecution.__call__, []

    def recorded(execution, *arguments):
        found = call(execution, *arguments)
        first.append(inside.column(execution, found[0].numpy(), "at")[0])
        return found

    trainer = Counted(execution="auto")
    fit(trainer, steps=5, epochs=None)
    monkeypatch.setattr(programs.StackedExecution, "__call__", recorded)
    history = fit(trainer, steps=125, epochs=None, steps_per_epoch=1000)
    assert history["at"] == list(range(125))
    assert first.count(5) > 2  # trials of the graph and of XLA, and the run
    assert sorted(set(first)) == first[first.count(5) - 1 :]


@pytest.mark.parametrize("options", [{}, {"execution": "eager"}, TWO], ids=["graph", "eager", "two replicas"])
def test_evaluation_and_prediction_know_the_steps_of_training(options):
    trainer = Counted(**options)
    fit(trainer, epochs=2)
    found = trainer.evaluate((X, Y), batch_size=8)
    assert (found["at"], found["in_epoch"]) == (12, 2)
    assert set(trainer.predict(X[:16], batch_size=8).ravel()) == {122}
    trainer.audit((X[:8], Y[:8]))
    fit(trainer, epochs=3)
    assert trainer.evaluate((X, Y), batch_size=8)["at"] == 18
    assert set(trainer.predict(X[:16], batch_size=8).ravel()) == {183}
    if options.get("execution") != "eager":
        assert [execution.traces for execution in inside.executions(trainer, "eval")] == [1]
    if options is TWO:
        assert trainer.check_replicas((X[:8], Y[:8])).ok


def test_outside_of_steps_and_in_other_trainers_steps_they_are_numbers():
    seen = []

    class Student(Counted):
        def compute_loss(self, batch, training):
            seen.append(teacher.step)
            return super().compute_loss(batch, training)

    class Look(looper.callbacks.Callback):
        def on_step(self, step, logs):
            seen.append(student.step)

    teacher = Counted()
    fit(teacher, steps=2, epochs=None)
    student = Student()
    fit(student, steps=3, epochs=None, callbacks=[Look()])
    assert seen == [2, 1, 2, 3]
    assert {type(number) for number in seen} == {int}


def test_what_nobody_reads_costs_no_operation(monkeypatch):
    def operations(read):
        class Recipe(Counted):
            def compute_loss(self, batch, training):
                loss = self.model(batch[0], training=training)
                return (loss, {"at": tf.cast(self.step, tf.float32)}) if read else loss

        trainer = Recipe(execution="graph")
        fit(trainer, epochs=1)
        [execution] = inside.executions(trainer, "train")
        return inside.operations(trainer, execution)

    read, unread = operations(read=True), operations(read=False)
    monkeypatch.setattr(counting.Counting, "at", lambda *_: contextlib.nullcontext())
    assert unread == operations(read=False)
    assert {name for name in read if read[name] > unread[name]} >= {"StridedSlice", "Cast", "AddV2"}


CAST = r"use tf\.cast\(self\.step, tf\.float32\)"
MISUSES = {
    "int": (lambda step: int(step), CAST),
    "range": (lambda step: len(range(step)), CAST),
    "index": (lambda step: [1.0, 2.0][step], CAST),
    "half": (lambda step: 0.5 * step, CAST),
    "half from the right": (lambda step: step * 0.5, CAST),
    "float tensor": (lambda step: tf.constant(0.5) * step, CAST),
    "math": (lambda step: math.exp(step), CAST),
    "numpy": (lambda step: np.exp(step), CAST),
    "tf.exp": (lambda step: tf.exp(step), CAST),
    "if": (lambda step: 1.0 if step > 3 else 2.0, r"use tf\.cond"),
    "key": (lambda step: {0: 1.0}[step], CAST),
    "format": (lambda step: float(f"{step:d}"), CAST),
}


def misused(use, **options):
    class Recipe(Counted):
        def compute_loss(self, batch, training):
            return self.model(batch[0], training=training) * tf.cast(use(self.step), tf.float32)

    return Recipe(**options)


@pytest.mark.parametrize("name", MISUSES)
def test_what_a_tensor_cannot_be_is_one_line(name):
    use, said = MISUSES[name]
    with pytest.raises(looper.InputError, match=rf"^[^\n]*int64 tensors in a step[^\n]*{said}[^\n]*$"):
        fit(misused(use), steps=1, epochs=None)


@pytest.mark.parametrize("name", ["half", "float tensor", "tf.exp"])
def test_what_an_eager_tensor_cannot_be_is_one_line(name):
    with pytest.raises(looper.InputError, match=rf"^[^\n]*int64 tensors in a step[^\n]*{CAST}[^\n]*$"):
        fit(misused(MISUSES[name][0], execution="eager"), steps=1, epochs=None)


def test_two_replicas_and_predictions_say_the_same_line():
    with pytest.raises(looper.InputError, match=rf"^[^\n]*{CAST}[^\n]*$"):
        fit(misused(MISUSES["int"][0], **TWO), steps=1, epochs=None)

    class Predicting(Counted):
        def predict_step(self, batch):
            return self.model(batch) * 0.5**self.step

    with pytest.raises(looper.InputError, match=rf"^[^\n]*{CAST}[^\n]*$"):
        Predicting().predict(X[:8])


def test_a_function_of_ones_own_that_keeps_a_number_is_one_line():
    class Recipe(Counted):
        def compute_loss(self, batch, training):
            return super().compute_loss(batch, training)[0] * self.rate()

        @tf.function(autograph=False)
        def rate(self):
            return tf.cast(self.step, tf.float32)

    trainer = Recipe()
    with pytest.raises(looper.InputError, match=r"^[^\n]*tf\.function[^\n]*give it self\.step as an argument\.$"):
        fit(trainer, eval_data=(X, Y))


def test_other_errors_stay_what_they_are():
    class Recipe(Counted):
        def compute_loss(self, batch, training):
            tf.cast(self.step, tf.float32)
            return self.model(batch[0]) + {"a": 1}["b"]

    with pytest.raises(KeyError):
        fit(Recipe(), steps=1, epochs=None)
