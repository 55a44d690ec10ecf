"""The ledger tells where the wall time of a fit goes, and it adds up."""

import io
import itertools
import re
import threading
import time
import types

import keras
import numpy as np
import pytest
import tensorflow as tf
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import looper
from looper import callbacks
from looper.base.ledger import CATEGORIES, REMEDIES, Ledger
from looper.callbacks import ProgressBar
from looper.data import make_source, stacks
from looper.data.advice import remedies
from looper.data.feed import Feed
from tests.support import models

STEP = 0.02
"""Seconds that a slow batch takes to come, and a slow callback takes."""


def trainer(**options):
    return looper.Trainer(
        model=models.dense, optimizer=lambda: keras.optimizers.SGD(0.1), loss=models.cross_entropy, **options
    )


def batches(examples=320):
    return tf.data.Dataset.from_tensor_slices(models.data(examples=examples)).batch(16)


def slow_batches(count):
    """Batches that take long to come: the load itself, not a wait for something else."""
    never, (x, y) = threading.Event(), models.data(examples=16)

    def generate():
        for _ in range(count):
            never.wait(STEP)
            yield x, y

    return generate


class Slow(callbacks.Callback):
    def on_step(self, step, logs):
        time.sleep(STEP)


def fit(mine, data, **options):
    """Fits. Returns the seconds that it took, by a clock outside."""
    began = time.perf_counter()
    mine.fit(data, **{"progress": False, **options})
    return time.perf_counter() - began


def assert_adds_up(ledger, seconds):
    assert tuple(ledger.seconds) == CATEGORIES
    assert min(ledger.seconds.values()) >= 0
    assert sum(ledger.seconds.values()) == pytest.approx(seconds, rel=0.02)
    assert sum(ledger.shares().values()) == pytest.approx(1)


@pytest.mark.parametrize("execution", ["graph", "xla_step", "xla_loop", "eager"])
def test_the_categories_add_up_to_the_wall_time(execution, tmp_path):
    mine = trainer(execution=execution, workdir=tmp_path)
    options = {"eval_data": batches(160), "save_every": looper.Every(steps=20), "log_every": looper.Every(steps=5)}
    seconds = fit(mine, batches(), epochs=3, callbacks=[Slow()], **options)
    assert_adds_up(mine.ledger, seconds)
    found = mine.ledger.seconds
    assert all(found[name] > 0 for name in CATEGORIES), "each has its part"
    assert found["callbacks"] >= 12 * STEP
    assert mine.ledger.callbacks["Slow"] == pytest.approx(found["callbacks"], rel=0.5)
    assert sum(mine.ledger.callbacks.values()) == pytest.approx(found["callbacks"])
    seconds = fit(mine, batches(), epochs=4, callbacks=[Slow()], **options)
    assert_adds_up(mine.ledger, seconds)  # of this fit alone


# data of unknown length comes another way into a graph and to eager steps; a compiled loop is fed as a graph is
@pytest.mark.parametrize(
    ("execution", "counted"), [("graph", True), ("graph", False), ("eager", False), ("xla_loop", True)]
)
def test_slow_data_is_input(execution, counted):
    count = 100
    data = slow_batches(count)
    if counted:
        spec = batches().element_spec
        data = tf.data.Dataset.from_generator(data, output_signature=spec)
        data = data.apply(tf.data.experimental.assert_cardinality(count))
    mine = trainer(execution=execution, steps_per_execution=10)
    seconds = fit(mine, data, epochs=1, callbacks=[callbacks.Throughput()])
    assert_adds_up(mine.ledger, seconds)
    found = mine.ledger.seconds
    # at most what the data took, and what of it the building, compiling and the steps do not hide
    hidden = found["startup"] + found["device"] + found["dispatch"]
    assert count * STEP - hidden <= found["input"]
    if execution != "eager":  # whose steps take as long as the data
        assert mine.ledger.bound_by == ("input" if found["startup"] < 0.5 * sum(found.values()) else "startup")
        assert ("prefetch" in mine.ledger.verdict) == (mine.ledger.bound_by == "input")


def costly(batch):
    """What a function of a dataset may take: milliseconds of arithmetic."""
    wide = tf.random.stateless_normal([600, 600], [1, 2])
    return models.data(examples=16)[0] + 0.0 * tf.reduce_sum(wide @ wide @ wide), batch


def test_the_verdict_says_how_fast_the_data_comes_and_what_makes_it_slow(capsys):
    """Of a dataset whose small batches are read in chunks, beside what the steps could take."""
    labels = tf.data.Dataset.from_tensor_slices(models.data(examples=320)[1])
    mine = trainer(execution="graph")
    mine.fit(labels.batch(16, drop_remainder=True).map(costly), epochs=10, log_every=looper.Every(steps=100))
    found = re.search(
        r"input-bound .*: the data comes at ([\d,]+) batches/s, and the steps would take ([\d,]+)\. (Map.*)\.",
        mine.ledger.verdict,
    )
    assert found, mine.ledger
    assert found[0] in capsys.readouterr().err
    given, wanted = (int(number.replace(",", "")) for number in found.groups()[:2])
    assert 200 / sum(mine.ledger.seconds.values()) < given < wanted
    assert wanted == pytest.approx(200 / mine.ledger.seconds["device"], rel=0.01)
    assert found[3].startswith("Map() makes one call after another: give it num_parallel_calls")


def test_reading_is_counted_whatever_the_stacks(monkeypatch):
    """By a clock on which each stack takes two seconds to read: one is read ahead."""
    moments = itertools.count(step=2.0)
    monkeypatch.setattr(stacks, "time", types.SimpleNamespace(perf_counter=lambda: next(moments)))
    feed = Feed(make_source(tf.data.Dataset.range(64).batch(2), batch_size=None, shuffle=False, seed=0))
    assert feed.read_so_far == (0, 0.0)
    feed.give(4)
    feed.iterator.take(4)
    feed.rest()
    assert feed.read_so_far == (8, 4.0)
    feed.advance(4)
    feed.give(10)  # takes four from what was read ahead
    feed.iterator.take(4), feed.iterator.take(10)
    feed.rest()
    assert feed.read_so_far == (28, 8.0)
    feed.close()
    assert feed.read_so_far == (28, 8.0)


def test_what_makes_a_dataset_slow():
    numbers = tf.data.Dataset.range(8)

    def plus_one(x):
        return x + 1

    def said(dataset):
        return [line.split(":")[0] for line in remedies(dataset)]

    one, many = numbers.map(plus_one), numbers.map(plus_one, num_parallel_calls=2)
    singly, each = "map() makes one call after another", "map() is called for each example"
    anew = "what its functions make is made anew in each pass"
    assert said(one.batch(2)) == said(one.map(plus_one).batch(2)) == [singly, each, anew]
    assert said(many.cache().batch(2)) == [each]
    assert said(numbers.batch(2).map(plus_one, num_parallel_calls=2).cache()) == []
    assert said(numbers.batch(2).map(plus_one).unbatch().batch(4)) == [singly, anew]
    # a cache would keep one order, or one augmentation, or never end
    stateless = numbers.map(lambda x: tf.random.stateless_uniform([], tf.stack([x, x])), num_parallel_calls=2)
    for drawn in (many.shuffle(8), numbers.shuffle(8).map(plus_one, num_parallel_calls=2), many.repeat(), stateless):
        assert said(drawn.batch(2)) == [each], drawn
    arrays = "its examples are taken one by one"
    assert said(numbers.shuffle(8).batch(2)) == said(numbers.batch(2)) == [arrays]
    python = numbers.map(lambda x: tf.numpy_function(lambda x: x, [x], tf.int64))
    generated = tf.data.Dataset.from_generator(range, output_signature=tf.TensorSpec([], tf.int64), args=(8,))
    for dataset in (python, generated):
        assert said(dataset.batch(2)) == ["Python makes its elements, one at a time"]
    legacy = tf.compat.v1.data.Dataset.range(8).map_with_legacy_function(plus_one)
    assert said(legacy.batch(2)) == [anew]


def test_fast_data_of_long_steps_is_not_input():
    """Steps of some milliseconds over data in memory: the device is what the run is bound by."""
    wide = [keras.Input((512,)), *[keras.layers.Dense(512) for _ in range(6)]]
    mine = looper.Trainer(model=lambda: keras.Sequential(wide), optimizer="sgd", loss="mse")
    x = np.random.default_rng(0).normal(size=(512, 512)).astype("float32")
    seconds = fit(
        mine, tf.data.Dataset.from_tensors((x, x)).cache().repeat(), steps=60, callbacks=[callbacks.Throughput()]
    )
    assert_adds_up(mine.ledger, seconds)
    assert mine.ledger.seconds["device"] > 3 * mine.ledger.seconds["input"]
    assert mine.ledger.bound_by in ("device", "startup")


def test_a_slow_callback_is_named():
    mine = trainer()
    fit(mine, batches(), epochs=1, log_every=looper.Every(steps=1))  # compiles, which may take as long as the callback
    fit(mine, batches(), epochs=6, callbacks=[Slow()], log_every=looper.Every(steps=1))
    assert mine.ledger.callbacks["Slow"] >= 100 * STEP
    assert mine.ledger.bound_by == "callbacks"
    assert " of it in Slow: call it less often" in mine.ledger.verdict

    class Keras(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            time.sleep(STEP)

    other = trainer()
    fit(other, batches(), epochs=5, callbacks=[Keras()])
    assert other.ledger.callbacks["Keras"] >= 5 * STEP


def test_evaluation_and_checkpoints_have_their_own_time(tmp_path):
    """Slow data that is evaluated is evaluation, not input; a slow checkpoint is a checkpoint."""
    mine = trainer(workdir=tmp_path)
    fit(mine, batches(), epochs=2, eval_data=slow_batches(20))
    assert mine.ledger.seconds["evaluation"] >= 2 * 20 * STEP
    assert mine.ledger.seconds["input"] < 20 * STEP

    class SlowState(callbacks.Callback):
        def state(self):
            time.sleep(STEP)
            return {}

    other = trainer(workdir=tmp_path / "other")
    fit(other, batches(), epochs=1, callbacks=[SlowState()], save_every=looper.Every(steps=2))
    assert other.ledger.seconds["checkpoint"] >= 10 * STEP


def test_tensorboard_has_the_shares_and_the_rows_do_not(tmp_path):
    mine = trainer(workdir=tmp_path)
    fit(mine, batches(), epochs=3, eval_data=batches(160), callbacks=[Slow()])
    events = EventAccumulator(str(tmp_path))
    events.Reload()
    found = np.array([[event.value for event in events.Scalars(f"time/{name}")] for name in CATEGORIES])
    steps = [event.step for event in events.Scalars("time/input")]
    assert steps == [event.step for event in events.Scalars("loss")] == [20, 40, 60]
    np.testing.assert_allclose(found.sum(axis=0), 1, rtol=1e-5)
    startup, evaluation = (found[CATEGORIES.index(name)] for name in ("startup", "evaluation"))
    assert startup[0] > 0.3, "a window begins where the one before ends, the first with the fit"
    assert startup[1:].max() < 0.05
    assert evaluation[0] == 0 < evaluation[1]
    assert not [name for name in mine.history.names() if name.startswith("time/")]
    assert "time/" not in (tmp_path / "metrics.jsonl").read_text()


def test_it_is_printed_at_the_end_with_the_bar(capsys):
    mine = trainer()
    assert mine.ledger is None
    fit(mine, batches(), epochs=1)
    assert capsys.readouterr().err == ""
    fit(mine, batches(), epochs=2, progress=True)
    shares, verdict = capsys.readouterr().err.splitlines()[-2:]
    assert shares.startswith("where the time went (")
    assert verdict.split("-bound ")[0] == mine.ledger.bound_by
    stream = io.StringIO()
    fit(mine, batches(), epochs=3, callbacks=[ProgressBar(stream)])
    assert len([line for line in stream.getvalue().splitlines() if line.startswith("where the time went")]) == 1


def test_a_fit_that_fails_has_a_ledger_too():
    class Wrong(callbacks.Callback):
        def on_step(self, step, logs):
            time.sleep(STEP)
            raise RuntimeError("wrong")

    mine = trainer()
    with pytest.raises(RuntimeError, match="wrong"):
        fit(mine, batches(), epochs=1, callbacks=[Wrong()])
    assert mine.ledger.callbacks["Wrong"] >= STEP
    total = sum(mine.ledger.seconds.values())
    assert total == sum(mine.ledger.seconds.values()), "the clock is stopped"


def test_the_graph_moves_seconds_and_makes_none():
    now = [0.0]
    ledger = Ledger(clock=lambda: now[0])
    with ledger.section("device"):
        now[0] = 10.0
    ledger.later(lambda: {"input": 4.0, "dispatch": -1.0})
    ledger.later(lambda: {"input": 100.0})  # such as a clock that was set
    assert ledger.seconds["device"] == 10
    ledger.settle()
    assert (ledger.seconds["device"], ledger.seconds["input"], ledger.seconds["dispatch"]) == (0, 10, 0)


def test_the_verdict_is_the_largest_that_can_be_avoided():
    def bound_by(**seconds):
        now = [0.0]
        ledger = Ledger(clock=lambda: now[0])
        for name, value in seconds.items():
            with ledger.section(name):
                now[0] += value
        assert ledger.verdict.endswith(f"{REMEDIES[ledger.bound_by]}.")
        return ledger.bound_by

    assert bound_by(startup=1, device=9) == "device"
    assert bound_by(startup=1, device=9, input=0.5) == "device"
    assert bound_by(startup=1, device=9, input=2, other=1) == "input"
    assert bound_by(startup=9, device=1, input=3) == "startup"
    assert bound_by() == "device"


def test_without_throughput_the_graph_reads_no_clock_in_its_steps():
    """Then slow data of the compiled loop is part of the steps' time, and the remedy says how to find out."""
    mine = trainer(steps_per_execution=10)
    fit(mine, slow_batches(100), epochs=1)
    assert mine.ledger.seconds["device"] > 0.2 * 100 * STEP
    assert mine.ledger.seconds["device"] > mine.ledger.seconds["input"]
    assert "callbacks.Throughput()" in REMEDIES["device"]
