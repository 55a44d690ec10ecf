"""Nothing is lost: files of any name and content, one writer, signals, streams that nobody reads, full disks."""

import io
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import threading
import time
import warnings

import numpy as np
import pytest
import tensorflow as tf
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.proto.summary_pb2 import Summary

import looper
from looper.run.event_file import EventFile
from looper.run.history import read_rows
from looper.saved import checkpoint, files
from looper.saved.lock import Lock
from tests.support import dense, inside, models

EVERY = looper.Every(steps=2)


@pytest.fixture(scope="module")
def undisturbed():
    mine = dense.trainer()
    dense.fit(mine, steps=10)
    return mine


def assert_goes_on(folder, undisturbed, **options):
    """The same command again ends with the bits of the undisturbed run."""
    mine = dense.trainer(folder)
    dense.fit(mine, steps=10, save_every=EVERY, **options)
    assert mine.step == 10
    dense.assert_equal(dense.weights(mine), dense.weights(undisturbed))
    return mine


@pytest.mark.parametrize("name", ["lr=[0.1]", "run[1]", "back\\slash", "a\nnew line", "*?{}", "läufe 走る", "step_3"])
def test_a_workdir_of_any_name(name, tmp_path, undisturbed):
    dense.fit(dense.trainer(tmp_path / name), steps=5, save_every=EVERY)
    assert_goes_on(tmp_path / name, undisturbed)


def test_what_is_no_checkpoint_is_passed_over(tmp_path, undisturbed):
    dense.fit(dense.trainer(tmp_path), steps=5, save_every=EVERY)
    folder = tmp_path / "checkpoints"
    newest = checkpoint.list_checkpoints(folder)[-1]
    strange = ["step_00000005.bak", "step_", "step_x", "notes", "step_99999999999999999999"]
    for name in strange:
        shutil.copytree(newest, folder / name)
    (folder / "step_00000099").write_text("a file")
    assert_goes_on(tmp_path, undisturbed)
    assert {*strange, "step_00000099"} <= {entry.name for entry in folder.iterdir()}


def test_what_a_process_that_died_left_is_gone_and_keep_holds(tmp_path, undisturbed):
    dense.fit(dense.trainer(tmp_path), steps=6, save_every=EVERY)
    folder = tmp_path / "checkpoints"
    whole = checkpoint.list_checkpoints(folder)[-1]
    for name in (".partial-step_00000007-1", ".part-step_00000007-ab-0-1", ".gone-step_00000001-1"):
        shutil.copytree(whole, folder / name)
    for name in (".run.json-1", ".metrics.jsonl-1", ".writable-1", ".log.csv-77"):
        (tmp_path / name).write_text("half of")
    for step in (1, 3):  # more than are kept: it died before it pruned
        shutil.copytree(whole, folder / checkpoint.name_of(step))
    mine = dense.trainer(tmp_path)
    seen = []
    note = looper.callbacks.LambdaCallback(
        on_execution=lambda step: seen.append(len(checkpoint.list_checkpoints(folder)))
    )
    dense.fit(mine, steps=10, save_every=None, callbacks=[note])
    assert seen[0] == 3  # before any new one
    assert {entry.name for entry in tmp_path.rglob(".*")} == {".lock"}
    dense.assert_equal(dense.weights(mine), dense.weights(undisturbed))


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A checkpoint of a dataset in mid-pass, with the state of a callback."""
    mine = dense.trainer()
    data = tf.data.Dataset.from_tensor_slices((dense.X, dense.Y)).shuffle(48, seed=0).batch(8)
    mine.fit(data, steps=4, callbacks=[looper.callbacks.EarlyStopping("loss")], progress=False)
    return mine.save(tmp_path_factory.mktemp("saved") / "step_00000004")


@pytest.mark.parametrize("file", ["host.json", "host.npz", "files.json", "state.index", "iterator.index", "data"])
def test_any_bit_that_flips_is_found(file, saved, tmp_path):
    """In each file of a checkpoint, at 120 places."""
    [path] = [each for each in saved.iterdir() if each.name == file or (file == "data" and "state.data" in each.name)]
    damaged = tmp_path / saved.name
    shutil.copytree(saved, damaged)
    content, draw = path.read_bytes(), random.Random(0)
    for _ in range(120):
        at, bit = draw.randrange(len(content)), draw.randrange(8)
        flipped = bytearray(content)
        flipped[at] ^= 1 << bit
        (damaged / path.name).write_bytes(flipped)
        with pytest.raises(checkpoint.DamagedCheckpointError):
            checkpoint.read_host(damaged)


def test_files_from_elsewhere_are_data(saved, tmp_path):
    """With checksums that are right: other types, numbers that cannot be, deep nesting, names of other folders."""
    host = json.loads((saved / "host.json").read_text())

    def with_(**items):
        return json.dumps({**host, "host": {**host["host"], **items}})

    progress = host["host"]["progress"]
    contents = [
        "",
        "[]",
        "5",
        "null",
        "[" * 100_000,
        '{"a":' * 50_000,
        json.dumps({**host, "host": None}),
        json.dumps({**host, "variables": []}),
        json.dumps({**host, "variables": {"model/0/kernel": 5}}),
        with_(progress=None),
        with_(progress={**progress, "step": -1}),
        with_(progress={**progress, "step": 1.5}),
        with_(progress={**progress, "step": 10**400}),
        with_(progress={**progress, "step": True}),
        with_(progress={**progress, "mode": 7}),
        with_(feed={"number": 0, "batch": -3}),
        with_(feed={"number": "0", "batch": 0}),
        with_(feed=[]),
        with_(window=3),
        with_(callbacks="none"),
        with_(workers=-1),
        with_(own=[[]]),
        with_(iterator="yes"),
        with_(window={"__array__": "array_99999"}),
    ]
    damaged = tmp_path / saved.name
    for content in contents:
        shutil.rmtree(damaged, ignore_errors=True)
        shutil.copytree(saved, damaged, ignore=shutil.ignore_patterns(files.MANIFEST))
        (damaged / "host.json").write_text(content)
        files.write_manifest(damaged)
        began = time.monotonic()
        with pytest.raises(looper.InputError, match="the checkpoint is damaged"):
            dense.trainer().restore(damaged)
        assert time.monotonic() - began < 5  # seconds: a model is built in it
    for listed in ({}, {"files": {}}, {"files": {"../../etc/passwd": 0}}, {"files": {"host.json": "x"}}, []):
        (damaged / files.MANIFEST).write_text(json.dumps(listed))
        with pytest.raises(checkpoint.DamagedCheckpointError):
            checkpoint.read_host(damaged)


def test_arrays_that_would_fill_the_memory_are_not_unpacked(saved, tmp_path):
    damaged = tmp_path / saved.name
    shutil.copytree(saved, damaged, ignore=shutil.ignore_patterns(files.MANIFEST))
    np.savez_compressed(damaged / "host.npz", array_0=np.zeros(200_000_000, "uint8"))  # 200 MB in 200 kB
    files.write_manifest(damaged)
    with pytest.raises(checkpoint.DamagedCheckpointError, match=r"host.npz is not what was written"):
        checkpoint.read_host(damaged)


def test_lines_that_are_no_rows_are_set_aside(tmp_path, undisturbed):
    """In metrics.jsonl and in a CSV file; a last line that was cut off is dropped without a word."""
    csv = looper.callbacks.CSVLogger
    dense.fit(dense.trainer(tmp_path), steps=6, save_every=EVERY, callbacks=[csv()])
    strange = [b"5", b"\xff\xfe", b'{"step": "x", "epoch": 0}', b"[[[[", b"null", b'{"step": 1}', b"a,b,c"]
    for name in ("metrics.jsonl", "log.csv"):
        with (tmp_path / name).open("ab") as file:
            file.write(b"".join(line + b"\n" for line in strange) + b'{"step": 6, "ep')
    rows = read_rows(tmp_path / "metrics.jsonl")
    with pytest.warns(UserWarning) as told:
        assert_goes_on(tmp_path, undisturbed, callbacks=[csv()])
    said = [str(warning.message) for warning in told]
    assert [s for s in said if "7 line(s) that are no rows of a run were moved to metrics.jsonl.aside" in s]
    assert [s for s in said if "line(s) that are no rows of a run were moved to log.csv.aside" in s]
    assert (tmp_path / "metrics.jsonl.aside").read_text().splitlines()[0] == "5"
    after = read_rows(tmp_path / "metrics.jsonl")
    assert after[: len(rows)] == rows and after[-1]["step"] == 10
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        read_rows(tmp_path / "metrics.jsonl")


def test_a_second_process_is_refused_and_harms_nothing(tmp_path, undisturbed):
    """Whatever it asks for; the message names the process that trains."""
    dense.fit(dense.trainer(tmp_path), steps=5, save_every=EVERY)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file() and path.name != ".lock"}
    with Lock(tmp_path):
        for options in ({}, {"resume": False}, {"resume": "weights"}):
            with pytest.raises(looper.InputError, match=rf"is in use by process {os.getpid()} of .* since"):
                dense.fit(dense.trainer(tmp_path), steps=10, **options)
        with pytest.raises(looper.InputError, match="is in use"):
            dense.trainer(tmp_path).save()
        reading = dense.trainer(tmp_path)  # takes no lock
        reading.restore(checkpoint.list_checkpoints(tmp_path / "checkpoints")[-1])
        assert reading.evaluate((dense.X, dense.Y))["examples"] == 48
    assert {path: path.read_bytes() for path in before} == before
    assert_goes_on(tmp_path, undisturbed)


def test_a_lock_ends_with_its_process_and_not_with_that_ones_children(tmp_path):
    """A forked child that outlives its parent does not hold it; and a second trainer of this process waits as well."""
    code = (
        "import os, signal, sys\nfrom pathlib import Path\nfrom looper.saved.lock import Lock\n"
        "lock = Lock(Path(sys.argv[1])).__enter__()\nchild = os.fork()\n"
        "if child:\n    os.waitid(os.P_PID, child, os.WSTOPPED)\n    print(child, flush=True)\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
        "os.kill(os.getpid(), signal.SIGSTOP)\n"  # it has been forked, and all that is done then
    )
    done = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    child = int(done.stdout.readline())
    done.wait()
    try:
        with Lock(tmp_path) as held, held, pytest.raises(looper.InputError, match="is in use"), Lock(tmp_path):
            pass
        with Lock(tmp_path):
            pass
    finally:
        os.kill(child, signal.SIGKILL)


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGTERM])
def test_signals_save_everything(number, tmp_path, undisturbed):
    kill = looper.callbacks.LambdaCallback(on_execution=lambda step: step >= 3 and os.kill(os.getpid(), number))
    with pytest.raises(SystemExit) as stopped:
        dense.fit(dense.trainer(tmp_path, steps_per_execution=1), steps=10, callbacks=[kill])
    assert stopped.value.code == 75
    assert json.loads((tmp_path / "run.json").read_text())["status"] == "interrupted"
    assert checkpoint.list_checkpoints(tmp_path / "checkpoints")[-1].name == "step_00000003"
    assert_goes_on(tmp_path, undisturbed)


def test_an_ignored_hangup_stays_ignored():
    kill = looper.callbacks.LambdaCallback(on_execution=lambda step: os.kill(os.getpid(), signal.SIGHUP))
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup does
    try:
        mine = dense.trainer()
        dense.fit(mine, steps=10, callbacks=[kill])
    finally:
        signal.signal(signal.SIGHUP, before)
    assert mine.step == 10


def test_ctrl_c_is_acknowledged_at_once(tmp_path, capfd):
    kill = looper.callbacks.LambdaCallback(on_execution=lambda step: os.kill(os.getpid(), signal.SIGINT))
    with pytest.raises(KeyboardInterrupt, match="stopped after step"):
        dense.fit(dense.trainer(tmp_path), steps=10, callbacks=[kill])
    assert "looper: saving after this execution; Ctrl-C again stops at once\n" in capfd.readouterr().err


class Gone(io.StringIO):
    """A terminal or pipe that breaks when something is written."""

    def __init__(self, error):
        super().__init__()
        self.error = error

    def write(self, text=""):
        raise self.error

    flush = write

    def isatty(self):
        return True


@pytest.mark.parametrize(
    "error", [BrokenPipeError(), OSError(5, "Input/output error"), ValueError("closed file"), None]
)
def test_output_that_nobody_reads_stops_nothing(error, undisturbed, monkeypatch):
    monkeypatch.setattr(sys, "stderr", None if error is None else Gone(error))
    mine = dense.trainer()
    dense.fit(mine, steps=10, progress=True, eval_data=(dense.X, dense.Y))
    dense.assert_equal(dense.weights(mine), dense.weights(undisturbed))


def test_a_process_without_standard_streams_opens_them_as_nothing():
    code = "import looper, os\nprint(open('/dev/null').fileno(), file=open(os.environ['OUT'], 'w'))"
    out = os.path.join(os.environ.get("TMPDIR", "/tmp"), f"looper-streams-{os.getpid()}")
    try:
        command = f'exec "{sys.executable}" -c "$CODE" 0<&- 1>&- 2>&-'
        subprocess.run(["bash", "-c", command], env={**os.environ, "CODE": code, "OUT": out}, check=True)
        with open(out) as file:
            assert int(file.read()) > 2
    finally:
        os.unlink(out)


def test_a_disk_without_room_is_told_and_the_run_goes_on_when_there_is_some(tmp_path, undisturbed):
    """By a limit of the system on the size of a file, which holds for TensorFlow, too."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)

    def limit(step):
        inside.settle(mine)  # what was begun before
        resource.setrlimit(resource.RLIMIT_FSIZE, (300 if 3 <= step < 6 else limits[0], limits[1]))

    mine = dense.trainer(tmp_path, steps_per_execution=1)
    note = looper.callbacks.LambdaCallback(on_execution=limit)
    with pytest.warns(UserWarning) as told:
        dense.fit(mine, steps=10, save_every=EVERY, callbacks=[note], log_every=looper.Every(steps=1))
    said = [str(warning.message) for warning in told]
    lacking = [one for one in said if "metrics.jsonl lacks rows that could not be written. Training goes on." in one]
    assert len(lacking) == 1, said  # a checkpoint of step 4 would be ahead of its rows
    steps = [checkpoint.step_of(path) for path in checkpoint.list_checkpoints(tmp_path / "checkpoints")]
    assert steps == [6, 8, 10]
    assert [row["step"] for row in read_rows(tmp_path / "metrics.jsonl") if "window" in row] == list(range(1, 11))
    points = EventAccumulator(str(tmp_path)).Reload().Scalars("gradient_norm")
    assert points[0].step < 6 and points[-1].step == 10 and len({point.step for point in points}) == len(points)
    dense.assert_equal(dense.weights(mine), dense.weights(undisturbed))


def test_points_wait_until_there_is_room(tmp_path):
    """What is torn is cut off, and all that the system had not taken comes later, once, in another file."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    file = EventFile(tmp_path, 0)
    for step in range(40):
        if step in (10, 30):
            file.flush()
            resource.setrlimit(resource.RLIMIT_FSIZE, (700 if step == 10 else limits[0], limits[1]))
        if step == 20:
            with pytest.warns(UserWarning, match=r"cannot be written \(.*\): points wait until they can"):
                file.flush()
        file.add(Event(step=step, summary=Summary(value=[Summary.Value(tag="loss", simple_value=step)])))
    file.close()
    assert len(list(tmp_path.iterdir())) == 2
    points = EventAccumulator(str(tmp_path)).Reload().Scalars("loss")
    assert [(point.step, point.value) for point in points] == [(step, step) for step in range(40)]


def test_the_last_checkpoint_that_cannot_be_written_is_an_error(tmp_path, undisturbed):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)

    def limit(step):
        if step > 5:
            resource.setrlimit(resource.RLIMIT_FSIZE, (3000, limits[1]))

    try:
        note = looper.callbacks.LambdaCallback(on_execution=limit)
        with pytest.raises(looper.errors.SaveError, match=r"step_00000010 cannot be written \(.*\)\. See to it"):
            dense.fit(dense.trainer(tmp_path), steps=10, save_every=None, callbacks=[note])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert json.loads((tmp_path / "run.json").read_text())["status"] == "failed"
    assert not any(path.name.startswith(".partial") for path in (tmp_path / "checkpoints").iterdir())
    assert_goes_on(tmp_path, undisturbed)


def test_a_workdir_that_is_removed_in_mid_run_is_one_line(tmp_path):
    workdir = tmp_path / "run"
    remove = looper.callbacks.LambdaCallback(on_execution=lambda step: step == 5 and shutil.rmtree(workdir))
    with pytest.raises(looper.errors.SaveError, match=r"cannot be written \(.*\)"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dense.fit(dense.trainer(workdir, steps_per_execution=1), steps=10, callbacks=[remove])


def test_a_lost_point_is_not_shown_twice_by_any_loader(tmp_path):
    """Each file of events begins with a mark, also in a run that was killed before its first checkpoint, twice."""

    class Die(looper.callbacks.Callback):
        def on_step(self, step, logs):
            if step == 6:
                raise RuntimeError("killed")

    options = {"log_every": looper.Every(steps=1), "save_every": None}
    for _ in range(2):
        with pytest.raises(RuntimeError, match="killed"):
            dense.fit(dense.trainer(tmp_path), steps=10, callbacks=[Die()], **options)
        shutil.rmtree(tmp_path / "checkpoints")
    dense.fit(dense.trainer(tmp_path), steps=10, **options)
    for path in tmp_path.glob("events.out.tfevents.*"):
        first = list(tf.compat.v1.train.summary_iterator(str(path)))[:2]
        assert first[1].session_log.status == first[1].session_log.START
    events = EventAccumulator(str(tmp_path)).Reload()
    steps = [event.step for event in events.Scalars("loss")]
    assert steps == sorted(set(steps)) and steps[-1] == 10


def test_a_loss_scale_has_a_floor_and_skipped_steps_a_limit():
    x = np.full((48, 6), np.nan, "float32")
    with pytest.raises(
        looper.NonFiniteLossError, match=r"more than 50 steps in a row were skipped, the last one step 51:"
    ):
        dense.trainer(precision="mixed_float16").fit((x, dense.Y), steps=200, batch_size=8, progress=False)
    mine = dense.trainer(precision="mixed_float16", max_skipped=1000)
    mine.fit((x, dense.Y), steps=40, batch_size=8, progress=False)
    assert mine.history["loss_scale"][-1] == 1.0
    with pytest.raises(looper.InputError, match="max_skipped=0: expected a positive whole number"):
        dense.trainer(max_skipped=0)


def test_skipped_steps_are_counted_over_executions_and_logs():
    """Bad rows at the end of one execution and the beginning of the next are in a row; good ones end it."""
    x = np.array(dense.X)
    x[16:] = np.nan  # two good batches of six in each pass, in order
    options = {"steps": 60, "batch_size": 8, "shuffle": False, "progress": False, "log_every": looper.Every(steps=3)}
    mine = dense.trainer(precision="mixed_float16", max_skipped=4, optimizer=lambda: models.keras.optimizers.SGD(1e-6))
    mine.fit((x, dense.Y), **options)
    assert mine.step == 60
    less = dense.trainer(precision="mixed_float16", max_skipped=3, optimizer=lambda: models.keras.optimizers.SGD(1e-6))
    with pytest.raises(
        looper.NonFiniteLossError, match="more than 3 steps in a row were skipped, the last one step 6:"
    ):
        less.fit((x, dense.Y), **options)


def test_skipped_steps_have_a_limit_in_somebody_elses_loop_too():
    mine = dense.trainer(precision="mixed_float16", max_skipped=2, optimizer=lambda: models.keras.optimizers.SGD(1e-6))
    good, bad = (dense.X[:8], dense.Y[:8]), (np.full((8, 6), np.nan, "float32"), dense.Y[:8])
    for batch in (good, bad, bad, good, bad, bad):
        mine.train_on_batch(batch)
    with pytest.raises(
        looper.NonFiniteLossError, match="more than 2 steps in a row were skipped, the last one step 7:"
    ):
        mine.train_on_batch(bad)


def test_a_checkpoint_holds_the_moment_at_which_it_was_taken(tmp_path, monkeypatch):
    """Written while training goes on: variables, position and callbacks are those of its step. Also on two replicas."""
    go, write = threading.Event(), checkpoint.save

    def wait_and_write(*given):
        assert go.wait(60)
        return write(*given)

    for options in ({}, {"strategy": "mirrored", "devices": 2}):
        go.clear()
        monkeypatch.setattr(checkpoint, "save", wait_and_write)
        kept, saved_at = {}, []
        workdir = tmp_path / str(len(options))
        mine = dense.trainer(workdir, model=lambda: models.dense(dropout=0.5), steps_per_execution=1, **options)

        def keep(step, path, mine=mine, kept=kept):
            kept.update(inside.values(mine))

        def let(step, go=go):
            if step == 6:
                go.set()  # two steps after its state was taken

        note = looper.callbacks.LambdaCallback(
            on_save=keep, on_execution=let, on_saved=lambda step, path, to=saved_at: to.append((step, path.exists()))
        )
        dense.fit(mine, steps=7, save_every=looper.Every(steps=4), callbacks=[note])
        monkeypatch.setattr(checkpoint, "save", write)
        assert saved_at == [(4, True), (7, True)]
        again = dense.trainer(model=lambda: models.dense(dropout=0.5), **options)
        again.restore(workdir / "checkpoints" / "step_00000004")
        assert again.step == 4
        dense.fit(again, steps=7)
        dense.assert_equal(dense.weights(again), dense.weights(mine))


def test_the_best_checkpoint_stays_until_a_better_one_is_written(tmp_path):
    """One that cannot be written takes nothing away, and a run that goes on knows which one there is."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    values = {2: 5.0, 4: 3.0, 6: 2.0, 8: 4.0}

    class Probe(looper.callbacks.Callback):
        every, logs = EVERY, ("probe",)

        def on_step(self, step, logs):
            self.run.log("probe", values[step])
            inside.settle(mine)
            resource.setrlimit(resource.RLIMIT_FSIZE, (3000 if step == 6 else limits[0], limits[1]))

    mine, kept = dense.trainer(tmp_path), looper.callbacks.Checkpoint(keep=1, best="probe", mode="min")
    with pytest.warns(UserWarning, match="step_00000006 cannot be written"):
        dense.fit(mine, steps=8, save_every=EVERY, callbacks=[Probe(), kept], log_every=looper.Every(steps=1))
    assert kept.best.step == 6
    names = [path.name for path in checkpoint.list_checkpoints(tmp_path / "checkpoints")]
    assert names == ["step_00000004", "step_00000008"]
    dense.fit(dense.trainer(tmp_path), steps=8, callbacks=[looper.callbacks.Checkpoint(keep=1, best="loss")])
    again = looper.callbacks.Checkpoint(keep=1, best="probe", mode="min")
    more = looper.callbacks.LambdaCallback(on_epoch_end=lambda *_: None)
    more.logs = ("probe",)
    dense.fit(dense.trainer(tmp_path), steps=8, callbacks=[again, more])
    assert names == [path.name for path in checkpoint.list_checkpoints(tmp_path / "checkpoints")]


def test_a_checkpoint_that_fails_at_its_beginning_leaves_nothing(tmp_path):
    """Where rows of a log could not be put on disk, none is published, and its folder is gone."""

    class Refuses(looper.callbacks.Callback):
        def on_save(self, step, path):
            if step == 4:
                raise looper.errors.SaveError("no room.")

    with pytest.warns(UserWarning, match=r"no room\. Training goes on\."):
        dense.fit(dense.trainer(tmp_path), steps=6, save_every=EVERY, callbacks=[Refuses()])
    assert [path.name for path in sorted((tmp_path / "checkpoints").iterdir())] == ["step_00000002", "step_00000006"]


def test_arrays_are_copied_when_the_state_is_taken():
    given = np.arange(3)
    content = checkpoint.take({}, {"state": {"of": given}})
    given[:] = 7
    assert [value.tolist() for value in content.arrays.values()] == [[0, 1, 2]]


def test_tensorflow_reads_what_the_thread_wrote(tmp_path):
    """As `tf.train.Checkpoint` itself would write it: names, values, graph of objects."""
    mine = dense.trainer(tmp_path)
    dense.fit(mine, steps=3)
    variables = dict(inside.variables(mine))
    path = tf.train.Checkpoint(variables=variables).write(str(tmp_path / "by TensorFlow"))
    theirs = tf.train.load_checkpoint(path)
    ours = tf.train.load_checkpoint(str(tmp_path / "checkpoints" / "step_00000003" / "state"))
    assert ours.get_variable_to_shape_map() == theirs.get_variable_to_shape_map()
    for name in ours.get_variable_to_shape_map():
        if "OBJECT_GRAPH" not in name:
            np.testing.assert_array_equal(ours.get_tensor(name), theirs.get_tensor(name))
    fresh = {name: tf.Variable(tf.zeros_like(variable)) for name, variable in variables.items()}
    tf.train.Checkpoint(variables=fresh).read(
        str(tmp_path / "checkpoints" / "step_00000003" / "state")
    ).assert_consumed()
    for name, variable in variables.items():
        np.testing.assert_array_equal(fresh[name].numpy(), variable.numpy())


def test_the_order_of_what_reaches_the_disk(tmp_path, monkeypatch):
    """For a power loss: rows, then each file, then the folder, then the name, then the folder above; pruning last."""
    done, real = [], {name: getattr(os, name) for name in ("fsync", "rename")}

    def fsync(descriptor):
        done.append(("fsync", os.path.basename(os.readlink(f"/proc/self/fd/{descriptor}"))))
        return real["fsync"](descriptor)

    def rename(source, target, **options):
        done.append(("rename", os.path.basename(target)))
        return real["rename"](source, target, **options)

    mine = dense.trainer(tmp_path)
    dense.fit(mine, steps=3, callbacks=[looper.callbacks.Checkpoint(keep=1)])
    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(os, "rename", rename)
    dense.fit(mine, steps=6, callbacks=[looper.callbacks.Checkpoint(keep=1)])
    names = [f"{kind} {name.partition('-')[0] if name[0] == '.' else name}" for kind, name in done]
    begin = names.index("fsync host.json") - 0
    last_rows = max(i for i, name in enumerate(names) if name == "fsync metrics.jsonl")
    assert last_rows < begin
    published = names.index("rename step_00000006")
    written = names[begin:published]
    assert set(written[:-2]) == {
        f"fsync {n}" for n in ("host.json", "host.npz", "state.data-00000-of-00001", "state.index")
    }
    assert written[-2:] == ["fsync files.json", "fsync .partial"]
    assert names[published + 1] == "fsync checkpoints"
    assert names.index("rename .gone") > published
