"""Keras' own callbacks have the same effect under looper as under `fit`: files, rates, when training stops, weights."""

import contextlib
import csv
import functools
import http.server
import json
import threading
import warnings

import keras
import numpy as np
import pytest
import tensorflow as tf
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import looper
from looper.callbacks import KerasCallback
from looper.run.loop import nonfinite
from tests.support import line, models

theirs = keras.callbacks
EPOCHS, STEPS = 5, 4
NOISE = (models.data()[0], np.random.default_rng(1).integers(0, 3, 50).astype("int32"))


def batches(pair):
    return tf.data.Dataset.from_tensor_slices(pair).batch(16)


class Largest(keras.metrics.Metric):
    """A metric of one's own, of which nobody knows how two windows come together."""

    def __init__(self):
        super().__init__(name="largest")
        self.found = self.add_variable((), "zeros", name="found")

    def update_state(self, y_true, y_pred, sample_weight=None):
        self.found.assign(keras.ops.maximum(self.found, keras.ops.max(y_pred)))

    def result(self):
        return keras.ops.maximum(self.found, 0.0)


def parts(rate=0.5, own_metric=False, **optimizer):
    own = [Largest()] if own_metric else []
    return {
        "optimizer": keras.optimizers.SGD(rate, **optimizer),
        "loss": models.cross_entropy(),
        "metrics": [keras.metrics.SparseCategoricalAccuracy("accuracy"), *own],
    }


def under_fit(callbacks, epochs=EPOCHS, data=None, **options):
    keras.utils.set_random_seed(3)
    model = models.dense(dropout=0.3)
    model.compile(**parts(**options))
    history = model.fit(
        batches(data or models.data()),
        epochs=epochs,
        validation_data=batches(NOISE),
        callbacks=callbacks,
        verbose=0,
    )
    return model, history.history


def under_looper(callbacks, epochs=EPOCHS, data=None, trainer_options=None, fit_options=None, **options):
    trainer = looper.Trainer(
        model=lambda: models.dense(dropout=0.3),
        optimizer=lambda: parts(**options)["optimizer"],
        loss=models.cross_entropy,
        metrics=lambda: parts(**options)["metrics"],
        seed=3,
        **(trainer_options or {}),
    )
    trainer.fit(
        batches(data or models.data()),
        epochs=epochs,
        eval_data=batches(NOISE),
        callbacks=callbacks,
        progress=False,
        **(fit_options or {}),
    )
    return trainer


def assert_same_weights(mine, other):
    for a, b in zip(mine.variables, [v for v in other.variables if "accuracy" not in v.path], strict=False):
        if "seed" not in b.name:
            assert models.norm_difference(np.asarray(a), np.asarray(b)) < 1e-5, b.path  # float32, other kernels


def assert_same_history(mine, other):
    assert mine.keys() == other.keys()
    for name in mine:
        np.testing.assert_allclose(mine[name], other[name], rtol=2e-5, err_msg=name)  # float32 sums against float64


@functools.cache
def history_under_fit(**options):
    """Without a callback."""
    return under_fit([], **options)[1]


@pytest.mark.xdist_group("callbacks of Keras: one history")
@pytest.mark.parametrize("log_steps", [1, 3, 100])
def test_history_has_the_means_over_the_epoch(log_steps):
    """Also if logs come within the epoch, and for metrics that cannot be averaged or added up."""
    expected = history_under_fit(own_metric=True)
    mine = theirs.History()
    under_looper([mine], fit_options={"log_every": looper.Every(steps=log_steps)}, own_metric=True)
    assert mine.epoch == list(range(EPOCHS))
    assert mine.params == {"epochs": EPOCHS, "steps": STEPS, "verbose": 0}
    assert_same_history(mine.history, expected)


class Calls(theirs.Callback):
    """What is called, in order, with the names in the logs."""

    def __init__(self):
        super().__init__()
        self.calls = []

    def __getattribute__(self, name):
        if not name.startswith("on_") or "predict" in name or name in ("on_batch_begin", "on_batch_end"):
            return super().__getattribute__(name)
        if name.startswith("on_test_batch"):
            return lambda batch, logs=None: None
        calls = self.calls

        def note(*args, logs=None):
            *args, logs = (*args, logs) if logs is not None or not args or isinstance(args[-1], int) else args
            calls.append((name, *args, sorted(logs or {})))

        return note


def test_batch_hooks_at_boundaries():
    mine = Calls()
    under_looper([mine], epochs=1, fit_options={"log_every": looper.Every(steps=3)})
    hooks = [call[:2] for call in mine.calls if "batch" in call[0]]
    names = ("on_train_batch_begin", "on_train_batch_end")
    assert hooks == [(names[0], 0), (names[1], 2), (names[0], 3), (names[1], 3)]


@pytest.mark.parametrize(("start", "restore"), [(0, True), (2, False)])
def test_early_stopping(restore, start):
    def make():
        return theirs.EarlyStopping(patience=2, restore_best_weights=restore, start_from_epoch=start)

    other, mine = make(), make()
    model, history = under_fit([other], epochs=12)
    trainer = under_looper([mine], epochs=12)
    assert trainer.epoch == len(history["loss"]) < 12
    assert (mine.stopped_epoch, mine.best_epoch, mine.wait) == (other.stopped_epoch, other.best_epoch, other.wait)
    assert_same_weights(trainer.model, model)


def test_learning_rate_scheduler():
    def make():
        return theirs.LearningRateScheduler(lambda epoch, rate: rate if epoch < 2 else rate * 0.1)

    model, history = under_fit([make()])
    seen = theirs.History()
    trainer = under_looper([make(), seen])
    assert_same_history(seen.history, history)
    assert len(history["learning_rate"]) == EPOCHS
    assert_same_weights(trainer.model, model)


def test_reduce_lr_on_plateau():
    def make():
        return theirs.ReduceLROnPlateau("loss", factor=0.3, patience=1, min_delta=0.05, cooldown=1, min_lr=0.02)

    model, history = under_fit([make()], epochs=8)
    seen = theirs.History()
    trainer = under_looper([make(), seen], epochs=8)
    assert len(set(history["learning_rate"])) > 2
    assert_same_history(seen.history, history)
    assert_same_weights(trainer.model, model)


class Wrote:
    """What callbacks of Keras that change nothing have heard and written, in one run of two epochs.

    Attributes:
        folder: where they wrote.
        calls: what was called.
        ends: the names in the logs of each epoch's end.
        sent: what a server received.
    """

    def __init__(self, folder, run, each_batch):
        folder.mkdir()
        self.folder, self.calls, self.ends, self.sent = folder, Calls(), [], []
        ends = theirs.LambdaCallback(on_epoch_end=lambda epoch, logs: self.ends.append((epoch, sorted(logs))))
        with listening(self.sent) as root:
            by_epoch = [
                theirs.CSVLogger(folder / "log.csv"),
                theirs.ModelCheckpoint(folder / "{epoch:02d}.keras"),
                theirs.ModelCheckpoint(folder / "{epoch:02d}.weights.h5", save_weights_only=True),
                theirs.ModelCheckpoint(folder / "best.keras", monitor="accuracy", save_best_only=True),
                theirs.RemoteMonitor(root, send_as_json=True),
                ends,
            ]
            by_batch = [
                self.calls,
                theirs.ModelCheckpoint(folder / "{epoch}-{batch}.weights.h5", save_weights_only=True, save_freq=3),
                theirs.TensorBoard(folder, histogram_freq=1, update_freq=1),
            ]
            run([*by_epoch, *each_batch(by_batch)], epochs=2, momentum=0.9)


@contextlib.contextmanager
def listening(received):
    """A server that notes what is posted to it."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self):
            received.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("localhost", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://localhost:{server.server_address[1]}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.fixture(scope="module")
def wrote(tmp_path_factory):
    """Of the same callbacks under `fit`, and under looper."""
    folder = tmp_path_factory.mktemp("wrote")
    expected = Wrote(folder / "theirs", under_fit, lambda given: given)
    mine = Wrote(folder / "mine", under_looper, lambda given: [KerasCallback(given, looper.Every(steps=1))])
    return expected, mine


one_pair_of_runs = pytest.mark.xdist_group("callbacks of Keras: one pair of runs")


@one_pair_of_runs
def test_order_of_calls(wrote):
    expected, mine = (run.calls.calls for run in wrote)
    assert mine == expected
    assert len(mine) == 2 + 2 * (2 + 2 + 2 * STEPS)


@one_pair_of_runs
def test_lambda_callback(wrote):
    names = ["accuracy", "loss", "val_accuracy", "val_loss"]
    assert [run.ends for run in wrote] == [[(0, names), (1, names)]] * 2


@one_pair_of_runs
def test_csv_logger(wrote):
    expected, mine = (list(csv.DictReader((run.folder / "log.csv").open())) for run in wrote)
    assert [list(row) for row in mine] == [list(row) for row in expected]
    assert len(mine) == 2
    for a, b in zip(mine, expected, strict=True):
        np.testing.assert_allclose([float(v) for v in a.values()], [float(v) for v in b.values()], rtol=2e-5)


@one_pair_of_runs
def test_model_checkpoint(wrote):
    names = ["01.keras", "01.weights.h5", "02.keras", "02.weights.h5", "best.keras"]
    for run in wrote:
        assert sorted(path.name for path in run.folder.iterdir() if path.name in names) == names
    for name in names:
        loaded = []
        for run in wrote:
            if name.endswith(".h5"):
                fresh = models.dense(dropout=0.3)
                fresh.compile(**parts(momentum=0.9))
                fresh.optimizer.build(fresh.trainable_variables)
                fresh.load_weights(run.folder / name)
            else:
                fresh = keras.saving.load_model(run.folder / name)
                assert fresh.compiled
            loaded.append(fresh)
        assert_same_weights(loaded[1], loaded[0])
        ours, others = (fresh.optimizer.variables for fresh in loaded[::-1])
        assert len(ours) == len(others) > 2
        for a, b in zip(ours, others, strict=True):
            np.testing.assert_allclose(a.numpy(), b.numpy(), rtol=1e-4, atol=1e-6)


@one_pair_of_runs
def test_model_checkpoint_by_batches(wrote):
    expected, mine = (sorted(path.name for path in run.folder.glob("*-*.weights.h5")) for run in wrote)
    assert mine == expected
    assert len(mine) == 2


@one_pair_of_runs
def test_remote_monitor(wrote):
    expected, mine = (run.sent for run in wrote)
    assert [sorted(row) for row in mine] == [sorted(row) for row in expected]
    assert len(mine) == 2
    for a, b in zip(mine, expected, strict=True):
        np.testing.assert_allclose([a[k] for k in b], list(b.values()), rtol=2e-5)


def test_backup_and_restore(tmp_path):
    """Interrupted at epoch 3 and started again: goes on there, and ends with the weights of Keras."""

    class Interrupt(theirs.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            if epoch == 3:
                raise RuntimeError("the test's")

    results = []
    for name, run in (("theirs", under_fit), ("mine", under_looper)):
        backup = theirs.BackupAndRestore(tmp_path / name)
        with pytest.raises(RuntimeError, match="the test's"):
            run([backup, Interrupt()], momentum=0.9)
        assert sorted(path.name for path in (tmp_path / name).iterdir()) == [
            "latest.weights.h5",
            "training_metadata.json",
        ]
        history = theirs.History()
        done = run([theirs.BackupAndRestore(tmp_path / name), history], momentum=0.9)
        assert history.epoch == [3, 4]
        assert not (tmp_path / name).exists()
        results.append((done, history.history))
    (model, expected), (trainer, mine) = (results[0][0][0], results[0][1]), results[1]
    assert (trainer.epoch, trainer.step) == (EPOCHS, EPOCHS * STEPS)
    assert_same_history(mine, expected)
    assert_same_weights(trainer.model, model)


@pytest.mark.xdist_group("callbacks of Keras: one history of averages")
@pytest.mark.parametrize("swap_on_epoch", [False, True])
def test_swap_ema_weights(swap_on_epoch):
    """Evaluation sees the averages, training goes on with the weights."""
    options = {"use_ema": True, "ema_momentum": 0.5}
    model, expected = under_fit([theirs.SwapEMAWeights(swap_on_epoch)], **options)
    without = history_under_fit(**options)
    seen = theirs.History()
    trainer = under_looper([theirs.SwapEMAWeights(swap_on_epoch), seen], **options)
    assert_same_history(seen.history, expected)
    for mine, other in zip(trainer.model.weights, model.weights, strict=True):  # both end on the averages
        assert models.norm_difference(mine.numpy(), other.numpy()) < 1e-5
    assert np.abs(np.subtract(without["val_loss"], expected["val_loss"])).max() > 1e-3


def events(folder):
    found = {}
    reader = EventAccumulator(str(folder), size_guidance={"tensors": 0})
    reader.Reload()
    for tag in reader.Tags()["tensors"]:
        found[tag] = [(e.step, e.tensor_proto) for e in reader.Tensors(tag)]
    return found


@one_pair_of_runs
def test_tensorboard(wrote):
    for kind in ("train", "validation"):
        expected, mine = (events(run.folder / kind) for run in wrote)

        def by_place(tags):  # layers are numbered on within a process
            return [tag for tag in tags if "histogram" not in tag]

        assert sorted(by_place(mine)) == sorted(by_place(expected))
        assert len(mine) == len(expected)
        for tag in by_place(mine):
            assert [step for step, _ in mine[tag]] == [step for step, _ in expected[tag]], tag
            if tag != "keras":  # the model as JSON
                a, b = ([float(tf.make_ndarray(t)) for _, t in found[tag]] for found in (mine, expected))
                np.testing.assert_allclose(a, b, rtol=2e-5, err_msg=tag)
    assert len(mine["evaluation_loss_vs_iterations"]) == 2
    train = events(wrote[1].folder / "train")
    assert len(train["batch_loss"]) == 2 * STEPS
    assert "keras" in train
    assert sum("histogram" in tag for tag in train) >= 8


def test_terminate_on_nan():
    x, y = models.data()
    x = x.copy()
    x[40, 0] = np.inf  # in the third batch; batch normalization makes NaN of it, where relu makes 0 of NaN
    results = []
    for run in (under_fit, under_looper):
        seen, calls = theirs.History(), Calls()
        callback = [theirs.TerminateOnNaN(), seen, calls]
        if run is under_looper:
            callback = [KerasCallback(callback, every=looper.Every(steps=1))]
        done = run(callback, data=(x, y))
        hooks = [call[:2] for call in calls.calls if call[0] in ("on_train_batch_end", "on_epoch_end")]
        ended = "on_train_end" in [call[0] for call in calls.calls]
        results.append((seen.epoch, [str(loss) for loss in seen.history["loss"]], hooks, ended))
    assert results[0] == results[1] == ([0], ["nan"], results[0][2], True)
    assert len(results[0][2]) == 4
    assert done.step == 3
    with pytest.raises(looper.NonFiniteLossError):
        under_looper([theirs.History()], data=(x, y))


def test_terminate_on_nan_by_an_error():
    x, y = models.data()
    x[:, 0] = np.inf
    with pytest.raises(RuntimeError, match="NaN or Inf loss encountered"):
        under_looper([theirs.TerminateOnNaN(raise_error=True)], data=(x, y))


def test_terminate_on_nan_sees_losses_only():
    """A gradient that is NaN before the loss is, which some CPUs' relu can hide, stays looper's error."""
    names = ["loss", "gradient_norm"]
    gradient, both = [16, 0, 16.0, 16, np.nan, 1], [16, 0, np.nan, 16, np.nan, 1]
    assert "the gradient became nan at step 5" in str(nonfinite(np.array([gradient, both]), names, 4, True))
    assert nonfinite(np.array([both, gradient]), names, 4, True) is None
    assert "the loss became nan at step 5" in str(nonfinite(np.array([both, gradient]), names, 4))


def test_orbax_says_what_it_lacks():
    """The one callback that is not tried: its package is not among the test's."""
    try:
        import orbax.checkpoint  # noqa: F401
    except ImportError:
        with pytest.raises(ImportError, match="orbax"):
            theirs.OrbaxCheckpoint("somewhere")


def test_all_of_keras_callbacks_are_tried_here():
    names = {name for name in dir(theirs) if name[0].isupper()} - {"Callback", "CallbackList", "ProgbarLogger"}
    assert names == {
        "BackupAndRestore", "CSVLogger", "EarlyStopping", "History", "LambdaCallback", "LearningRateScheduler",
        "ModelCheckpoint", "OrbaxCheckpoint", "ReduceLROnPlateau", "RemoteMonitor", "SwapEMAWeights", "TensorBoard",
        "TerminateOnNaN",
    }  # fmt: skip


def test_on_two_replicas():
    """Rates and weights that a callback sets are set on both."""
    rates = []

    class Rates(theirs.Callback):
        def on_epoch_end(self, epoch, logs=None):
            rate = self.model.optimizer.learning_rate.value
            rates.append([float(part) for part in trainer_strategy.experimental_local_results(rate)])

    trainer_strategy = looper.Trainer(model=models.dense, strategy="mirrored", devices=2).strategy
    scheduler = theirs.LearningRateScheduler(lambda epoch, rate: 0.5 / 2**epoch)
    stopping = theirs.EarlyStopping(patience=2, restore_best_weights=True)
    options = {"strategy": "mirrored", "devices": 2}
    trainer = under_looper([scheduler, stopping, Rates()], epochs=12, trainer_options=options)
    assert rates == [[0.5 / 2**epoch] * 2 for epoch in range(len(rates))]
    assert trainer.epoch == len(rates)
    for variable, best in zip(trainer.model.weights, stopping.best_weights, strict=True):
        for part in trainer.strategy.experimental_local_results(variable.value):
            np.testing.assert_array_equal(part.numpy(), best)


def test_the_model_is_as_before():
    trainer = under_looper([theirs.History()], epochs=1)
    assert not trainer.model.compiled
    assert not hasattr(trainer.model, "optimizer")
    assert [v.name for v in trainer.model.variables] == [v.name for v in models.dense(dropout=0.3).variables]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        trainer.fit(batches(models.data()), epochs=2, callbacks=[theirs.History()], progress=False)
    assert trainer.step == 2 * STEPS
    for when in ("on_train_begin", "on_epoch_end"):
        with pytest.raises(ZeroDivisionError):
            broken = theirs.LambdaCallback(**{when: lambda *_: 1 / 0})
            trainer.fit(batches(models.data()), epochs=3, callbacks=[broken], progress=False)
        assert not trainer.model.compiled


def test_a_run_continued_in_mid_epoch(tmp_path):
    """The same learning rates and history as undisturbed, though the schedule multiplies."""

    def run(workdir, stop_at=None):
        seen, saved = theirs.History(), tmp_path / "never"
        schedule = theirs.LearningRateScheduler(lambda epoch, rate: rate * 0.5)
        checkpoints = theirs.ModelCheckpoint(saved / "{epoch}.weights.h5", save_weights_only=True, save_freq=1000)

        def stop(step, logs):
            if step == stop_at:
                raise RuntimeError("the test's")

        own = looper.callbacks.LambdaCallback(every=looper.Every(steps=1), on_step=stop)
        fit_options = {"save_every": looper.Every(steps=6)}
        callbacks = [schedule, checkpoints, seen, own]
        under_looper(callbacks, trainer_options={"workdir": workdir}, fit_options=fit_options)
        return seen

    expected = run(tmp_path / "a")
    with pytest.raises(RuntimeError, match="the test's"):
        run(tmp_path / "b", stop_at=7)
    continued = run(tmp_path / "b")
    assert continued.epoch == [1, 2, 3, 4]
    for name, values in continued.history.items():
        np.testing.assert_array_equal(values, expected.history[name][1:], err_msg=name)


def test_wrong_input(tmp_path):
    with pytest.raises(looper.InputError, match="a progress bar of its own"):
        under_looper([theirs.ProgbarLogger()])
    with pytest.raises(looper.InputError, match="both continue a run"):
        under_looper([theirs.BackupAndRestore(tmp_path / "b")], trainer_options={"workdir": tmp_path / "w"})
    swap = theirs.SwapEMAWeights(swap_on_epoch=True)
    with pytest.raises(looper.InputError, match="leaves the averages in the model"):
        under_looper([swap], trainer_options={"workdir": tmp_path / "w"})
    with pytest.raises(looper.InputError, match="expected a Keras callback"):
        KerasCallback([looper.callbacks.Throughput()])


def test_callbacks_of_keras_that_keep_weights_are_refused_with_averages(tmp_path):
    stopping = keras.callbacks.EarlyStopping(restore_best_weights=True)
    for callback, name in (
        (stopping, "EarlyStopping"),
        (keras.callbacks.ModelCheckpoint(tmp_path / "m.keras"), "Check"),
    ):
        with pytest.raises(looper.InputError, match=f"ema= evaluates their averages: take looper.callbacks.{name}"):
            line.trainer(ema=0.9).fit(
                (line.X, line.X), epochs=1, eval_data=(line.X, line.X), callbacks=[callback], progress=False
            )


def test_metrics_that_cannot_be_copied_run_beside_callbacks_of_keras():
    def distance(y, predicted):
        return tf.abs(y - predicted)

    class Odd(keras.metrics.Mean):
        def __init__(self):
            super().__init__(name="odd")

        def update_state(self, y, predicted, sample_weight=None):
            return super().update_state(y)

    for metrics in ([distance], [Odd()]):
        history = line.trainer(metrics=metrics).fit(
            (line.X, line.X), epochs=1, callbacks=[keras.callbacks.TerminateOnNaN()], progress=False
        )
        assert len(history["loss"]) == 1


@pytest.mark.parametrize("kind", ["one output", "several outputs"])
def test_a_model_saved_during_a_run_has_its_loss_and_metrics_when_keras_loads_it(kind, tmp_path):
    path = tmp_path / "model.keras"
    x, y = models.data()
    if kind == "one output":
        make, loss, target = models.dense, "sparse_categorical_crossentropy", y
        metrics = ["accuracy", keras.metrics.SparseTopKCategoricalAccuracy(2, name="best_two")]
    else:
        target = {"a": x[:, :1], "b": x[:, 1:2]}
        loss, metrics = {"a": "mse", "b": keras.losses.LogCosh()}, {"a": ["mae"], "b": [None]}

        def make():
            into = keras.Input((6,))
            return keras.Model(into, {name: keras.layers.Dense(1, name=name)(into) for name in "ab"})

    trainer = looper.Trainer(model=make, optimizer="sgd", loss=loss, metrics=metrics)
    trainer.fit((x, target), epochs=1, callbacks=[theirs.ModelCheckpoint(path)], progress=False)
    expected = trainer.evaluate((x, target))
    found = keras.models.load_model(path).evaluate(x, target, batch_size=50, verbose=0, return_dict=True)
    names = {name: name if name in found else f"a_{name}" for name in expected if name != "examples"}
    assert {found_as: found[found_as] for found_as in names.values()} == pytest.approx(
        {found_as: expected[name] for name, found_as in names.items()},
        rel=1e-5,  # float32 in Keras
    )
