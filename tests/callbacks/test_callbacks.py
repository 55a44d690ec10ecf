"""Callbacks: early stopping, checkpoints, the progress bar, TensorBoard, and the files of a run."""

import fcntl
import io
import itertools
import json
import os
import pty
import re
import resource
import socket
import struct
import subprocess
import sys
import termios
import threading
import urllib.parse
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import keras
import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.backend.event_processing.event_multiplexer import EventMultiplexer

import looper
from looper import callbacks
from looper.run.callback import Best
from looper.run.events import Events
from looper.saved import checkpoint
from tests.support import models


def fit(workdir=None, epochs=3, given=(), progress=False, **options):
    trainer = looper.Trainer(
        model=models.dense,
        optimizer=lambda: keras.optimizers.SGD(keras.optimizers.schedules.CosineDecay(0.1, 12)),
        loss=models.cross_entropy,
        metrics=lambda: [keras.metrics.SparseCategoricalAccuracy("accuracy")],
        workdir=workdir,
        precision=options.pop("precision", "float32"),
    )
    trainer.fit(
        options.pop("train_data", models.data(examples=64)),
        epochs=epochs,
        batch_size=options.pop("batch_size", 16),
        eval_data=options.pop("eval_data", models.data(examples=30)),
        callbacks=list(given),
        progress=progress,
        **options,
    )
    return trainer


class Weights(callbacks.Callback):
    """The weights at each evaluation, and its loss."""

    def __init__(self):
        self.seen = []

    def on_eval_end(self, step, logs):
        self.seen.append((logs["eval/loss"], [w.numpy() for w in self.run.model.variables]))


@pytest.mark.parametrize("patience", [2, 100])
def test_early_stopping_restores_the_best_weights(patience):
    weights = Weights()
    stopping = callbacks.EarlyStopping("eval/loss", patience=patience)
    noise = (models.data(examples=64)[0], np.random.default_rng(1).integers(0, 3, 64))
    trainer = fit(epochs=12, given=[weights, stopping], eval_data=noise)
    losses = [loss for loss, _ in weights.seen]
    best = int(np.argmin(losses))
    assert len(losses) == (12 if patience == 100 else best + 1 + patience)
    assert best < len(losses) - 1
    for now, then in zip(trainer.model.variables, weights.seen[best][1], strict=True):
        np.testing.assert_array_equal(now.numpy(), then)


def test_best_needs_an_improvement():
    best = Best("loss", min_delta=0.1)
    assert [best.better(v, i) for i, v in enumerate([1.0, 0.95, 0.85, float("nan"), 0.5])] == [
        True, False, True, False, True,
    ]  # fmt: skip
    assert Best("eval/accuracy").better(0.5, 0)
    with pytest.raises(looper.InputError, match="did you mean 'max'"):
        Best("loss", mode="maxi")


def test_checkpoints_keep_the_last_and_the_best(tmp_path):
    keeper = callbacks.Checkpoint(keep=2, best="eval/loss")
    noise = (models.data(examples=64)[0], np.random.default_rng(1).integers(0, 3, 64))
    trainer = fit(tmp_path, epochs=12, given=[keeper], save_every=looper.Every(steps=4), eval_data=noise)
    steps = [checkpoint.step_of(path) for path in checkpoint.list_checkpoints(tmp_path / "checkpoints")]
    losses = trainer.history["eval/loss"]
    best = (int(np.argmin(losses)) + 1) * 4
    assert steps == sorted({best, 44, 48})
    assert keeper.best_path == tmp_path / "checkpoints" / f"step_{best:08d}"
    other = looper.Trainer(
        model=models.dense,
        optimizer=lambda: keras.optimizers.SGD(keras.optimizers.schedules.CosineDecay(0.1, 12)),
        loss=models.cross_entropy,
        metrics=lambda: [keras.metrics.SparseCategoricalAccuracy("accuracy")],
    )
    other.restore(keeper.best_path)
    np.testing.assert_allclose(other.evaluate(noise)["loss"], min(losses), rtol=1e-6)


@pytest.fixture(scope="module")
def run_in_float16(tmp_path_factory):
    """A run of three epochs: its folder and its trainer."""
    folder = tmp_path_factory.mktemp("run")
    matrix = callbacks.ConfusionMatrix(models.data(examples=30), names=["a", "b", "c"])
    return folder, fit(folder, precision="mixed_float16", given=[matrix])


@pytest.mark.xdist_group("callbacks: one run")
def test_files_of_a_run(run_in_float16):
    folder, trainer = run_in_float16
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [4, 4, 4, 8, 8, 8, 12, 12, 12]
    rows, epochs = [*lines[::3], *lines[2::3]], lines[1::3]
    assert sorted(rows, key=lambda row: row["step"]) == trainer.history.rows
    assert [row["epoch/loss"] for row in epochs] == trainer.history.epochs["loss"] == trainer.history["loss"]
    rows = trainer.history.rows
    assert rows[0].keys() >= {"epoch", "loss", "accuracy", "learning_rate", "gradient_norm", "loss_scale"}
    assert rows[1].keys() == {"step", "epoch", "eval/loss", "eval/accuracy", "eval/examples"}
    config = json.loads((folder / "config.json").read_text())
    assert config["options"]["precision"] == "mixed_float16"
    assert config["data"] == {"batch_size": 16, "examples": 64, "shuffle": True}
    run = json.loads((folder / "run.json").read_text())
    assert (run["status"], run["step"]) == ("finished", 12)


class Clock:
    def __init__(self):
        self.now = 0.0

    def __call__(self):
        self.now += 5.0
        return self.now


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture(scope="module")
def shown():
    """What one run of two epochs shows where there is no terminal, and on one."""
    plain, terminal = io.StringIO(), Terminal()
    fit(given=[callbacks.ProgressBar(plain, clock=Clock()), callbacks.ProgressBar(terminal)], epochs=2)
    return plain.getvalue(), terminal.getvalue()


@pytest.mark.xdist_group("callbacks: one run with bars")
def test_plain_lines_where_there_is_no_terminal(shown):
    lines = shown[0].splitlines()
    assert lines[0].startswith("epoch 1/2  step 4/8  loss ")
    assert "  accuracy " in lines[0]
    assert " steps/s  " in lines[0]
    assert " examples/s  " in lines[0]
    assert lines[0].endswith(" left")
    assert lines[1].startswith("  evaluation after step 4  loss ")
    assert lines[1].endswith("(30 examples)")
    assert lines[2].startswith("epoch 2/2  step 8/8  loss ")
    assert lines[4].startswith("where the time went (")
    assert len(lines) == 6


def test_totals_are_right_when_the_epochs_before_had_another_length():
    stream, trainer = io.StringIO(), fit(epochs=2)  # of 4 steps
    x, y = models.data(examples=64)
    for epochs, size in ((4, 32), (5, 8)):  # of 2, and of 8 steps
        bar = callbacks.ProgressBar(stream, plain_seconds=0)
        trainer.fit((x, y), epochs=epochs, batch_size=size, log_every=looper.Every(epochs=1), callbacks=[bar])
        assert trainer.step == bar.run.last_step
    shown = [line.split("  ")[:2] for line in stream.getvalue().splitlines() if line.startswith("epoch")]
    assert shown == [["epoch 3/4", "step 10/12"], ["epoch 4/4", "step 12/12"], ["epoch 5/5", "step 20/20"]]
    assert "continuing after step 12" in stream.getvalue()
    again = io.StringIO()
    trainer.fit((x, y), epochs=5, batch_size=8, callbacks=[callbacks.ProgressBar(again)])
    done = "nothing to do: 20 steps are done; a larger epochs= trains on, resume=False starts anew\n"
    assert again.getvalue() == done  # nothing about where no time went


@pytest.mark.xdist_group("callbacks: one run with bars")
def test_the_bar_on_a_terminal(shown):
    last = shown[1].rsplit("\r", 1)[-1]
    assert "epoch 3/2" not in shown[1]
    assert "8/8" in last
    assert " steps/s" in last or "s/ steps" in last
    assert "loss " in last
    assert "examples/s" in last
    assert "evaluation after step 8" in shown[1]


@pytest.mark.parametrize(("columns", "known"), [(60, True), (80, True), (200, True), (80, False)])
def test_the_bar_fits_the_terminal_and_shows_the_loss_first(columns, known):
    """On a terminal of the system's, of so many columns; of data whose length nobody knows, too."""
    controlling, terminal = pty.openpty()
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    written: list[bytes] = []
    with ThreadPoolExecutor(1) as pool, os.fdopen(terminal, "w") as stream:
        reading = pool.submit(lambda: [written.append(part) for part in iter(lambda: read_or_end(controlling), b"")])
        batches = [tuple(part[i : i + 16] for part in models.data(examples=64)) for i in range(0, 64, 16)]
        data = {} if known else {"train_data": lambda: iter(batches), "batch_size": None}
        fit(given=[callbacks.ProgressBar(stream)], epochs=2, **data)
        stream.close()
        reading.result()
    os.close(controlling)
    lines = b"".join(written).decode().replace("\r\n", "\n").split("\n")
    bars = [part for line in lines for part in line.split("\r") if part.startswith("epoch") and "[" in part]
    assert bars and all(len(bar) <= columns for bar in bars)
    start = {60: r"epoch 2/2: 100% 8/8 \[\S+\], loss \d", 80: r"epoch 2/2: 100%\|█{10}\| 8/8 \[\S+\], loss \d\S+  acc"}
    wanted = start.get(columns, start[80] + r"uracy \S+  \S+ examples/s, .* steps(/s)?$")
    assert re.match(wanted if known else r"epoch 2/2: 8 steps \[\S+\], loss \d\S+  accuracy", bars[-1]), bars[-1]
    assert not {thread.name for thread in threading.enumerate()} & {"tqdm_monitor"}


def read_or_end(descriptor):
    try:
        return os.read(descriptor, 4096)
    except OSError:  # Linux says so when nobody has the terminal open any more
        return b""


def test_a_terminal_that_cannot_go_back_gets_plain_lines(monkeypatch):
    monkeypatch.setenv("TERM", "dumb")
    stream = Terminal()
    fit(given=[callbacks.ProgressBar(stream)], epochs=1)
    assert "\r" not in stream.getvalue() and stream.getvalue().startswith("epoch 1/1  step 4/4  loss ")


def scalars(folder, tag):
    events = EventAccumulator(str(folder))
    events.Reload()
    return [(event.step, event.value) for event in events.Scalars(tag)]


@pytest.mark.xdist_group("callbacks: one run")
def test_tensorboard_events(run_in_float16):
    folder, trainer = run_in_float16
    history = trainer.history
    for tag in ("loss", "accuracy", "learning_rate", "gradient_norm", "loss_scale", "examples_per_second"):
        points = scalars(folder, tag)
        assert [step for step, _ in points] == [4, 8, 12]
        np.testing.assert_allclose([value for _, value in points], history[tag], rtol=1e-6)  # stored as float32
    np.testing.assert_allclose([v for _, v in scalars(folder, "eval/loss")], history["eval/loss"], rtol=1e-6)
    events = EventAccumulator(str(folder))
    events.Reload()
    tags = {tag for tag in events.Tags()["tensors"] if not tag.startswith("_hparams_")}
    own = {f"eval/confusion_matrix/{kind}" for kind in ("picture", "table")}
    assert tags == {"audit", "configuration", "custom_scalars__config__", "execution", "model", *own}
    memory = [value for _, value in scalars(folder, "memory/process")]
    # MiB, of a process that has imported TensorFlow; what Linux says of the largest that it ever had, in KiB
    assert all(100 < value <= resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10 for value in memory)


def test_pairs_are_drawn_together_in_eager_mode_too(tmp_path):
    """Where names are not known before the first step."""
    trainer = looper.Trainer(
        model=models.dense, optimizer="sgd", loss=models.cross_entropy, workdir=tmp_path, execution="eager"
    )
    trainer.fit(models.data(examples=16), epochs=2, batch_size=16, eval_data=models.data(examples=8), progress=False)
    events = EventAccumulator(str(tmp_path)).Reload().Tensors("custom_scalars__config__")
    assert len(events) == 1 and b"^eval/loss$" in events[0].tensor_proto.string_val[0]


def test_tensorboard_gets_fifty_points_a_second_at_most(tmp_path, monkeypatch):
    """By a clock that moves on by 6 ms at each step: every fourth has a point, and the last of an epoch."""
    times = itertools.count(0.006, 0.006)
    monkeypatch.setattr(callbacks.tensorboard, "time", SimpleNamespace(monotonic=lambda: next(times)))
    trainer = fit(tmp_path, epochs=3, log_every=looper.Every(steps=1), eval_data=None, steps_per_epoch=10)
    assert trainer.history.steps("loss") == list(range(1, 31))
    expected = sorted({*range(4, 31, 4), 10, 20, 30})
    assert [step for step, _ in scalars(tmp_path, "loss")] == expected


def test_tensorboard_forgets_steps_that_are_run_again(tmp_path):
    """A process that dies leaves points after its last checkpoint; the next one writes them anew."""

    class Die(callbacks.Callback):
        def on_eval_end(self, step, logs):
            if step == 12:
                raise RuntimeError("the test's")

    with pytest.raises(RuntimeError, match="the test's"):
        fit(tmp_path, epochs=4, given=[Die()], save_every=looper.Every(steps=8))
    assert [step for step, _ in scalars(tmp_path, "loss")] == [4, 8, 12]
    assert json.loads((tmp_path / "run.json").read_text())["status"] == "failed"
    fit(tmp_path, epochs=4, save_every=looper.Every(steps=8))
    assert [step for step, _ in scalars(tmp_path, "loss")] == [4, 8, 12, 16]
    rows = [json.loads(line)["step"] for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert rows == [4, 4, 4, 8, 8, 8, 12, 12, 12, 16, 16, 16]


@pytest.mark.xdist_group("callbacks: one run")
@pytest.mark.parametrize("load_fast", ["auto", "false"])
def test_looper_board_serves_a_run_with_training_and_evaluation(run_in_float16, load_fast):
    """`looper board`, asked as the browser asks it; and TensorBoard with the loader that is written in Python."""
    folder, trainer = run_in_float16
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    of_looper = ["looper.cli", "board", str(folder)]
    command = (
        of_looper if load_fast == "auto" else ["tensorboard.main", "--logdir", str(folder), "--load_fast", "false"]
    )
    with subprocess.Popen(
        [sys.executable, "-m", *command, "--port", str(port)], stderr=subprocess.PIPE, text=True
    ) as server:
        try:
            for line in server.stderr:  # it says when it is ready
                if "Press CTRL+C to quit" in line:
                    break

            def ask(path, data=None, **query):
                url = f"http://localhost:{port}/data/plugin/{path}?{urllib.parse.urlencode(query)}"
                request = urllib.request.Request(url, data, {"Content-Type": "application/json"})
                with urllib.request.urlopen(request, timeout=60) as answer:
                    return json.load(answer)

            assert ask("scalars/tags").keys() == {"."}
            for tag in ("loss", "accuracy", "eval/loss", "eval/accuracy"):
                points = ask("scalars/scalars", run=".", tag=tag)
                assert [step for _, step, _ in points] == [4, 8, 12]
                assert [value for *_, value in points] == pytest.approx(trainer.history[tag], rel=1e-6)  # as float32
            [category] = ask("custom_scalars/layout")["category"]
            charts = {chart["title"]: chart["multiline"]["tag"] for chart in category["chart"]}
            assert charts == {name: [f"^{name}$", f"^eval/{name}$"] for name in ("accuracy", "loss")}
            table = "eval/confusion_matrix/table"
            assert set(ask("text/tags")["."]) == {"audit", "configuration", "execution", "model", table}
            pictures = ask("images/images", run=".", tag="eval/confusion_matrix/picture", sample=0)
            assert [picture["step"] for picture in pictures] == [4, 8, 12]
            drawn = f"http://localhost:{port}/data/plugin/images/individualImage?{pictures[-1]['query']}"
            with urllib.request.urlopen(drawn, timeout=60) as answer:
                assert answer.read().startswith(b"\x89PNG")
            assert ask("graphs/info")["."]["run_graph"]
            graph = urllib.request.urlopen(f"http://localhost:{port}/data/plugin/graphs/graph?run=.", timeout=60)
            layers = re.findall(r'name: "(\w+?)_?\d*"', graph.read().decode())
            assert layers == ["input_layer", "dense", "batch_normalization", "dense"]
            wanted = {"startIndex": 0, "sliceSize": 10, "allowedStatuses": ["STATUS_SUCCESS"], "includeMetrics": True}
            [group] = ask("hparams/session_groups", json.dumps(wanted).encode())["sessionGroups"]
            assert group["hparams"] == {"batch_size": 16, "precision": "mixed_float16", "seed": 0, "replicas": 1}
            found = {value["name"]["tag"]: value["value"] for value in group["metricValues"]}
            assert found.keys() == {"loss", "eval/loss", "eval/accuracy"}
            for tag, value in found.items():
                assert value == pytest.approx(trainer.history[tag][-1], rel=1e-6)
        finally:
            server.terminate()


def test_a_run_of_an_older_looper_goes_on_in_its_own_directories(tmp_path):
    fit(tmp_path, epochs=2)
    older = Events(None, 0)
    for kind in ("train", "eval"):
        (tmp_path / kind).mkdir()
    for path in tmp_path.glob("events.out.tfevents.*"):
        path.rename(tmp_path / "train" / path.name)
    assert not older.apart
    (tmp_path / "elsewhere" / "train").mkdir(parents=True)
    for path in ("events.out.tfevents.1", "train/events.out.tfevents.2"):  # the second is of Keras' callback
        (tmp_path / "elsewhere" / path).write_text("")
    assert not Events(tmp_path / "elsewhere", 4).apart
    trainer = fit(tmp_path, epochs=3)
    assert sorted(step for step, _ in scalars(tmp_path / "train", "loss")) == [4, 8, 12]  # files of one second
    assert scalars(tmp_path / "eval", "loss") == [(12, pytest.approx(trainer.history["eval/loss"][-1], rel=1e-6))]
    runs = EventMultiplexer().AddRunsFromDirectory(str(tmp_path)).Reload().Runs()
    assert "custom_scalars__config__" not in runs["."]["tensors"] and not runs["."]["scalars"]
