"""`looper run --workers N`: whose output it is, what a failure was, what is restarted, and that nothing is left behind.

The workers are real processes of `looper run`. Most recipes here do what a test wants as they are imported. With a
strategy of one device that is before TensorFlow is imported, which takes ten times as long.
"""

import collections
import fcntl
import inspect
import json
import os
import re
import signal
import struct
import subprocess
import sys
import termios
import time
from pathlib import Path

import pytest

from looper import cli
from looper.launch import launcher
from looper.launch.failure import End, last_words, root_cause
from looper.launch.guard import Guard
from looper.launch.options import LaunchOptions, take_options

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="they look for processes in /proc")

BEFORE_TENSORFLOW = ["--strategy", "one_device"]
SECONDS = 120
"""Long enough for every process here on a busy machine; nothing waits for it to pass."""


def wait_until(condition):
    deadline = time.monotonic() + 20  # on a busy machine
    while not condition():
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.01)


def gone(pid):
    """Whether a process has ended; one that nobody has asked for its exit code counts as ended."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


BEFORE = f"""
import json, os, signal, subprocess, sys, time
from pathlib import Path

{inspect.getsource(wait_until)}
{inspect.getsource(gone)}

def note(name, value=""):
    (here / "partial").mkdir(exist_ok=True)
    (here / "partial" / name).write_text(str(value))
    (here / "partial" / name).rename(here / name)


def wait_for(name):
    wait_until((here / name).exists)
    return (here / name).read_text()


here = Path(__file__).parent
rank = int(os.environ["LOOPER_LOCAL_RANK"])
attempts = here / f"attempts_{{rank}}"
attempt = len(attempts.read_text()) + 1 if attempts.exists() else 1
attempts.write_text("x" * attempt)
"""


@pytest.fixture
def recipe(tmp_path):
    """Writes a recipe that runs some code as it is imported."""

    def write(code):
        (tmp_path / "recipe.py").write_text(BEFORE + code)
        return str(tmp_path / "recipe.py")

    return write


@pytest.fixture
def start():
    """Starts `looper run`; its processes are gone after the test, whatever happens."""
    started = []

    def begin(*words, stderr=subprocess.PIPE):
        command = [sys.executable, "-m", "looper.cli", "run", *map(str, words), *BEFORE_TENSORFLOW]
        environment = {name: value for name, value in os.environ.items() if name != "TF_CONFIG"}
        text = stderr == subprocess.PIPE
        started.append(subprocess.Popen(command, stdout=subprocess.PIPE, stderr=stderr, text=text, env=environment))
        return started[-1]

    yield begin
    for process in started:
        process.kill()
        process.communicate()


@pytest.fixture
def run(start):
    """Runs `looper run` to its end: exit code, standard output, standard error."""

    def to_the_end(*words):
        process = start(*words)
        out, err = process.communicate(timeout=SECONDS)
        return process.returncode, out, err

    return to_the_end


def read(path):
    wait_until(path.exists)
    return path.read_text()


def children(pid):
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            if int(stat.read_text().rpartition(")")[2].split()[1]) == pid:
                found.append(int(stat.parent.name))
        except OSError:  # it has ended
            continue
    return found


def test_output_has_the_rank_and_whole_lines(recipe, run, tmp_path):
    path = recipe("""
config = json.loads(os.environ["TF_CONFIG"])
note(f"config_{rank}", os.environ["TF_CONFIG"])
print(os.environ["LOOPER_LOCAL_WORKERS"], config["task"]["index"], sys.argv[3:])
for number in range(200):
    for stream, name in (1, "out"), (2, "err"):
        for part in (f"<{name} {rank}", f" {number} ", "x" * 500, ">\\n"):
            os.write(stream, part.encode())
os.write(2, b"10%\\r 50%\\r100%\\r\\n\\rof two\\rlines\\nno end")
raise SystemExit
""")
    code, out, err = run(path, "--workers", "3", "--epochs", "2", "--workdir", tmp_path / "run")
    assert code == 0
    for text, name in (out, "out"), (err, "err"):
        seen = collections.Counter()
        for line in text.splitlines():
            whole = re.fullmatch(rf"\[(\d)\] <{name} (\d) (\d+) x{{500}}>", line)
            if whole:
                rank, same_rank, number = map(int, whole.groups())
                assert rank == same_rank
                assert seen[rank] == number  # in order
                seen[rank] += 1
        assert seen == {0: 200, 1: 200, 2: 200}
    for rank in range(3):
        assert (
            f"[{rank}] 3 {rank} ['--epochs', '2', '--workdir', '{tmp_path / 'run'}', '--strategy', 'one_device']\n"
            in out
        )
        words = ("10%", "50%", "of two", "lines", "no end")
        assert [line for line in err.splitlines() if line.startswith(f"[{rank}]") and line.endswith(words)] == [
            f"[{rank}] lines",
            f"[{rank}] no end",
        ]
        assert f"[{rank}] 100%\n" in err
        log = (tmp_path / "run" / "logs" / f"rank_{rank}.log").read_text().splitlines()
        assert log[0].startswith(f"--- attempt 1 of 1: looper run {path}, ")
        assert sum(line.startswith(("<out", "<err")) for line in log) == 2 * 200
        assert "no end" in log
    addresses = [json.loads((tmp_path / f"config_{rank}").read_text())["cluster"]["worker"] for rank in range(3)]
    assert addresses[0] == addresses[1] == addresses[2]
    assert len(set(addresses[0])) == 3
    assert all(re.fullmatch(r"127\.0\.0\.1:\d+", address) for address in addresses[0])


def launched_impatiently(path, *words, **options):
    """Launches in a process of its own, which waits a moment where a user's waits three or ten seconds."""
    code = (
        "import sys; from looper.launch import launcher; from looper.launch.options import LaunchOptions\n"
        "launcher.GRACE_SECONDS = launcher.PEER_LOSS_SECONDS = 0.1\n"
        f"sys.exit(launcher.launch({path!r}, {[*map(str, words), *BEFORE_TENSORFLOW]}, LaunchOptions(**{options})))"
    )
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=SECONDS)


def test_the_cause_is_named_and_all_are_restarted(recipe, run, tmp_path):
    """First a worker is killed; then one fails, but the other, which lost it, ends first; the third time is well."""
    path = recipe("""
LOST = "UnavailableError: Collective ops is aborted by: Socket closed"
note(f"ports_{attempt}_{rank}", os.environ["TF_CONFIG"])
note(f"pid_{attempt}_{rank}", os.getpid())
other = int(wait_for(f"pid_{attempt}_{1 - rank}"))
if attempt == 1 and rank == 1:
    os.kill(os.getpid(), signal.SIGKILL)
if attempt == 2 and rank == 1:
    wait_until(lambda: gone(other))
    raise ValueError("no such digit" + 20 * "\\nnor this")
if attempt < 3 and rank == 0:
    if attempt == 1:
        wait_until(lambda: gone(other))
    raise RuntimeError(LOST)
print("well")
raise SystemExit
""")
    (tmp_path / "run" / "checkpoints" / "step_00000010").mkdir(parents=True)
    code, out, err = run(path, "--workers=2", "--max-restarts=3", "--workdir", tmp_path / "run")
    assert code == 0
    assert sorted(out.splitlines()) == ["[0] well", "[1] well"]
    said = [line for line in err.splitlines() if not line.startswith("[")]
    log = f"looper: all of its output is in {tmp_path}/run/logs/rank_1.log"
    again = "looper: restarting all 2 workers from the last checkpoint (restart {} of 3)"
    assert said[:4] == [
        "looper: worker 1 was killed by SIGKILL (signal 9)",
        log,
        again.format(1),
        "looper: worker 1 ended with code 1:",
    ]
    assert said[4:] == 15 * ["    nor this"] + [log, again.format(2)]
    assert re.search(
        r"^\[0\] looper: error: recipe.py:\d+: RuntimeError: UnavailableError: Collective ops is", err, re.M
    )
    log = (tmp_path / "run" / "logs" / "rank_0.log").read_text()
    assert re.findall("--- attempt (.) of 4", log) == ["1", "2", "3"]
    ports = [json.loads((tmp_path / f"ports_{n}_0").read_text())["cluster"]["worker"] for n in (1, 2, 3)]
    assert len({address for pair in ports for address in pair}) > 2  # anew each time, though one may come again


def test_the_launcher_gives_up(recipe, tmp_path):
    """After M restarts, with the worker's code; the others, which would run on, are killed, whatever they ignore."""
    path = recipe("""
note(f"pid_{attempt}_{rank}", os.getpid())
if rank == 0:
    wait_for(f"ready_{attempt}")
    sys.exit(7)
signal.signal(signal.SIGTERM, signal.SIG_IGN)
note(f"ready_{attempt}")
while True:
    signal.pause()
""")
    done = launched_impatiently(path, "--workdir", tmp_path / "run", workers=2, max_restarts=1)
    code, err = done.returncode, done.stderr
    assert code == 7
    assert (tmp_path / "attempts_0").read_text() == "xx"
    assert err.count("looper: worker 0 ended with code 7") == 2
    again = "looper: restarting all 2 workers from the beginning, as no checkpoint has been saved yet (restart 1 of 1)"
    assert again in err
    assert err.endswith("looper: giving up after 1 restart\n")
    for number in (1, 2):
        assert gone((tmp_path / f"pid_{number}_1").read_text())


def test_a_recipe_that_runs_as_a_script(tmp_path):
    path = tmp_path / "recipe.py"
    path.write_text("""
import os, sys, looper
if "LOOPER_LOCAL_RANK" in os.environ:
    print(os.environ["LOOPER_LOCAL_RANK"], sys.argv[2:])
    raise SystemExit
class Recipe:
    pass
if __name__ == "__main__":
    looper.run_recipe(Recipe)
""")
    command = [sys.executable, str(path), "--workers", "2", *BEFORE_TENSORFLOW]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=SECONDS)
    assert done.returncode == 0, done.stderr
    assert sorted(done.stdout.splitlines()) == [
        f"[{k}] {k} ['{path}:Recipe', '--strategy', 'one_device']" for k in range(2)
    ]


def test_a_worker_that_hangs_is_named(recipe, tmp_path):
    """The others lose it, and it does not end by itself."""
    path = recipe("""
if rank == 0:
    raise RuntimeError("Collective ops is aborted by: Deadline Exceeded")
while True:
    signal.pause()
""")
    done = launched_impatiently(path, workers=2)
    assert done.returncode == 1
    assert "looper: worker 0 ended with code 1:\n" in done.stderr
    assert "looper: worker 1 still ran, but did not answer: killed\n" in done.stderr


def test_one_worker_is_a_supervised_process(recipe, run):
    """Without a cluster. A crash has Python's traceback, and its signal makes the exit code."""
    path = recipe("""
print("TF_CONFIG" in os.environ, rank)
sys.stdout.flush()
def crash():
    os.kill(os.getpid(), signal.SIGSEGV)
crash()
""")
    code, out, err = run(path, "--workers", "1")
    assert code == 128 + signal.SIGSEGV
    assert out == "[0] False 0\n"
    report = err[err.index("looper: worker 0") :].splitlines()
    assert report[:2] == [
        "looper: worker 0 was killed by SIGSEGV (signal 11):",
        "    Fatal Python error: Segmentation fault",
    ]
    assert any("in crash" in line for line in report)
    assert report[-1] == "looper: --max-restarts N would start again from the last checkpoint, up to N times"


@pytest.mark.parametrize("who", ["all", "one"])
def test_wrong_input_is_said_once_and_not_restarted(recipe, run, tmp_path, who):
    path = recipe(f"""
from looper import InputError
note(f"pid_{{rank}}", os.getpid())
if {who!r} == "all" or rank == 1:
    raise InputError("dropout=2: expected less.")
wait_until(lambda: gone(wait_for("pid_1")))
raise RuntimeError("Collective ops is aborted")
""")
    code, _, err = run(path, "--workers", "2", "--max-restarts", "5")
    assert code == 2
    [line] = [line for line in err.splitlines() if "dropout" in line]
    assert re.fullmatch(
        ("" if who == "all" else r"\[1\] ") + r"looper: error: recipe.py:\d+: dropout=2: expected less.", line
    )
    assert (tmp_path / "attempts_1").read_text() == "x"
    assert "restart" not in err


def test_an_error_without_a_line_of_loopers_is_named(recipe, run, tmp_path):
    """Such as that of a wrong value, which the parser of the options explains."""
    code, _, err = run(recipe("sys.exit('no such thing' if rank else 2)"), "--workers", "2", "--max-restarts", "1")
    assert code == 2
    assert "looper: worker 0 ended with code 2, for wrong input" in err
    assert (tmp_path / "attempts_0").read_text() == "x"


STOPPABLE = """
def stop(number, _):
    note(f"stopped_{rank}", number)
    sys.stderr.write("saving\\n")
    if number == signal.SIGINT:
        raise KeyboardInterrupt
    sys.exit(75)
signal.signal(signal.SIGTERM, stop)
signal.signal(signal.SIGINT, stop)
"""


def signalled(start, path, folder, number):
    """Sends a signal once both workers are ready. Returns the launcher, which has ended, and its stderr."""
    process = start(path, "--workers", "2", "--max-restarts", "3")
    for rank in range(2):
        read(folder / f"ready_{rank}")
    process.send_signal(number)
    _, err = process.communicate(timeout=SECONDS)
    return process, err


@pytest.mark.parametrize(
    ("number", "code", "handled"),
    [
        (signal.SIGTERM, 75, True),
        (signal.SIGINT, 130, True),
        (signal.SIGTERM, 75, False),
        (signal.SIGINT, 130, False),
        (signal.SIGHUP, 129, False),
    ],
)
def test_signals_are_passed_on(recipe, start, tmp_path, number, code, handled):
    """To workers that save and stop, and to those that are still starting: they have nothing to save."""
    path = recipe(
        STOPPABLE * handled
        + """
note(f"ready_{rank}")
while True:
    signal.pause()
"""
    )
    process, err = signalled(start, path, tmp_path, number)
    assert process.returncode == code
    assert "restart" not in err
    assert "looper: worker" not in err
    for rank in range(2):
        assert (tmp_path / f"stopped_{rank}").exists() == handled
        if handled:
            assert f"[{rank}] saving" in err


def test_a_signal_while_restarting_is_not_lost(recipe, start, tmp_path):
    """It comes right after the line that says so, wherever the launcher is then."""
    path = recipe("""
if attempt == 1:
    sys.exit(1)
while True:
    signal.pause()
""")
    process = start(path, "--workers", "2", "--max-restarts", "1")
    for line in process.stderr:
        if "restarting" in line:
            break
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=SECONDS) == 75


def test_a_failure_after_a_signal_is_reported_and_not_restarted(recipe, start, tmp_path):
    path = recipe("""
def stop(number, _):
    if rank == 1:
        raise OSError("no space left")
    raise RuntimeError("Socket closed")
signal.signal(signal.SIGTERM, stop)
note(f"ready_{rank}")
while True:
    signal.pause()
""")
    process, err = signalled(start, path, tmp_path, signal.SIGTERM)
    assert process.returncode == 1
    assert "looper: worker 1 ended with code 1:" in err
    assert "restart" not in err


def test_the_third_interrupt_kills(recipe, start, tmp_path):
    path = recipe("""
signal.signal(signal.SIGINT, lambda *_: note(f"interrupted_{len(list(here.glob('interrupted_*')))}"))
note("ready", os.getpid())
while True:
    signal.pause()
""")
    process = start(path, "--workers", "1")
    read(tmp_path / "ready")
    for number in range(2):
        process.send_signal(signal.SIGINT)
        read(tmp_path / f"interrupted_{number}")
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=SECONDS) == 130
    assert gone((tmp_path / "ready").read_text())


WITH_CHILD = """
signal.signal(signal.SIGTERM, signal.SIG_IGN)
child = subprocess.Popen([sys.executable, "-c", "import signal; signal.pause()"])
note(f"child_{rank}", child.pid)
note(f"pid_{rank}", os.getpid())
"""


@pytest.mark.parametrize("killed", ["launcher", "guard and launcher"])
def test_nothing_is_left_when_the_launcher_is_killed(recipe, start, tmp_path, killed):
    """Workers, what they started, and the guard; the workers even if the guard was killed before."""
    path = recipe(
        WITH_CHILD
        + """
while True:
    signal.pause()
"""
    )
    process = start(path, "--workers", "2", "--max-restarts", "3")
    workers = {int(read(tmp_path / f"pid_{rank}")) for rank in range(2)}
    grandchildren = {int((tmp_path / f"child_{rank}").read_text()) for rank in range(2)}
    [guard] = set(children(process.pid)) - workers
    assert not any(map(gone, workers | grandchildren | {guard}))
    try:
        if killed != "launcher":
            os.kill(guard, signal.SIGKILL)
            wait_until(lambda: gone(guard))
        process.kill()
        wait_until(lambda: all(map(gone, workers | {guard})))
        if killed == "launcher":
            wait_until(lambda: all(map(gone, grandchildren)))
    finally:
        for pid in grandchildren:
            if not gone(pid):
                os.kill(pid, signal.SIGKILL)


def test_the_guard_kills_what_it_still_watches():
    """It alone does this where the kernel does not end the workers: other systems than Linux."""
    code = "import signal; print('ready', flush=True); signal.pause()"
    watched, forgotten = (
        subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, start_new_session=True) for _ in range(2)
    )
    try:
        with Guard() as guard:
            for process in watched, forgotten:
                process.stdout.readline()
                guard.watch(process.pid)
            guard.forget(forgotten.pid)
        assert watched.wait(timeout=SECONDS) == -signal.SIGKILL
        assert forgotten.poll() is None
    finally:
        for process in watched, forgotten:
            process.kill()
            process.communicate()


def test_what_a_worker_started_ends_with_it(recipe, run, tmp_path):
    path = recipe(
        WITH_CHILD
        + """
raise SystemExit
"""
    )
    code, _, _ = run(path, "--workers", "2")
    assert code == 0
    for rank in range(2):
        assert gone((tmp_path / f"child_{rank}").read_text())


def test_a_process_that_left_its_workers_session_does_not_hold_the_launcher(recipe, run, tmp_path):
    """It lives on, as it was made to, with the worker's output in its hands."""
    path = recipe("""
command = [sys.executable, "-c", "import signal; signal.pause()"]
note("left", subprocess.Popen(command, start_new_session=True).pid)
raise SystemExit
""")
    code, _, _ = run(path, "--workers", "1")
    left = int((tmp_path / "left").read_text())
    assert code == 0
    assert not gone(left)
    os.kill(left, signal.SIGKILL)


def test_a_terminal_shows_the_bar_of_rank_0(recipe, start, tmp_path):
    """With the rank before it, as wide as the terminal; other lines come above it."""
    path = recipe("""
print(sys.stderr.isatty())
if rank == 0:
    print(os.get_terminal_size(2).columns)
    os.write(2, b"\\r 50%")
    wait_for("line_seen")
    os.write(2, b"\\r100%\\n")
else:
    wait_for("bar_seen")
    sys.stderr.write("a line\\n")
raise SystemExit
""")
    ours, theirs = os.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 70, 0, 0))
    process = start(path, "--workers", "2", stderr=theirs)
    os.close(theirs)
    shown = b""

    def read_until(text):
        nonlocal shown
        while text not in shown:
            shown += os.read(ours, 4096)

    read_until(b"\r\x1b[K[0]  50%")
    (tmp_path / "bar_seen").touch()
    read_until(b"\r\x1b[K[1] a line\r\n[0]  50%")
    (tmp_path / "line_seen").touch()
    read_until(b"\r\x1b[K[0] 100%\r\n")
    out, _ = process.communicate(timeout=SECONDS)
    os.close(ours)
    assert process.returncode == 0
    assert sorted(out.decode().splitlines()) == ["[0] 66", "[0] True", "[1] False"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--workers", "0"], "--workers 0: expected a whole number of at least 1"),
        (["--workers", "x"], "--workers x: expected a whole number"),
        (["--workers", "--epochs", "3"], "--workers: expected a whole number"),
        (["--workers=2", "--max-restarts", "-1"], "--max-restarts -1: expected a whole number of at least 0"),
        (["--max-restarts", "1"], "--max-restarts is for --workers"),
        (["--worker", "2"], "no option '--worker': did you mean '--workers'?"),
    ],
)
def test_wrong_options_have_one_clear_line(recipe, capsys, monkeypatch, words, message):
    monkeypatch.delenv("TF_CONFIG", raising=False)
    monkeypatch.setenv("LOOPER_LOCAL_RANK", "0")
    path = recipe("import looper\nclass Recipe(looper.Trainer):\n    pass\n")
    assert cli.main(["run", path, *words]) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith("looper: error: ")
    assert message in line


def test_help_lists_the_options(capsys):
    with pytest.raises(SystemExit) as ended:
        cli.main(["run", "--help"])
    assert ended.value.code == 0
    shown = capsys.readouterr().out
    assert "--workers" in shown
    assert "--max-restarts" in shown


def test_a_cluster_in_the_environment_is_refused(recipe, capsys, monkeypatch):
    monkeypatch.setenv("TF_CONFIG", "{}")
    assert cli.main(["run", recipe(""), "--workers", "2"]) == 2
    assert "remove --workers to be one worker of that, or unset TF_CONFIG" in capsys.readouterr().err


def test_a_missing_recipe_is_said_before_anything_starts(capsys):
    assert cli.main(["run", "nowhere.py", "--workers", "2"]) == 2
    assert capsys.readouterr().err == "looper: error: no recipe 'nowhere.py': there is no such file.\n"


def test_options_are_taken_out():
    assert take_options(["r.py", "--epochs", "3"]) == (LaunchOptions(), ["r.py", "--epochs", "3"])
    taken, rest = take_options(["r.py", "--x", "-1", "--workers=4", "--y=2", "--max_restarts", "2", "--strict"])
    assert (taken.workers, taken.max_restarts) == (4, 2)
    assert rest == ["r.py", "--x", "-1", "--y=2", "--strict"]


def test_the_first_error_that_is_not_the_loss_of_a_peer():
    lost = End(0, 1, 1.0, ["looper: error: TensorFlow failed: Collective ops is aborted by: Socket closed."])
    killed, failed = End(1, -signal.SIGKILL, 2.0, ["Socket closed"]), End(2, 1, 3.0, ["ValueError: no"])
    assert root_cause([lost, killed, failed]) is killed
    assert root_cause([lost, failed]) is failed
    assert root_cause([lost]) is lost
    assert not End(0, 75, 1.0).failed(None)
    assert End(0, -signal.SIGTERM, 1.0).failed(None)
    assert not End(0, -signal.SIGTERM, 1.0).failed(signal.SIGTERM)


def test_the_last_words_are_the_error():
    text = b"""W0000 00:00:1795298845.911127 12279 port.cc:153] first
Traceback (most recent call last):
  File "a.py", line 1
KeyError: 'earlier'
During handling of the above exception, another exception occurred:
Traceback (most recent call last):
  File "a.py", line 2, in f
    x = 1 / 0
        ~~^~~
ZeroDivisionError: division by zero
2026-11-21 22:20:39.123456: E tensorflow/core] also
Exception ignored in: <function __del__>
Traceback (most recent call last):
AttributeError: late""".splitlines()
    assert last_words(text) == [
        "Traceback (most recent call last):",
        '  File "a.py", line 2, in f',
        "    x = 1 / 0",
        "ZeroDivisionError: division by zero",
    ]
    assert last_words([b"only", b"this"]) == ["only", "this"]


def test_a_run_that_began_anew_is_continued_after_a_restart(tmp_path):
    """`--resume False` starts anew once: not again when the run has a checkpoint of its own."""
    began = time.time()
    words = ["--resume", "False", "--epochs", "3"]
    checkpoints = tmp_path / "checkpoints"
    (checkpoints / "step_00000010").mkdir(parents=True)
    os.utime(checkpoints / "step_00000010", (began - 100, began - 100))
    beginning = "from the beginning, as no checkpoint has been saved yet"
    assert launcher._continued(words, tmp_path, began) == (words, beginning)
    assert launcher._continued(["--epochs", "3"], tmp_path, began) == (["--epochs", "3"], "from the last checkpoint")
    (checkpoints / "step_00000020").mkdir()
    os.utime(checkpoints / "step_00000020", (began + 5, began + 5))
    resumed = (["--epochs", "3", "--resume", "auto"], "from the last checkpoint")
    assert launcher._continued(words, tmp_path, began) == resumed
    assert launcher._continued(words, None, began) == (words, beginning)


TRAINING = """
import looper, keras, numpy as np, os, signal
from pathlib import Path

here = Path(__file__).parent


class Kill(looper.callbacks.Callback):
    def on_save(self, step, path):  # when the one before is written, and this one is not yet
        if step == 30 and not (here / "killed").exists():
            (here / "killed").touch()
            os.kill(os.getpid(), signal.SIGKILL)


class Recipe(looper.Trainer):
    defaults = {"steps": 40, "batch_size": 4, "save_every": looper.Every(steps=10), "workdir": here / "run"}

    def build(self):
        self.model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(1)])
        self.optimizer, self.loss = keras.optimizers.SGD(0.01, momentum=0.9), "mse"

    def train_data(self):
        x = np.random.default_rng(0).normal(size=(50, 3)).astype("float32")
        return x, x.sum(1, keepdims=True)

    def callbacks(self):
        return [Kill()]
"""


def test_a_killed_worker_continues_from_the_last_checkpoint(tmp_path):
    """A real run that is killed at step 30. The workdir of the recipe's defaults has the log."""
    path = tmp_path / "recipe.py"
    path.write_text(TRAINING)
    command = [sys.executable, "-m", "looper.cli", "run", str(path), "--workers", "1", "--max-restarts", "1"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=4 * SECONDS)
    assert done.returncode == 0, done.stderr
    assert "looper: worker 0 was killed by SIGKILL (signal 9)" in done.stderr
    assert "looper: restarting the worker from the last checkpoint (restart 1 of 1)" in done.stderr
    assert re.search(r"^\[0\] .*continuing after step 20", done.stderr, re.MULTILINE)
    log = (tmp_path / "run" / "logs" / "rank_0.log").read_text()
    assert log.index("attempt 1 of 2") < log.index("attempt 2 of 2") < log.index("continuing after step 20")
    assert json.loads((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[-1])["step"] == 40
