"""Small batches of arrays come to the steps in the graph in stacks, and nothing but the time shows it."""

import signal
import warnings

import keras
import numpy as np
import pytest
import tensorflow as tf

import looper
from looper.data import make_source, stacks
from looper.data.augment import augmented, flip
from looper.data.stacks import Stacks, graph_stack_size
from looper.step import autotune
from looper.step.programs import StackedExecution
from tests.support import inside, models
from tests.support.stopping import Stop, assert_same, everything, make_trainer

ON_TWO = {"strategy": "mirrored", "devices": 2}


@pytest.fixture
def one_by_one(monkeypatch):
    """Runs something with batches that an iterator gives."""

    def run(function):
        with monkeypatch.context() as patched:
            patched.setattr(stacks, "GRAPH_STACK_BYTES", 0)
            return function()

    return run


def in_stacks(trainer):
    return isinstance(inside.feed(trainer).iterator, Stacks)


def training_steps(trainer):
    return inside.executions(trainer, "train")


def small(**options):
    """A trainer where what is trained does not matter."""
    return make_trainer(None, model=lambda: models.dense(norm=False), optimizer="sgd", metrics=None, **options)


def by_name():
    x, y = models.two_inputs_data(examples=48)
    return x, y, np.linspace(0.5, 2.0, len(y)).astype("float32")


EVERY_STEP = {"log_every": looper.Every(steps=1)}
CASES = {  # each way that steps find the batch in a stack, once
    "a smaller last batch": (lambda: models.data(examples=45), {}, {"eval_data": models.data(examples=45)}),
    "inputs by name, weighted, of one size, in order, logs of every step": (
        by_name,
        {"model": models.two_inputs, "precision": "float64"},
        {"shuffle": False} | EVERY_STEP,
    ),
    "fewer examples than a batch": (lambda: models.data(examples=5), {}, {}),
    "accumulation, cut in odd places, where epochs are no passes": (
        lambda: models.data(examples=45),
        {"accumulate": 2, "steps_per_execution": 4},
        {"steps_per_epoch": 5},
    ),
    "two replicas": (lambda: models.data(examples=45), ON_TWO | {"steps_per_execution": 4}, {}),
}


@pytest.mark.parametrize("case", CASES)
def test_same_bits_as_from_an_iterator(case, one_by_one):
    make_data, options, more = CASES[case]

    def fit():
        trainer = make_trainer(None, execution="graph", **options)
        more_often = {"log_every": looper.Every(steps=3)} | more
        trainer.fit(make_data(), epochs=3, batch_size=8, progress=False, **more_often)
        return trainer

    expected, found = one_by_one(fit), fit()
    assert not isinstance(training_steps(expected)[0], StackedExecution)
    assert in_stacks(found)
    assert_same(everything(found), everything(expected))
    assert [execution.traces for execution in training_steps(found)] == [1]


def test_stopped_in_the_middle_of_a_stack_and_continued(one_by_one, tmp_path):
    """Also where another process, or another version, went on with an iterator: checkpoints hold the same.

    One run goes through all of it: stopped in a stack, continued with stacks, stopped in the next pass' stack,
    continued with an iterator, stopped in a pass of it, and continued with stacks.
    """

    def fit(folder, *callbacks, **more):
        trainer = make_trainer(tmp_path / folder, execution="graph", **more)
        trainer.fit(models.data(examples=45), epochs=4, batch_size=8, callbacks=callbacks, progress=False)
        return trainer

    def stop(step):
        with pytest.raises(KeyboardInterrupt):
            fit("stopped", Stop(step, signal.SIGINT), steps_per_execution=1)  # or it would stop at the end of a pass
        assert (tmp_path / "stopped" / "checkpoints" / f"step_{step:08}").exists()

    expected = one_by_one(lambda: fit("whole"))
    stop(3)
    stop(9)
    one_by_one(lambda: stop(14))
    found = fit("stopped")
    assert in_stacks(found)
    assert_same(everything(found), everything(expected))


def test_nothing_is_compiled_twice():
    """Continued, other boundaries, with the clock and without, evaluated and audited in between."""
    x, y = models.data(examples=45)
    trainer = make_trainer(None)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        trainer.fit((x, y), epochs=2, batch_size=8, eval_data=(x[:20], y[:20]), progress=False)
        trainer.fit((x, y), steps=17, batch_size=8, log_every=looper.Every(steps=3), progress=False)
        trainer.evaluate((x, y), batch_size=8)
        trainer.audit((x[:8], y[:8]))
        trainer.fit((x, y), steps=30, batch_size=8, callbacks=[looper.callbacks.Throughput()], progress=False)
    assert [execution.traces for execution in training_steps(trainer)] == [1]
    assert in_stacks(trainer)


def test_auto_goes_on_with_the_steps_that_it_measured(monkeypatch, tmp_path, one_by_one):
    """The graph is chosen, after XLA was tried."""
    monkeypatch.setattr(autotune, "LEAST_STEPS", 100)
    monkeypatch.setattr(autotune, "SECONDS_TO_COMPILE", 0.0)
    monkeypatch.setattr(autotune, "SECONDS_PER_OPERATION", 0.0)
    monkeypatch.setattr(autotune, "GAIN", 0.0)
    data = models.data(examples=45)

    def fit(**options):
        trainer = make_trainer(None, **options)
        trainer.fit(data, steps=120, batch_size=8, progress=False)
        return trainer

    tuned = fit()
    assert inside.mode_for(tuned) is None, "modes were compared"
    assert [(type(execution), execution.traces) for execution in training_steps(tuned)] == [(StackedExecution, 1)]
    assert in_stacks(tuned)
    assert_same(everything(tuned), everything(one_by_one(lambda: fit(execution="graph"))))


def test_what_xla_refuses_goes_on_in_stacks():
    class Recipe(looper.Trainer):
        def build(self):
            self.model, self.optimizer = models.dense(), keras.optimizers.SGD(0.1)

        def compute_loss(self, batch, training):
            noise = tf.random.uniform([])
            return models.cross_entropy()(batch[1], self.model(batch[0], training=training)) + noise

    trainer = Recipe(execution="xla_loop")
    with pytest.warns(UserWarning, match="no seed reaches RandomUniform in XLA"):
        trainer.fit(models.data(), epochs=1, batch_size=8, progress=False)
    assert in_stacks(trainer)


def test_the_wait_for_a_stack_is_input_without_a_clock_in_the_graph():
    def fit(*callbacks):
        trainer = small()
        trainer.fit(models.data(examples=45), epochs=2, batch_size=8, callbacks=callbacks, progress=False)
        (execution,) = training_steps(trainer)
        clocks = inside.operations(trainer, execution)["Timestamp"]
        return trainer, clocks

    (plain, clocks), (timed, clocks_of_timed) = fit(), fit(looper.callbacks.Throughput())
    assert clocks == clocks_of_timed == 1, "when the graph begins to run"
    assert plain.ledger.seconds["input"] > 0
    assert plain.ledger.seconds["dispatch"] > 0
    assert all(0 < row["input_wait"] < 1 for row in timed.history.rows)
    assert sum(row["input_wait"] * 6 / row["steps_per_second"] for row in timed.history.rows) == pytest.approx(
        timed.ledger.seconds["input"],
        rel=0.1,  # opening the data for the audit, before the first window, is input too
    )


def test_only_small_batches_of_plain_arrays_and_datasets_come_in_stacks():
    large, y = np.zeros((40, 50, 50, 1), "float32"), np.zeros(40, "int32")  # 10 kB each; a stack has 4 MiB
    x = np.zeros((40, 6, 6, 1), "float32")
    words = np.array([["a"], ["b"]] * 20)
    options = {"shuffle": True, "seed": 0}
    sources = {
        "small": make_source((x, y), batch_size=8, **options),
        "69 to a stack": make_source((large, y), batch_size=6, **options),
        "59 to a stack": make_source((large, y), batch_size=7, **options),
        "augmented": make_source(augmented((x, y), [flip()]), batch_size=8, training=True, **options),
        "strings": make_source((words, y), batch_size=8, **options),
        "ragged": make_source((tf.RaggedTensor.from_tensor(words), y), batch_size=8, **options),
        "a dataset": make_source(tf.data.Dataset.from_tensor_slices((x, y)).batch(8), batch_size=None, **options),
    }
    found = {name: stacks.stacked_in_graph(source.batch_bytes) for name, source in sources.items()}
    assert [name for name, stacked in found.items() if stacked] == ["small", "69 to a stack", "a dataset"]
    opened = [source.open_stacks(0, 0, 2) is not None for source in sources.values()]
    assert opened == [True, True, True, False, False, False, False]


def test_large_batches_and_eager_steps_take_an_iterator(monkeypatch):
    monkeypatch.setattr(stacks, "GRAPH_STACK_BYTES", stacks.GRAPH_STACK * 32 * 28)  # an example has 28 bytes
    for batch_size, execution, stacked in [(32, "graph", True), (33, "graph", False), (32, "eager", False)]:
        trainer = small(execution=execution)
        trainer.fit(models.data(examples=70), epochs=1, batch_size=batch_size, progress=False)
        assert in_stacks(trainer) == stacked
        assert trainer.epoch == 1


def test_a_stack_is_no_larger_than_a_pass_and_ends_at_a_boundary():
    trainer = small()
    trainer.fit(models.data(examples=45), epochs=1, batch_size=8, progress=False)
    assert inside.feed(trainer).stack == 6
    trainer.fit(models.data(examples=45), epochs=2, batch_size=1, log_every=looper.Every(steps=10), progress=False)
    assert inside.feed(trainer).stack == 45
    for most, steps, size in [(16, 7, 14), (16, 16, 16), (16, 17, 9), (16, None, 16)]:
        found = graph_stack_size(stacks.GRAPH_STACK_BYTES // most, steps, 1000)
        assert found == size, (most, steps)


def test_arrays_and_a_dataset_of_the_same_batches_in_turns(one_by_one):
    arrays = models.data(examples=48)
    dataset = tf.data.Dataset.from_tensor_slices(arrays).batch(8, drop_remainder=True)

    def fit():
        trainer = small()
        for epochs, data in enumerate([arrays, dataset, arrays, dataset], 1):
            size = 8 if data is arrays else None
            trainer.fit(data, epochs=epochs, batch_size=size, shuffle=False, progress=False)
        return trainer

    expected, found = one_by_one(fit), fit()
    assert_same(everything(found), everything(expected))
    assert [execution.traces for execution in training_steps(found)] == [1]


@pytest.mark.parametrize("execution", ["graph", "xla_loop"])
def test_stacks_are_put_on_the_device_ahead(execution, monkeypatch):
    """A second CPU stands for the GPU, which there is none of here."""
    data, bits = models.data(examples=45), []
    for device in (None, "CPU:1"):
        trainer = small(execution=execution)
        begin = looper.step.trial.Modes.begin

        def on_device(modes, mode, device=device, begin=begin):
            modes.device = device
            return begin(modes, mode)

        with monkeypatch.context() as patched:
            patched.setattr(looper.step.trial.Modes, "begin", on_device)
            trainer.fit(data, epochs=2, batch_size=8, progress=False)
        part = inside.feed(trainer).iterator.take(1)
        placed = {tf.nest.flatten(part.stack)[i].device.rpartition("/")[2] for i in range(2)}
        assert placed == {f"device:{device or 'CPU:0'}"}
        bits.append([w.numpy() for w in trainer.model.weights])
    for ours, theirs in zip(*bits, strict=True):
        np.testing.assert_array_equal(ours, theirs)
