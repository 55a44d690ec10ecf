"""`execution="auto"`: what it measures is put back, it costs little, and a run keeps the mode that it began in."""

import contextlib
import functools
import json
import shutil
import signal
import subprocess
import sys
import types

import keras
import numpy as np
import pytest
import tensorflow as tf
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import looper
from benchmarks import regret
from looper.base.errors import StepError
from looper.data.source import untuned
from looper.step import autotune, known
from looper.step.trial import Modes
from tests.support import inside, models
from tests.support.recipes import Noisy
from tests.support.sources import late
from tests.support.stopping import Stop

L = keras.layers


@pytest.fixture
def eager_to_compile(monkeypatch):
    """XLA is tried in short runs, too."""
    monkeypatch.setattr(autotune, "LEAST_STEPS", 100)
    monkeypatch.setattr(autotune, "SECONDS_TO_COMPILE", 0.0)
    monkeypatch.setattr(autotune, "SECONDS_PER_OPERATION", 0.0)


def make_trainer(workdir, **options):
    """Statistics, dropout seeds, momentums and a metric: all that measuring changes. Small, to compile soon."""

    def model():
        layers = [L.Dense(4, activation="relu"), L.BatchNormalization(), L.Dropout(0.5), L.Dense(3)]
        return keras.Sequential([keras.Input((6,)), *layers])

    return looper.Trainer(
        model=model,
        optimizer=lambda: keras.optimizers.SGD(0.05, momentum=0.9),
        loss=models.cross_entropy,
        metrics=lambda: [keras.metrics.SparseCategoricalAccuracy("accuracy")],
        workdir=workdir,
        **options,
    )


def fit(trainer, steps=120, data=None, **options):
    trainer.fit(models.data(examples=50) if data is None else data, steps=steps, progress=False, **options)
    return trainer


def choice_in(workdir):
    return json.loads((workdir / "execution.json").read_text())


def assert_same_bits(one, other):
    assert one.keys() == other.keys()
    for name, value in one.items():
        np.testing.assert_array_equal(value, other[name], err_msg=name)


def logs(trainer):
    return [{k: v for k, v in row.items() if "per_second" not in k} for row in trainer.history.rows]


def modes_compiled(trainer):
    return inside.modes_compiled(trainer)


def arrays():
    return models.data(examples=50)


def dataset():
    return untuned(tf.data.Dataset.from_tensor_slices(arrays()).shuffle(20, seed=5).batch(8).repeat())


@functools.cache
def alone(mode, make_data):
    """The variables and logs of a run that is told its mode."""
    trainer = fit(make_trainer(None, execution=mode), data=make_data())
    return inside.values(trainer), logs(trainer)


@pytest.fixture
def choosing(monkeypatch):
    """Has all modes measured, as otherwise, and then the named one chosen."""
    measure = autotune._measure

    def choose(mode):
        def rigged(*arguments):
            found = measure(*arguments)
            assert {"seconds_per_step", "compile_seconds"} <= found.table["xla_loop"].keys()
            return autotune.Choice(mode, found.why, found.table, found.seconds)

        monkeypatch.setattr(autotune, "_measure", rigged)
        monkeypatch.setattr(autotune, "WORSE", 1e9)  # on a busy machine a single step may take any time

    return choose


@pytest.mark.xdist_group("modes that are told")
@pytest.mark.parametrize("chosen", ["graph", "xla_loop"])
@pytest.mark.usefixtures("eager_to_compile")
def test_training_is_what_the_chosen_mode_alone_does(chosen, choosing, tmp_path):
    """And so is xla_step, over arrays, in the next test."""
    choosing(chosen)
    tuned = fit(make_trainer(tmp_path), data=dataset())
    assert choice_in(tmp_path)["mode"] == inside.mode(tuned) == chosen
    expected, rows = alone(chosen, dataset)
    assert_same_bits(inside.values(tuned), expected)
    assert logs(tuned) == rows


@pytest.mark.xdist_group("modes that are told")
@pytest.mark.usefixtures("eager_to_compile")
def test_a_run_keeps_its_mode(choosing, monkeypatch, tmp_path):
    """And ends as one that was told it, though it was stopped."""
    choosing("xla_step")
    with pytest.raises(KeyboardInterrupt):
        fit(make_trainer(tmp_path), callbacks=[Stop(60, signal.SIGINT)])
    assert choice_in(tmp_path)["mode"] == "xla_step"
    monkeypatch.setattr(autotune, "choose", None)  # it is not asked again
    with pytest.raises(looper.InputError, match="holds a run with execution='xla_step', and execution='eager'"):
        fit(make_trainer(tmp_path, execution="eager"))
    continued = fit(make_trainer(tmp_path))
    assert inside.mode(continued) == "xla_step"
    expected, rows = alone("xla_step", arrays)
    assert_same_bits(inside.values(continued), expected)
    assert logs(continued) == rows
    fit(make_trainer(tmp_path, execution="xla_step"))  # by name, it is the same run, which is over


@pytest.mark.usefixtures("eager_to_compile")
def test_on_replicas_too(monkeypatch, tmp_path):
    monkeypatch.setattr(autotune, "GAIN", 1e9)  # the fastest, which may be the graph
    monkeypatch.setattr(autotune, "WORSE", 1e9)
    options = {"strategy": "mirrored", "devices": 2}
    tuned = fit(make_trainer(tmp_path, **options))
    table, mode = choice_in(tmp_path)["table"], choice_in(tmp_path)["mode"]
    assert "seconds_per_step" in table["xla_step"]
    assert table["xla_loop"] == {"left_out": "XLA has no collectives in a loop, and there are 2 replicas"}
    assert_same_bits(inside.values(tuned), inside.values(fit(make_trainer(None, execution=mode, **options))))


@pytest.mark.usefixtures("eager_to_compile")
def test_the_measurements_are_shown(tmp_path, capsys):
    """Of a run that was too short to be measured, and is prolonged."""
    trainer = fit(make_trainer(tmp_path), steps=60)
    assert inside.mode(trainer) == "graph"
    assert "execution" not in capsys.readouterr().err
    fit(trainer, steps=240)
    assert inside.mode_for(trainer) is None  # they were compared
    assert set(modes_compiled(trainer)) == {"graph", inside.mode(trainer)}  # and the others are not kept
    table = choice_in(tmp_path)["table"]
    assert list(table) == ["graph", "xla_step", "xla_loop"]
    told = capsys.readouterr().err
    assert f"looper: execution: {inside.mode(trainer)}, because it is the fastest" in told
    assert all(f"{mode} " in told for mode in table)
    events = EventAccumulator(str(tmp_path)).Reload()
    text = events.Tensors("execution")[-1].tensor_proto.string_val[0].decode()
    assert "| xla_loop |" in text


@pytest.fixture
def ran(monkeypatch):
    """The mode and number of steps of each execution that is timed."""
    found, seconds = [], autotune.Modes.seconds
    monkeypatch.setattr(
        autotune.Modes, "seconds", lambda self, mode, steps: found.append((mode, steps)) or seconds(self, mode, steps)
    )
    return found


@pytest.mark.parametrize(
    ("steps", "why", "tried"),
    [
        (60, "a run of 60 steps is too short to measure others", []),
        (1200, "no other mode was worth measuring", [("graph", 1), ("graph", 1)]),
    ],
)
def test_short_runs_compile_nothing_more(steps, why, tried, ran, monkeypatch, tmp_path, capsys):
    """Where no mode can pay, two steps are all that is run."""
    monkeypatch.setattr(autotune, "SECONDS_TO_COMPILE", 60.0)  # on a busy machine a step may take 40 ms
    trainer = fit(make_trainer(tmp_path), steps, callbacks=[End()])
    assert choice_in(tmp_path)["why"] == why
    assert modes_compiled(trainer) == ["graph"]
    assert "execution" not in capsys.readouterr().err
    assert ran == tried
    if steps > 100:
        assert choice_in(tmp_path)["table"]["xla_loop"]["left_out"].startswith("not tried: it would compile for about")


def with_layers(*layers):
    """What was chosen for a model of images, and what was run of each mode."""
    trainer = looper.Trainer(
        model=lambda: keras.Sequential([keras.Input((28, 28, 16)), *layers, L.Flatten(), L.Dense(3)]),
        optimizer="sgd",
        loss=models.cross_entropy,
    )
    random = np.random.default_rng(0)
    data = random.normal(size=(64, 28, 28, 16)).astype("float32"), random.integers(0, 3, 64)
    fit(trainer, steps=400, data=data, callbacks=[End()])


@pytest.fixture
def chosen(monkeypatch):
    found, choose = [], autotune.choose
    monkeypatch.setattr(autotune, "choose", lambda *arguments: found.append(choose(*arguments)) or found[-1])
    return found


@pytest.mark.usefixtures("eager_to_compile")
@pytest.mark.skipif(bool(tf.config.list_physical_devices("GPU")), reason="they are fast on a GPU")
def test_convolutions_in_a_loop_of_xla_are_not_compiled_on_a_cpu(ran, chosen):
    with_layers(L.Conv2D(32, 3), L.Conv2D(32, 3))
    assert chosen[0].table["xla_loop"] == {"left_out": "convolutions in a loop of XLA are slow on a CPU"}
    assert not [mode for mode, _ in ran if mode == "xla_loop"]


@pytest.mark.usefixtures("eager_to_compile")
@pytest.mark.skipif(bool(tf.config.list_physical_devices("GPU")), reason="it is fast on a GPU")
def test_a_mode_that_is_much_slower_is_dropped_at_once(ran, chosen, monkeypatch):
    """Here, one that takes more than a hundredth of the graph's time."""
    monkeypatch.setattr(autotune, "WORSE", 0.01)  # of a step in the graph
    monkeypatch.setattr(autotune, "CALL_SECONDS", 0.0)
    with_layers(L.MaxPooling2D(3))
    assert chosen[0].table["xla_loop"]["left_out"].startswith("dropped: one step alone takes")
    assert chosen[0].mode == "graph"
    assert [count for mode, count in ran if mode == "xla_loop"] == [1, 1]  # two, to be sure


@pytest.mark.usefixtures("eager_to_compile")
def test_steps_that_wait_for_data_stay_in_the_graph(tmp_path):
    """With a cache behind the slow part the next pass may be fast: then nothing is known yet."""

    def slow(x, y):
        return late(x, 0.1), y

    def why(name, data):
        fit(make_trainer(tmp_path / name), data=data, callbacks=[End()])
        return choice_in(tmp_path / name)["why"]

    pairs = tf.data.Dataset.from_tensor_slices(models.data(examples=400)).batch(8, drop_remainder=True)
    assert why("slow", pairs.map(slow).repeat()).startswith("the data comes at ")
    assert not why("cached", pairs.map(slow).cache().repeat()).startswith("the data comes at ")
    assert not why("fast", pairs.map(lambda x, y: (x + 1.0, y)).repeat()).startswith("the data comes at ")


@pytest.mark.parametrize(("own", "chiefs", "found"), [(0.5, 0.1, 0.1), (None, 0.1, 0.1), (0.5, 0.0, None)])
def test_all_workers_go_by_the_pace_of_the_chiefs_data(own, chiefs, found):
    feed = types.SimpleNamespace(steady_pace=lambda: own)
    modes = Modes(None, feed, replicas=2, own_step=None, from_chief=lambda seconds: chiefs, step=0, between=None)
    assert modes.data_seconds() == found


class End(looper.callbacks.Callback):
    """Ends a run after its first log: this one is about what comes before it."""

    every = looper.Every(steps=1)

    def on_step(self, step, logs):
        self.run.stop("the test has seen enough")


@pytest.mark.usefixtures("eager_to_compile")
def test_the_next_process_measures_nothing(ran, monkeypatch, tmp_path):
    """And compiles only if what is left of its run pays for it."""
    monkeypatch.setenv("LOOPER_CACHE", str(tmp_path / "cache"))
    fit(make_trainer(tmp_path / "first"))
    assert ran
    ran.clear()
    [path] = (tmp_path / "cache").rglob("modes-*/*.json")
    for seconds, mode in ((1e-6, "xla_loop"), (1e6, "graph")):
        compiled = {"seconds_per_step": 0.5, "compile_seconds": seconds}
        path.write_text(json.dumps({"graph": {"seconds_per_step": 1.0}, "xla_loop": compiled}))
        assert inside.mode(fit(make_trainer(tmp_path / mode), callbacks=[End()])) == mode
        assert choice_in(tmp_path / mode)["why"] == "a process before has measured it"
    assert not ran


def test_what_compiling_took_here_tells_what_it_will_take(monkeypatch, tmp_path):
    """The median of the last ones; none of them is a program that was only loaded."""
    monkeypatch.setenv("LOOPER_CACHE", str(tmp_path / "cache"))
    for ratio in (3.0, 2.0, 1e-6, 1e6, 4.0):
        known.Compiling("CPU").note(ratio)
    assert (known.Compiling("CPU").ratio(), known.Compiling("GPU").ratio()) == (3.0, 1.0)
    for _ in range(known.MOST_RATIOS):
        known.Compiling("CPU").note(1.5)
    assert known.Compiling("CPU").ratio() == 1.5
    [path] = (tmp_path / "cache").rglob("compiling-CPU")
    for damaged in ("[1.5, NaN]", "[[1]]", "{", "5", "[" + "9" * 400 + "]"):
        path.write_text(damaged)
        assert known.Compiling("CPU").ratio() == 1.0
    known.Compiling("CPU").note(2.0)
    assert known.Compiling("CPU").ratio() == 2.0

    # compiling is worth it as it is expected, and not at a millionth of that speed
    monkeypatch.setattr(autotune, "LEAST_STEPS", 100)
    monkeypatch.setattr(autotune, "SECONDS_TO_COMPILE", 1e-3)
    monkeypatch.setattr(autotune, "SECONDS_PER_OPERATION", 0.0)
    # whether a program is new, the cache tells: tests/base/test_xla_cache.py
    for case, ratio, counts in (("tried", 10.0, range(100)), ("loaded", 10.0, [5] * 100), ("not tried", 1e6, range(9))):
        shutil.rmtree(tmp_path / "cache", ignore_errors=True)  # and what was measured
        monkeypatch.setattr(known.Compiling, "ratio", lambda self, ratio=ratio: ratio)
        monkeypatch.setattr(autotune.xla_cache, "new_programs", functools.partial(next, iter(counts)))
        fit(make_trainer(tmp_path / case), callbacks=[End()])
        table = choice_in(tmp_path / case)["table"]
        assert ("compile_seconds" in table["xla_loop"]) == (case != "not tried"), table
        assert len([*(tmp_path / "cache").rglob("compiling-CPU")]) == (case == "tried")


def test_what_is_measured_takes_its_share(monkeypatch):
    """On a clock of its own: a run limited by time of slow steps, and modes of which one is slow or refused."""

    def chosen(step, operations=100, limit=None, steps=None, **xla):
        clock = regret.Clock()
        modes = {"graph": step, **{mode: seconds for mode, seconds in xla.items() if seconds is not None}}
        rows = {mode: {"compile": 1.0, "first": s, "call": s, "step": s} for mode, s in modes.items()}
        rows["graph"]["compile"] = 0.0
        found = {"operations": {"MatMul": operations}, "bytes": 1, "unfit": {}, "modes": rows}
        durations = regret.Durations(found, clock)
        durations.why_not = lambda mode: regret.Durations.why_not(durations, mode) if mode in rows else "it cannot"
        monkeypatch.setattr(autotune, "time", clock)
        choice = autotune.choose(durations, steps, limit)
        return choice, clock.now

    _, took = chosen(1.0, limit=30.0, xla_loop=None, xla_step=None)
    assert took == 2 + autotune.PROBES, "the first two steps, and three of one step each"
    # 20 s in the graph at 1 ms a step, where XLA may gain much: the second mode is tried if the first is none
    choice, _ = chosen(1e-3, 1000, steps=20_000, xla_loop=None, xla_step=2e-4)
    assert (choice.mode, choice.table["xla_loop"]["left_out"]) == ("xla_step", "it cannot")
    choice, _ = chosen(1e-3, 1000, steps=20_000, xla_loop=2e-4, xla_step=1e-4)
    assert choice.mode == "xla_loop"
    assert choice.table["xla_step"]["left_out"].startswith("not tried: both would compile for about 3.2 s, and the run")
    # a slow mode is not measured with as many steps as the graph
    choice, took = chosen(1e-3, 100, steps=100_000, xla_loop=9e-3, xla_step=None)
    assert choice.mode == "graph" and took - 1.0 < 2.0


@pytest.mark.usefixtures("eager_to_compile")
def test_what_xla_cannot_do_is_left_out_without_a_warning(recwarn, tmp_path):
    """Once, however often the run is prolonged."""
    trainer = Noisy(workdir=tmp_path)
    fit(trainer)
    table = choice_in(tmp_path)["table"]
    assert choice_in(tmp_path)["mode"] == "graph"
    assert all("AsString" in table[mode]["left_out"] for mode in ("xla_step", "xla_loop"))
    for steps in (240, 360):
        fit(trainer, steps)
    assert trainer.step == 360
    assert inside.mode_for(trainer) is None
    assert not [w for w in recwarn if "XLA" in str(w.message) or "compiled again" in str(w.message)]


@pytest.mark.usefixtures("eager_to_compile")
def test_data_that_ends_at_an_unknown_place_needs_a_limit_to_be_measured(tmp_path):
    def data():
        return tf.data.Dataset.from_tensor_slices(models.data(examples=50)).filter(lambda x, y: True).batch(8)

    for options, measured in [({}, False), ({"max_time": 600.0}, True)]:
        trainer = make_trainer(tmp_path / str(measured))
        with contextlib.suppress(KeyboardInterrupt):
            trainer.fit(data(), epochs=3, progress=False, **options)
        assert (len(choice_in(tmp_path / str(measured))["table"]) == 3) == measured
    assert choice_in(tmp_path / "False")["why"] == "it is not known how long the run will be"


@pytest.mark.usefixtures("eager_to_compile")
def test_what_cannot_be_put_back_is_not_measured(tmp_path):
    calls = []

    class Counted(looper.Trainer):
        def build(self):
            self.model, self.optimizer = models.dense(0.0), keras.optimizers.SGD(0.1)

        def compute_loss(self, batch, training):
            called = tf.numpy_function(lambda: np.float32(calls.append(1) or 0.0), [], tf.float32)
            return models.cross_entropy()(batch[1], self.model(batch[0], training=training)) + called

    fit(Counted(workdir=tmp_path))
    assert len(calls) == 120
    assert choice_in(tmp_path)["why"] == "what PyFunc does cannot be put back after measuring"


@pytest.mark.usefixtures("eager_to_compile")
def test_an_error_in_the_first_batch_is_the_same_as_without_measuring(tmp_path):
    x, y = models.data(examples=50)
    with pytest.raises(StepError, match=r"TensorFlow failed in step 1, .*: Received a label value of 10"):
        fit(make_trainer(tmp_path), data=(x, y + 100))


def test_a_run_that_began_eager_goes_on_compiled(tmp_path):
    fit(make_trainer(tmp_path, execution="eager"), steps=5)
    trainer = fit(make_trainer(tmp_path), steps=20)
    assert (trainer.step, inside.mode(trainer)) == (20, "graph")


def test_deterministic_operations():
    """In a process of its own, as TensorFlow cannot go back; it refuses its clock then."""
    code = """
import tensorflow as tf
import looper
from tests.support import inside, models
x, y = models.data(examples=50)
for mode, data in (("auto", (x, y)), ("xla_loop", tf.data.Dataset.from_tensor_slices((x, y)).batch(8))):
    trainer = looper.Trainer(
        model=models.dense, optimizer="sgd", loss=models.cross_entropy, deterministic=True, execution=mode
    )
    callbacks = [looper.callbacks.Throughput()]
    trainer.fit(data, epochs=2, eval_data=(x, y), callbacks=callbacks, progress=False)
    print(mode, trainer.epoch, inside.mode(trainer))
"""
    done = subprocess.run([sys.executable, "-W", "error::UserWarning", "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["auto 2 graph", "xla_loop 2 xla_loop"]
