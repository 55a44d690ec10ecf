"""Between boundaries the host reads nothing from the device, and nothing is traced twice."""

import itertools
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf

import looper
from looper.data.stacks import Stacks
from looper.step import programs
from tests.support import inside, models


def trainer(**options):
    parts = {
        "model": models.dense,
        "optimizer": lambda: keras.optimizers.SGD(0.1),
        "loss": models.cross_entropy,
        "metrics": lambda: [keras.metrics.SparseCategoricalAccuracy("accuracy")],
    }
    return looper.Trainer(**parts | options)


EXECUTE = [kind.__call__.__code__ for kind in (programs.Execution, programs.StackedExecution)]


class Reads:
    """Notes each execution and each copy of a tensor to the host while it is active."""

    def __init__(self):
        self.events = []

    def __enter__(self):
        sys.setprofile(self._note)
        return self

    def __exit__(self, *_):
        sys.setprofile(None)

    def _note(self, frame, event, argument):
        if event == "call" and frame.f_code in EXECUTE:
            self.events.append("execute")
        # every .numpy(), float(), bool() and np.asarray of an eager tensor ends in one of these
        if event == "c_call" and argument.__name__ in ("_numpy_internal", "_copy_to_device"):
            self.events.append("read")
        if event == "c_call" and argument.__name__ in ("asarray", "array") and "looper" in frame.f_code.co_filename:
            self.events.append("read")


def test_the_recorder_sees_reads():
    with Reads() as reads:
        float(tf.constant(1.0))
        tf.constant([1.0]).numpy()
        bool(tf.constant(True))
    assert reads.events == ["read"] * 3


@pytest.mark.parametrize("strategy", ["one_device", "mirrored"])
def test_the_host_reads_only_at_boundaries(strategy, tmp_path):
    x, y = models.data(examples=64)
    mine = trainer(
        steps_per_execution=5, workdir=tmp_path, strategy=strategy, devices=2 if strategy == "mirrored" else None
    )
    with Reads() as reads:
        mine.fit((x, y), steps=60, batch_size=16, log_every=looper.Every(steps=20), progress=True)
    executions = [i for i, event in enumerate(reads.events) if event == "execute"]
    # an epoch has 4 batches, and arrays roll on over its end: epochs cut too
    between = [reads.events[a + 1 : b].count("read") for a, b in itertools.pairwise(executions)]
    assert len(executions) == 15
    assert all(count > 0 for count in between), "each epoch of 4 steps ends with a log"

    # of a fixed size: otherwise replicas look at the first batch before, and have one execution more
    dataset = tf.data.Dataset.from_tensor_slices((x, y)).repeat().batch(16, drop_remainder=True)
    other = trainer(steps_per_execution=5, strategy=strategy, devices=2 if strategy == "mirrored" else None)
    with Reads() as reads:
        other.fit(dataset, steps=60, log_every=looper.Every(steps=20), progress=True)
    executions = [i for i, event in enumerate(reads.events) if event == "execute"]
    between = [reads.events[a + 1 : b].count("read") > 0 for a, b in itertools.pairwise(executions)]
    compared = strategy == "mirrored"  # once: what replicas are to have alike
    assert between == [compared, False, False, True] + [False, False, False, True] + [False, False, False]


@pytest.mark.parametrize("in_stacks", [True, False])
def test_no_retrace_for_shorter_executions_and_batches(in_stacks):
    """70 examples in batches of 16, 5 to an execution, 13 steps: partial batches and executions of several lengths."""
    x, y = models.data(examples=70)
    data, held_out, batching = (x, y), (x[:33], y[:33]), {"batch_size": 16}
    if not in_stacks:  # what a map makes of batches may have other sizes
        data, held_out = (
            tf.data.Dataset.from_tensor_slices(each).batch(16).map(lambda *batch: batch) for each in (data, held_out)
        )
        data, batching = data.repeat(), {}
    mine = trainer(steps_per_execution=5)
    mine.fit(data, steps=13, eval_data=held_out, progress=False, **batching)
    mine.fit(data, steps=17, eval_data=held_out, progress=False, **batching)
    mine.evaluate(held_out, **batching)
    traces = {kind: [e.traces for e in inside.executions(mine, kind)] for kind in inside.kinds(mine)}
    assert traces == {"train": [1], "eval": [1]}


def test_compiled_steps_are_kept_for_the_last_settings_only():
    """Other class weights compile other steps; the last are found again, and memory does not grow with the rest."""
    x, y = models.data(examples=16)
    mine = trainer(model=lambda: keras.Sequential([keras.Input((6,)), models.L.Dense(3)]), optimizer="sgd")
    for epoch in range(1, 15):
        mine.fit((x, y), epochs=epoch, batch_size=16, class_weight={0: float(epoch)}, progress=False)
    kept = inside.executions(mine)
    assert len(kept) == 12
    mine.fit((x, y), epochs=15, batch_size=16, class_weight={0: 14.0}, progress=False)
    assert inside.executions(mine) == kept


@pytest.mark.parametrize("execution", ["graph", "eager"])
def test_data_of_unknown_length_stops_cleanly_at_its_end(execution):
    x, y = models.data(examples=70)
    dataset = tf.data.Dataset.from_tensor_slices((x, y)).filter(lambda x, y: y != 1).batch(8)
    expected = sum(1 for _ in dataset)
    examples = int((y != 1).sum())
    mine = trainer(execution=execution, steps_per_execution=3)
    history = mine.fit(dataset, epochs=2, eval_data=dataset, log_every=looper.Every(steps=1), progress=False)
    assert mine.step == 2 * expected
    assert history.steps("loss") == list(range(1, 2 * expected + 1))
    assert history["eval/examples"] == [examples, examples]


def test_every_steps_logs_come_back_stacked():
    x, y = models.data(examples=64)
    one_by_one = trainer(steps_per_execution=1)
    history = one_by_one.fit((x, y), steps=12, batch_size=16, log_every=looper.Every(steps=1), progress=False)
    together = trainer(steps_per_execution=12)
    source = looper.data.make_source((x, y), batch_size=16, shuffle=True, seed=0)
    execution = inside.execution_of(together, "train", source)
    inside.build_variables(together, source.element_spec)
    batches = Stacks(source.open_stacks(0, 0, 4), 4)
    rows = np.concatenate([execution(batches, 4)[0].numpy() for _ in range(3)])
    loss = rows[:, 2] / rows[:, 3]
    np.testing.assert_allclose(loss, history["loss"], rtol=1e-6)


def test_eager_and_graph_agree():
    def run(execution):
        mine = trainer(execution=execution)
        x, y = models.data()
        history = mine.fit((x, y), epochs=2, batch_size=16, eval_data=(x, y), progress=False)
        return [w.numpy() for w in mine.model.weights], history

    (graph, graph_history), (eager, eager_history) = run("graph"), run("eager")
    for a, b in zip(graph, eager, strict=True):
        assert models.norm_difference(a, b) < 1e-5  # grappler reorders float32 operations
    for name in ("loss", "accuracy", "eval/loss"):
        np.testing.assert_allclose(graph_history[name], eager_history[name], rtol=1e-4)


def test_python_true_in_training_and_false_in_evaluation():
    """The flag is a Python bool, and a recipe cannot leave it out or change it."""
    seen = []

    class Flags(keras.Layer):
        def call(self, x, training=None):
            seen.append(training)
            return x

    class Recipe(looper.Trainer):
        def build(self):
            self.model = keras.Sequential([keras.Input((6,)), Flags(), models.L.Dense(3)])
            self.optimizer = keras.optimizers.SGD(0.1)
            self.loss = models.cross_entropy()

    recipe = Recipe()
    seen.clear()
    x, y = models.data()
    recipe.fit((x, y), steps=1, batch_size=16, progress=False)
    assert seen == [True]
    recipe.evaluate((x, y))
    recipe.predict(x)
    assert seen == [True, False, False]
