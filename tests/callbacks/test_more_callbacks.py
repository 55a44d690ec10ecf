"""looper's further callbacks: learning rates, CSV, non-finite values, profiles, and what they write to TensorBoard."""

import csv
import io
import threading

import keras
import numpy as np
import pytest
import tensorflow as tf
from sklearn.metrics import confusion_matrix
from tensorboard.backend.event_processing.data_provider import MultiplexerDataProvider
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.backend.event_processing.plugin_event_multiplexer import EventMultiplexer
from tensorboard.context import RequestContext
from tensorboard.plugins.base_plugin import TBContext
from tensorboard.plugins.hparams import api_pb2, backend_context, list_session_groups
from tensorflow.tsl.profiler.protobuf import xplane_pb2

import looper
from looper import callbacks
from looper.base.schedule import At, Every, Ticker
from looper.callbacks.trace_summary import summarize
from tests.support import inside, models

STEPS = 4
NOISE = (models.data()[0], np.random.default_rng(1).integers(0, 3, 50).astype("int32"))


def trainer(rate=0.5, model=models.dense, momentum=0.9, **options):
    return looper.Trainer(
        model=model,
        optimizer=lambda: keras.optimizers.SGD(rate, momentum),
        loss=models.cross_entropy,
        metrics=lambda: [keras.metrics.SparseCategoricalAccuracy("accuracy")],
        **options,
    )


def fit(mine, given, epochs=3, data=None, **options):
    options = {"eval_data": NOISE, "batch_size": 16, "progress": False} | options
    return mine.fit(data or models.data(examples=64), epochs=epochs, callbacks=given, **options)


def weights(mine):
    return [v.numpy() for v in mine.model.trainable_variables]


def rates_of(mine):
    parts = mine.strategy.experimental_local_results(mine.optimizer.learning_rate.value)
    return [float(part) for part in parts]


@pytest.mark.parametrize("given", [2, 0])
def test_patience_of_early_stopping_is_keras(given):
    """Keras' own is fed with the losses that ours saw."""
    ours, seen = callbacks.EarlyStopping("probe", patience=given, restore_best_weights=False), []

    class Probe(callbacks.Callback):
        logs = ("probe",)

        def on_epoch_end(self, epoch, logs):
            seen.append([3.0, 2.0, 2.5, 1.0, 1.5, 1.2, 0.5, 0.4][epoch])
            self.run.log("probe", seen[-1])

    fit(trainer(), [Probe(), ours], epochs=8, eval_data=None)
    model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1)])
    model.stop_training = False
    theirs = keras.callbacks.EarlyStopping("probe", patience=given, mode="min")
    theirs.set_model(model)
    theirs.on_train_begin()
    for epoch, value in enumerate(seen):
        assert not model.stop_training
        theirs.on_epoch_end(epoch, {"probe": value})
    assert len(seen) == {2: 6, 0: 3}[given] and model.stop_training
    with pytest.raises(looper.InputError, match="patience=-1: expected a whole number of at least 0"):
        callbacks.EarlyStopping(patience=-1)


@pytest.mark.parametrize(("strategy", "given"), [("one_device", 2), ("mirrored", 2), ("one_device", 0)])
def test_reduce_lr_on_plateau_is_keras(strategy, given):
    """Against Keras' own callback, fed with the losses that ours saw. A cooldown of 1 would be as none, in both."""
    ours = callbacks.ReduceLROnPlateau("eval/loss", factor=0.3, patience=given, cooldown=2, min_lr=0.02)
    seen = []
    note = callbacks.LambdaCallback(on_eval_end=lambda step, logs: seen.append((logs["eval/loss"], rates_of(mine))))
    mine = trainer(strategy=strategy, devices=2 if strategy == "mirrored" else None)
    fit(mine, [ours, note], epochs=12)
    model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1)])
    model.compile(keras.optimizers.SGD(0.5))
    theirs = keras.callbacks.ReduceLROnPlateau(factor=0.3, patience=given, cooldown=2, min_lr=0.02, mode="min")
    theirs.set_model(model)
    theirs.on_train_begin()
    for epoch, (loss, rates) in enumerate(seen):
        theirs.on_epoch_end(epoch, {"val_loss": loss})
        assert rates == [float(model.optimizer.learning_rate)] * (2 if strategy == "mirrored" else 1)
    assert len({rates[0] for _, rates in seen}) >= 3


def test_learning_rate_scheduler_before_the_first_step():
    """Epochs with rate 0 change nothing: it is set before their first step."""
    mine, kept = trainer(momentum=0.0), []
    note = callbacks.LambdaCallback(on_epoch_end=lambda epoch, logs: kept.append(weights(mine)))
    scheduler = callbacks.LearningRateScheduler(lambda epoch: 0.1 if epoch == 1 else 0.0)
    history = fit(mine, [scheduler, note], eval_data=None)
    np.testing.assert_allclose(history["learning_rate"], [0.0, 0.1, 0.0], rtol=1e-6)  # float32
    initial = weights(trainer())
    assert all((a == b).all() for a, b in zip(kept[0], initial, strict=True))
    assert not (kept[1][0] == initial[0]).all()
    assert all((a == b).all() for a, b in zip(kept[1], kept[2], strict=True))


def test_learning_rate_scheduler_by_steps():
    mine = trainer()
    scheduler = callbacks.LearningRateScheduler(lambda step: 1.0 / (1 + step), every=Every(steps=3))
    history = fit(mine, [scheduler], epochs=2, log_every=Every(steps=1), eval_data=None)
    used = [1, 1, 1, 1 / 4, 1 / 4, 1 / 4, 1 / 7, 1 / 7]
    np.testing.assert_allclose(history["learning_rate"], used, rtol=1e-6)  # float32


def test_continued_runs_are_undisturbed_ones(tmp_path):
    """Interrupted by an error in the second epoch, with a checkpoint two steps before."""

    def run(folder, stop=None):
        def maybe(step, logs):
            if step == stop:
                raise RuntimeError("the test's")

        given = [
            callbacks.LearningRateScheduler(lambda epoch, rate: rate * 0.5),
            callbacks.ReduceLROnPlateau("loss", patience=3, factor=0.25, min_delta=100),
            callbacks.CSVLogger(),
            callbacks.LambdaCallback(every=Every(steps=1), on_step=maybe),
        ]
        mine = trainer(workdir=tmp_path / folder)
        fit(mine, given, epochs=4, save_every=Every(steps=6), log_every=Every(steps=2))
        return mine

    expected = run("a")
    with pytest.raises(RuntimeError, match="the test's"):
        run("b", stop=11)
    mine = run("b")
    assert all((a == b).all() for a, b in zip(weights(mine), weights(expected), strict=True))
    # halved before each epoch; and a quarter where three logs were no better than the best: after steps 8 and 14
    rates = [1 / 4, 1 / 4, 1 / 8, 1 / 8, 1 / 64, 1 / 64, 1 / 128, 1 / 512]
    assert mine.history["learning_rate"] == expected.history["learning_rate"] == rates
    rows = [list(csv.DictReader((tmp_path / name / "log.csv").open())) for name in "ab"]
    assert [row["step"] for row in rows[1]] == ["4", "8", "12", "16"]
    for name in ("epoch", "loss", "accuracy", "eval/loss"):
        assert [row[name] for row in rows[0]] == [row[name] for row in rows[1]]
    evaluated = [float(row["eval/loss"]) for row in rows[0]]
    assert evaluated == expected.history["eval/loss"]


def test_a_schedule_cannot_be_set():
    mine = trainer(rate=keras.optimizers.schedules.CosineDecay(0.1, 10))
    for given in (callbacks.LearningRateScheduler(lambda epoch: 0.1), callbacks.ReduceLROnPlateau()):
        with pytest.raises(looper.InputError, match="the optimizer has a schedule for it"):
            fit(mine, [given])
    with pytest.raises(looper.InputError, match="returned None for 0: expected a number"):
        fit(trainer(), [callbacks.LearningRateScheduler(lambda epoch: None)])
    with pytest.raises(looper.InputError, match="expected a number between 0 and 1"):
        callbacks.ReduceLROnPlateau(factor=2)


def test_the_rate_inside_a_loss_scale_optimizer():
    mine = looper.Trainer(
        model=models.dense,
        optimizer=lambda: keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD(0.1)),
        loss=models.cross_entropy,
        precision="mixed_float16",
    )
    fit(mine, [callbacks.LearningRateScheduler(lambda epoch: 0.25)], epochs=1, eval_data=None)
    assert float(mine.optimizer.inner_optimizer.learning_rate) == 0.25


def with_nan(batch):
    """64 examples in order, batches of 16; one batch has a NaN."""
    x, y = models.data(examples=64)
    x = x.copy()
    x[16 * batch] = np.nan
    return x, y


def plain():
    return models.dense(norm=False)  # batch statistics keep a NaN that was seen


@pytest.mark.parametrize("strategy", ["one_device", "mirrored"])
def test_nan_guard_leaves_the_batch_out(strategy):
    """The result is that of the same data without the bad batch."""
    options = {"model": plain, "strategy": strategy, "devices": 2 if strategy == "mirrored" else None}
    x, y = with_nan(2)
    arguments = {"shuffle": False, "log_every": Every(steps=1), "eval_data": None}
    skips, goes_back, other = (trainer(**options) for _ in range(3))
    guards = callbacks.NanGuard("skip"), callbacks.NanGuard("rollback")
    history = fit(skips, [guards[0]], epochs=1, data=(x, y), **arguments)
    assert history["skipped_steps"] == [0, 0, 1, 0]
    with pytest.warns(UserWarning, match=r"nan at step 3.*goes back to the last boundary \(1 of 10\)"):
        history = fit(goes_back, [guards[1]], epochs=1, data=(x, y), **arguments)
    assert history.steps("loss") == [1, 2, 4]
    keep = np.r_[0:32, 48:64]
    fit(other, [], epochs=1, data=(x[keep], y[keep]), **arguments)
    for mine, guard in zip((skips, goes_back), guards, strict=True):
        assert guard.count == 1
        for a, b in zip(weights(mine), weights(other), strict=True):
            np.testing.assert_array_equal(a, b)
        assert (mine.step, int(keras.ops.convert_to_numpy(mine.optimizer.iterations))) == (4, 3)


def test_rollback_puts_back_everything():
    """Batch statistics, momentum and dropout seeds are those of the last boundary, two steps before."""
    mine, kept = trainer(model=lambda: models.dense(dropout=0.5)), {}

    def variables():
        return [v.numpy() for v in (*mine.model.variables, *mine.optimizer.variables)]

    own = callbacks.LambdaCallback(
        on_step=lambda step, logs: kept.update({step: variables()}),
        on_epoch_end=lambda *_: kept.update(end=variables()),
    )
    arguments = {"shuffle": False, "log_every": Every(steps=2), "eval_data": None}
    with pytest.warns(UserWarning, match="step 4"):
        fit(mine, [callbacks.NanGuard("rollback"), own], epochs=1, data=with_nan(3), **arguments)
    assert list(kept) == [2, "end"]
    assert all((a == b).all() for a, b in zip(kept[2], kept["end"], strict=True))


def test_rollback_forgets_the_good_steps_that_it_undoes():
    """Steps 1 and 2 were well, but the last boundary is the beginning: nothing is left to log."""
    mine = trainer(model=plain, steps_per_execution=1)
    initial = weights(mine)
    with pytest.warns(UserWarning, match="step 3"):
        history = fit(mine, [callbacks.NanGuard("rollback")], 1, with_nan(2), shuffle=False, eval_data=None)
    assert history.rows == []
    assert all((a == b).all() for a, b in zip(weights(mine), initial, strict=True))


def test_rollback_forgets_the_good_steps_after_it():
    """The loss of step 3 alone is no number, and its gradients are: step 4 goes well, and is undone, too."""

    class Recipe(looper.Trainer):
        def build(self):
            self.model, self.optimizer = plain(), keras.optimizers.SGD(0.1)

        def compute_loss(self, batch, training):
            x, y = batch
            losses = keras.losses.sparse_categorical_crossentropy(y, self.model(x, training=training), from_logits=True)
            return losses + tf.where(tf.reduce_any(x > 50), np.float32(np.nan), 0.0)

    x, y = models.data(examples=64)
    x = x.copy()
    x[32] = 51.0
    mine = Recipe(steps_per_execution=1)
    initial = weights(mine)
    with pytest.warns(UserWarning, match="step 3"):
        history = fit(mine, [callbacks.NanGuard("rollback")], 1, (x, y), shuffle=False, eval_data=None)
    assert history.rows == []
    assert all((a == b).all() for a, b in zip(weights(mine), initial, strict=True))


def test_nan_guard_gives_up():
    arguments = {"shuffle": False, "log_every": Every(steps=1), "data": with_nan(2), "eval_data": None}
    with pytest.raises(looper.NonFiniteLossError, match=r"2 steps with gradients .* by step 7, more than .*limit=1"):
        fit(trainer(model=plain), [callbacks.NanGuard("skip", limit=1)], **arguments)
    with (
        pytest.raises(looper.NonFiniteLossError, match=r"step 7.*has gone back 1 times, its limit"),
        pytest.warns(UserWarning, match="1 of 1"),
    ):
        fit(trainer(model=plain), [callbacks.NanGuard("rollback", limit=1)], **arguments)
    with pytest.raises(looper.NonFiniteLossError, match="nan at step 3"):
        fit(trainer(model=plain), [callbacks.NanGuard()], **arguments)
    with pytest.raises(looper.InputError, match="did you mean 'skip'"):
        callbacks.NanGuard("skipp")


def test_nan_guard_counts_survive_a_restart(tmp_path):
    arguments = {"shuffle": False, "data": with_nan(2), "eval_data": None}
    fit(trainer(model=plain, workdir=tmp_path), [callbacks.NanGuard("skip", limit=2)], epochs=1, **arguments)
    guard = callbacks.NanGuard("skip", limit=2)
    fit(trainer(model=plain, workdir=tmp_path), [guard], epochs=2, **arguments)
    assert guard.count == 2
    with pytest.raises(looper.NonFiniteLossError, match="3 steps"):
        fit(trainer(model=plain, workdir=tmp_path), [callbacks.NanGuard("skip", limit=2)], **arguments)


def test_at_certain_steps():
    ticker = Ticker(At((3, 7)))
    assert [ticker.steps_left(step) for step in (0, 3, 6, 7)] == [3, 4, 1, None]
    assert [step for step in range(9) if ticker.due(step, None)] == [3, 7]


@pytest.mark.parametrize(
    ("execution", "steps", "cut", "traced"),
    [("graph", (3, 6), [3, 4, 5, 6, 12], 3), ("xla_loop", (0, 4), [1, 2, 3, 4, 12], 3)],  # the first one compiles
)
def test_a_profile_has_a_marker_a_step_and_says_what_takes_the_time(tmp_path, capsys, execution, steps, cut, traced):
    mine, ends = trainer(workdir=tmp_path, steps_per_execution=100, execution=execution), []
    profile = callbacks.Profile(steps)
    data = tf.data.Dataset.from_tensor_slices(models.data(examples=64)).batch(16).repeat()
    read = callbacks.LambdaCallback(on_execution=ends.append)
    mine.fit(data, steps=12, callbacks=[profile, read], progress=False)
    assert ends == cut
    assert mine.history.steps("loss") == [12]  # the window makes no logs of its own
    [file] = tmp_path.glob("plugins/profile/*/*.xplane.pb")
    space = xplane_pb2.XSpace.FromString(file.read_bytes())
    [host] = [plane for plane in space.planes if plane.name == "/host:CPU"]
    names = [host.event_metadata[event.metadata_id].name for line in host.lines for event in line.events]
    assert names.count("train") == profile.summary.steps == traced
    assert not any("Compile" in name and "XlaCompile" not in name for name in names), "a program is compiled in it"
    assert len(profile.summary.operations) > 10
    assert 0 < profile.summary.idle < 1
    said = capsys.readouterr().out
    assert said == f"{profile.summary}\n" and said.startswith(f"profile: {traced} steps of ")
    assert strings(events(tmp_path), "profile")[-1][1][0].decode().split() == said.split()


def test_wrong_profiles(tmp_path):
    with pytest.raises(looper.InputError, match="expected two steps"):
        callbacks.Profile((5, 3))
    with pytest.raises(looper.InputError, match=r"begins after step 30, and training ends at step 8: give earlier"):
        fit(trainer(workdir=tmp_path), [callbacks.Profile((30, 35))], epochs=2)


def test_a_summary_counts_no_time_twice():
    """A loop of 8, in it two operations of 3 and 2; beside them on another thread 6, of which 4 at the same time."""
    space = xplane_pb2.XSpace()
    plane = space.planes.add(name="/host:CPU")
    for i, name in enumerate(
        ["train", "while/while:While", "a/b/MatMul:MatMul", "while/body/_3/c/Add:AddV2", "python"]
    ):
        plane.event_metadata[i].name = name
    for events_ in ([(0, 0, 20), (1, 2, 8), (2, 3, 3), (3, 7, 2), (4, 0, 30)], [(2, 8, 6)]):
        line_ = plane.lines.add()
        for kind, begin, duration in events_:
            line_.events.add(metadata_id=kind, offset_ps=begin * 10**9, duration_ps=duration * 10**9)
    found = summarize(space)
    expected = {"a/b/MatMul": 0.009, "while/while (While)": 0.003, "c/Add (AddV2)": 0.002}
    assert found.operations == pytest.approx(expected)
    assert (found.steps, found.seconds, found.idle) == (1, pytest.approx(0.02), pytest.approx(8 / 20))


@pytest.mark.parametrize(("execution", "counted"), [("graph", True), ("graph", False), ("eager", True)])
def test_throughput_tells_slow_data_from_fast(execution, counted):
    """Data that takes far longer than a step: most of the time is waited for."""
    never = threading.Event()

    def slow(x, y):
        def wait(x):
            never.wait(0.5)  # the data's own slowness, which is what is measured
            return x

        return tf.numpy_function(wait, [x], x.dtype), y

    data = tf.data.Dataset.from_tensor_slices(models.data(examples=64)).batch(32)
    spec = data.element_spec
    slowed = data.map(slow).map(lambda x, y: (tf.ensure_shape(x, spec[0].shape), y))
    slowed = slowed if counted else slowed.filter(lambda x, y: True)
    assert (int(slowed.cardinality()) == 2) == counted
    mine = trainer(execution=execution)
    arguments = {"batch_size": None, "eval_data": None}
    waits = fit(mine, [callbacks.Throughput()], data=slowed, epochs=2, **arguments)["input_wait"]
    assert len(waits) == 2
    assert 0 < min(waits) <= max(waits) <= 1
    # an epoch's first batch is waited for in full; the second one overlaps with the first step, which takes far less
    assert max(waits) > 0.3


def test_throughput_costs_nothing_where_it_is_absent():
    """No clock in the compiled step and no log; and with it no second trace in a second fit."""

    def clocks(mine):
        (execution,) = inside.executions(mine, "train")
        assert execution.traces == 1
        graph = inside.graph(execution, data.element_spec)
        return sum(node.op == "Timestamp" for function in graph.library.function for node in function.node_def)

    # batches that may have any size come one by one: outside of stacks, which are waited for outside of the graph
    data = tf.data.Dataset.from_tensor_slices(models.data()).batch(8).map(lambda *batch: batch)
    without, with_clock = trainer(), trainer()
    for epochs in (1, 2):
        arguments = {"data": data, "batch_size": None, "epochs": epochs, "eval_data": None}
        assert "input_wait" not in fit(without, [], **arguments).names()
        assert "input_wait" in fit(with_clock, [callbacks.Throughput()], **arguments).names()
    assert clocks(without) == 0
    assert clocks(with_clock) > 0


def events(folder):
    reader = EventAccumulator(str(folder), size_guidance={"tensors": 0, "histograms": 0})
    reader.Reload()
    return reader


def strings(reader, tag):
    return [(event.step, list(event.tensor_proto.string_val)) for event in reader.Tensors(tag)]


def test_the_ratio_of_update_to_weights(tmp_path):
    """Of one step each, from the weights before and after it."""
    kept = {}
    mine = trainer(workdir=tmp_path, execution="graph", steps_per_execution=100)

    def keep(step, logs=None):
        kept[step] = {v.path: np.asarray(v) for v in mine.model.trainable_variables}

    note = callbacks.LambdaCallback(every=At((4, 5, 8, 9)), on_step=keep)
    fit(mine, [note, callbacks.Histograms(weights=False, updates=True)], epochs=3)
    reader = events(tmp_path)
    for path in kept[4]:
        points = {event.step: event.value for event in reader.Scalars(f"updates/{path}")}
        expected = {
            step + 1: np.linalg.norm(kept[step + 1][path] - kept[step][path]) / np.linalg.norm(kept[step][path])
            for step in (4, 8)
            if np.any(kept[step][path])
        }
        assert points.keys() == {5, 9}
        assert {step: points[step] for step in expected} == pytest.approx(expected, rel=1e-4)  # float32


def test_histograms(tmp_path):
    mine = trainer(workdir=tmp_path, model=lambda: models.dense(dropout=0.5))
    x, y = models.data(examples=8)
    before = []
    batch = (x, y)
    given = [
        callbacks.LambdaCallback(every=Every(epochs=1), on_step=lambda *_: before.append(state(mine))),
        callbacks.Histograms(gradients=True, activations=True, batch=batch),
        callbacks.LambdaCallback(every=Every(epochs=1), on_step=lambda *_: before.append(state(mine))),
    ]
    fit(mine, given, epochs=2)
    assert all((a == b).all() for a, b in zip(before[0], before[1], strict=True))
    reader = events(tmp_path)
    variables = mine.model.trainable_variables
    for variable in variables:
        for kind in ("weights", "gradients"):
            points = reader.Tensors(f"{kind}/{variable.path}")
            assert [point.step for point in points] == [4, 8]
            buckets = tf.make_ndarray(points[-1].tensor_proto)  # left edge, right edge, count
            assert buckets[:, 2].sum() == np.prod(variable.shape)
    last = tf.make_ndarray(reader.Tensors(f"weights/{variables[0].path}")[-1].tensor_proto)
    np.testing.assert_allclose([last[0, 0], last[-1, 1]], [variables[0].numpy().min(), variables[0].numpy().max()])
    with tf.GradientTape() as tape:
        loss = models.cross_entropy()(y, mine.model(x, training=False))
    gradient = tape.gradient(loss, variables[0].value).numpy()
    last = tf.make_ndarray(reader.Tensors(f"gradients/{variables[0].path}")[-1].tensor_proto)
    np.testing.assert_allclose([last[0, 0], last[-1, 1]], [gradient.min(), gradient.max()], rtol=1e-5)
    assert sum(tag.startswith("activations/") for tag in reader.Tags()["tensors"]) == len(mine.model.layers)
    with pytest.raises(looper.InputError, match="need batch="):
        callbacks.Histograms(gradients=True)


def state(mine):
    return [v.numpy() for v in (*mine.model.variables, *mine.optimizer.variables, *mine.metrics[0].variables)]


def test_images_and_texts(tmp_path):
    mine = trainer(workdir=tmp_path)
    pictures = np.random.default_rng(0).integers(0, 256, (5, 4, 6, 3), dtype=np.uint8)
    given = [
        callbacks.Images(pictures, max=2),
        callbacks.Images(lambda run: run.predict(models.data()[0]).reshape(1, 50, 3), tag="made", every=Every(steps=2)),
        callbacks.Text(lambda run: [f"after {int(run.optimizer.iterations)}", "two"]),
    ]
    fit(mine, given, epochs=2)
    reader = events(tmp_path)
    found = strings(reader, "images")
    assert [step for step, _ in found] == [4, 8]
    assert found[0][1][:2] == [b"6", b"4"]
    for written, picture in zip(found[0][1][2:], pictures[:2], strict=True):
        np.testing.assert_array_equal(tf.io.decode_png(written), picture)
    assert [step for step, _ in strings(reader, "made")] == [2, 4, 6, 8]
    assert strings(reader, "samples") == [(4, [b"after 4\n\n---\n\ntwo"]), (8, [b"after 8\n\n---\n\ntwo"])]
    with pytest.raises(looper.InputError, match="give the Trainer workdir="):
        fit(trainer(), [callbacks.Images(pictures)])


def test_confusion_matrix(tmp_path):
    """Of arrays, and of a dataset."""
    dataset = tf.data.Dataset.from_tensor_slices(NOISE).batch(16)
    matrix, of_dataset = (callbacks.ConfusionMatrix(data, names=["a", "b", "c"]) for data in (NOISE, dataset))
    mine = trainer(workdir=tmp_path)
    fit(mine, [matrix, of_dataset], epochs=2)
    assert list(matrix.matrices) == list(of_dataset.matrices) == [4, 8]
    np.testing.assert_array_equal(of_dataset.matrices[8], matrix.matrices[8])
    expected = confusion_matrix(NOISE[1], mine.predict(NOISE[0]).argmax(1))
    np.testing.assert_array_equal(matrix.matrices[8], expected)
    assert np.trace(matrix.matrices[8]) / 50 == pytest.approx(mine.history["eval/accuracy"][-1])
    reader = events(tmp_path)
    step, (table,) = strings(reader, "eval/confusion_matrix/table")[-1]
    assert step == 8
    assert table.decode().splitlines()[0] == "| true \\ predicted | a | b | c |"
    assert table.decode().splitlines()[2] == "| **a** | " + " | ".join(map(str, expected[0])) + " |"
    _, (width, height, png) = strings(reader, "eval/confusion_matrix/picture")[-1]
    drawn = tf.io.decode_png(png).numpy()
    assert drawn.shape == (int(height), int(width), 3)
    cell = 32  # pixels, of numbers of two digits
    corner = drawn.shape[0] - 4 - 3 * cell
    for row, column in np.ndindex(3, 3):  # a corner of each cell, which no number covers
        share = expected[row, column] / expected[row].sum()
        color = np.round(255 - share * (255 - np.array([8, 48, 107])))
        np.testing.assert_array_equal(drawn[corner + row * cell, corner + column * cell], color)


def test_hparams_as_the_plugin_reads_them(tmp_path):
    """With TensorBoard on the run's directory, and on one of several runs."""
    mine = trainer(workdir=tmp_path / "one")
    fit(mine, [callbacks.HParams({"width": 16, "activation": "relu", "norm": True})], epochs=2)
    for folder in (tmp_path, tmp_path / "one"):
        multiplexer = EventMultiplexer().AddRunsFromDirectory(str(folder))
        multiplexer.Reload()
        context = backend_context.Context(TBContext(data_provider=MultiplexerDataProvider(multiplexer, str(folder))))
        request = api_pb2.ListSessionGroupsRequest(
            start_index=0, slice_size=10, allowed_statuses=[api_pb2.STATUS_SUCCESS], include_metrics=True
        )
        (group,) = list_session_groups.Handler(RequestContext(), context, "", request).run().session_groups
        assert group.hparams["width"].number_value == 16
        assert group.hparams["activation"].string_value == "relu"
        assert group.hparams["norm"].bool_value is True
        values = {value.name.tag: value.value for value in group.metric_values}
        assert list(values) == ["loss", "eval/accuracy", "eval/loss"]
        for tag, value in values.items():
            assert value == pytest.approx(mine.history[tag][-1], rel=1e-6)  # stored as float32


def test_model_summary():
    stream = io.StringIO()
    mine = trainer()
    fit(mine, [callbacks.ModelSummary(stream)], epochs=2, eval_data=None)
    lines = []
    mine.model.summary(print_fn=lambda line, **_: lines.append(line))
    assert stream.getvalue() == "\n".join(lines) + "\n"


def test_lambda_callback():
    seen = []
    hooks = {
        name: lambda *args, name=name: seen.append((name, *[a for a in args if isinstance(a, int)]))
        for name in (
            "on_fit_begin", "on_epoch_begin", "on_step", "on_epoch_end", "on_eval_begin", "on_eval_end",
            "on_boundary_end", "on_fit_end",
        )
    }  # fmt: skip
    fit(trainer(), [callbacks.LambdaCallback(**hooks)], epochs=2, log_every=Every(steps=3))
    epochs = [
        [("on_epoch_begin", i), *[(name, n) for n in logs for name in ("on_step", "on_boundary_end")]]
        for i, logs in enumerate(([3, 4], [7, 8]))
    ]
    for i, calls in enumerate(epochs):
        step = 4 * (i + 1)
        calls[-1:] = [("on_epoch_end", i), ("on_eval_begin", step), ("on_eval_end", step), ("on_boundary_end", step)]
    assert seen == [("on_fit_begin",), *epochs[0], *epochs[1], ("on_fit_end",)]
    with pytest.raises(looper.InputError, match="LambdaCallback has no option 'on_epoch': did you mean"):
        callbacks.LambdaCallback(on_epoch=print)
    with pytest.raises(looper.InputError, match="on_step=3: expected a function"):
        callbacks.LambdaCallback(on_step=3)


def test_epoch_means_do_not_depend_on_the_log_period():
    rows = {}
    for steps in (1, 3, 100):
        note = callbacks.LambdaCallback(
            on_epoch_end=lambda epoch, logs, steps=steps: rows.setdefault(steps, []).append(logs["loss"])
        )
        fit(trainer(), [note], data=models.data(), log_every=Every(steps=steps), eval_data=None)
    assert rows[1] == rows[3] == rows[100]


@pytest.mark.parametrize("name", ["stop_reason", "metrics_over_epoch", "last_step"])
def test_what_a_callback_sets_on_its_run_is_refused_with_what_to_do(name):
    given = callbacks.LambdaCallback(on_fit_begin=lambda run: setattr(run, name, 3))
    with pytest.raises(looper.InputError, match=rf"run.{name} = 3: a callback changes a run with run.stop\(reason\)"):
        fit(trainer(), [given], epochs=1)
