"""Programs and measurements that one process leaves for the next: found again, never trusted, never in the way."""

import collections
import json
import os
import signal
import subprocess
import sys
import threading

import pytest

from looper.base import function_names, user_cache, xla, xla_cache
from looper.base.hushed import hushed
from looper.step.known import Known
from tests.support.kept_programs import DAMAGES


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """What several processes found, one after the other."""
    folder = tmp_path_factory.mktemp("processes")
    command = [sys.executable, "-m", "tests.support.kept_programs", str(folder)]
    environment = {key: value for key, value in os.environ.items() if key != xla_cache.MARK}
    run = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert run.returncode == 0, run.stderr[-2000:]
    assert "prefer-no-gather" not in run.stderr and "XlaSerializedCacheEntry" not in run.stderr
    return json.loads(run.stdout.splitlines()[-1])


@pytest.mark.xdist_group("kept programs")
def test_the_next_process_finds_them(found):
    """Though it counts other tensors: had it compiled, there would be another program of that name."""
    names, right = found["kept by it"]
    assert names and right
    assert found["second"] == found["first"]
    assert found["kept then"] == found["kept by it"]
    assert (found["new"], found["new then"]) == (len(names), 0)


@pytest.mark.xdist_group("kept programs")
@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_one_is_compiled_again(damage, found):
    losses, (names, right) = found[damage]
    assert losses == found["first"]
    assert right
    assert len(names) == len(found["kept by it"][0])


@pytest.mark.xdist_group("kept programs")
def test_two_at_once_and_one_that_is_killed(found):
    [one, two], (names, right) = found["at once"]
    assert one == two == found["first"]
    assert names and right
    assert (found["killed"], found["left by it"]) == (-9, 1)
    assert found["after it"] == [found["first"], 0]


def test_numbers_of_functions_fit_into_64_bits(monkeypatch):
    """However often the same words are traced; and no two traces have the same."""
    monkeypatch.setattr(function_names, "_BEFORE", collections.Counter())
    monkeypatch.setattr(function_names.zlib, "crc32", lambda words: 2**32 - len(words))
    seen = set()
    for _ in range(100):
        for words in ("a", "ab"):  # of neighbouring numbers
            with function_names.numbered_by(words):
                seen.add(function_names.ops.uid())
    assert len(seen) == 200
    assert max(seen) < 2**63


@pytest.fixture
def announced(monkeypatch):
    """The flags after an announcement, and this process' folder."""
    monkeypatch.setattr(xla_cache, "_directory", None)
    monkeypatch.setattr(xla_cache, "_why_not", None)
    monkeypatch.setattr(xla_cache.atexit, "register", lambda *_: None)
    monkeypatch.delenv(xla_cache.MARK, raising=False)

    def announce(**variables):
        for name, value in variables.items():
            monkeypatch.setenv(name, str(value))
        xla_cache.announce()
        return os.environ.get("TF_XLA_FLAGS", ""), xla_cache._directory

    return announce


def test_flags_of_the_user_stay(announced, tmp_path):
    flags, directory = announced(TF_XLA_FLAGS="--tf_xla_auto_jit=1", LOOPER_CACHE=tmp_path)
    assert flags == f"--tf_xla_auto_jit=1 {xla_cache.FLAG}{directory}"
    assert directory.parent == tmp_path / "running"
    again, other = announced()  # a process that inherits them
    assert again == f"--tf_xla_auto_jit=1 {xla_cache.FLAG}{other}"
    assert other != directory
    assert announced(LOOPER_CACHE="off")[0] == "--tf_xla_auto_jit=1"


def test_a_folder_that_the_user_names_to_tensorflow_is_not_replaced(announced, tmp_path):
    mine = f"{xla_cache.FLAG}/mine"
    assert announced(TF_XLA_FLAGS=mine, LOOPER_CACHE=tmp_path) == (mine, None)


def test_a_folder_that_others_can_write_is_refused(announced, tmp_path, monkeypatch):
    tmp_path.chmod(0o777)
    assert announced(TF_XLA_FLAGS="", LOOPER_CACHE=tmp_path) == ("", None)
    monkeypatch.setattr(xla_cache, "_prepared", False)
    with (
        pytest.warns(UserWarning, match="compiled anew in each process: .* can be written by others"),
        xla_cache.used(),
    ):
        pass
    tmp_path.chmod(0o700)
    monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 1)
    assert user_cache.make_private(tmp_path) == f"{tmp_path} belongs to another user"


def test_what_tensorflow_would_read_otherwise_is_left_alone(announced, tmp_path):
    """A folder with a space in its name, at which it cuts flags; a file of flags; a home that there is not."""
    assert announced(TF_XLA_FLAGS="", LOOPER_CACHE=tmp_path / "my cache") == ("", None)
    assert announced(TF_XLA_FLAGS="flags.txt", LOOPER_CACHE=tmp_path / "cache") == ("flags.txt", None)
    assert announced(TF_XLA_FLAGS="", LOOPER_CACHE="~nobody_of_this_name/cache") == ("", None)


def test_other_flags_make_other_programs(monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", "")
    user_cache.machine.cache_clear()
    plain = user_cache.machine()
    monkeypatch.setenv("XLA_FLAGS", "--xla_cpu_enable_fast_math=true")
    user_cache.machine.cache_clear()
    assert len({plain, user_cache.machine(), user_cache.machine(("--tf_xla_auto_jit=1",))}) == 3
    user_cache.machine.cache_clear()


def test_the_oldest_go(tmp_path, monkeypatch):
    monkeypatch.setattr(xla_cache, "MOST_BYTES", 25)
    for age, name in enumerate("abc"):
        (tmp_path / name).write_bytes(b"0123456789")
        os.utime(tmp_path / name, (1000 - age, 1000 - age))
    xla_cache._prune(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b"]


def test_an_error_of_the_folder_is_not_one_of_xla(announced, tmp_path):
    import tensorflow as tf

    from looper.step import programs

    _, directory = announced(TF_XLA_FLAGS="", LOOPER_CACHE=tmp_path)
    error = tf.errors.ResourceExhaustedError(None, None, f"{directory}/program.pb; No space left on device")
    assert xla.why_not(error).startswith("the cache of XLA programs failed, not XLA: ")
    told = str(programs.explained(error, 8, 1))  # of a batch of another size, in mid-run
    assert told.startswith("TensorFlow failed in step 9: the cache of XLA programs failed, not XLA: ")
    assert told.endswith("; LOOPER_CACHE=off does without it.")


def test_lines_of_no_use_are_dropped_and_others_come(capfd):
    with hushed(["of no use"]):
        os.write(2, b"one\na line of no use\ntwo\n")
    os.write(2, b"three\n")
    assert capfd.readouterr().err == "one\ntwo\nthree\n"


def test_a_section_inside_another_one_and_one_of_another_thread(capfd):
    """The last one to end takes the filter away."""
    begun, end = threading.Event(), threading.Event()

    def other():
        with hushed(["of no use"]):
            begun.set()
            end.wait(60)
            os.write(2, b"from the thread\nof no use\n")

    thread = threading.Thread(target=other)
    with hushed(["of no use"]), hushed(["of no use"]):
        thread.start()
        assert begun.wait(60)
    os.write(2, b"of no use\n")
    end.set()
    thread.join()
    os.write(2, b"of no use, after it\n")
    assert capfd.readouterr().err == "from the thread\nof no use, after it\n"


def test_the_last_words_of_a_process_that_is_aborted_come():
    """And more of them than a pipe holds, while no other thread of Python can run."""
    code = """
import ctypes, os, sys
from looper.base.hushed import hushed
write = ctypes.PyDLL(None).write  # which keeps Python's lock
with hushed(["of no use"]):
    line = b"x" * 99 + bytes([10])
    for _ in range(2000):
        write(2, line, len(line))
    write(2, b"last words", 10)
    os.abort()
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True)
    assert run.returncode == -signal.SIGABRT
    assert run.stderr == (b"x" * 99 + b"\n") * 2000 + b"last words"


TABLE = {"graph": {"seconds_per_step": 2e-4}, "xla_loop": {"seconds_per_step": 5e-5, "compile_seconds": 1.0}}


@pytest.mark.parametrize(
    "content",
    ["", "{", "[]", '"text"', "{}", "[" * 100_000, '{"graph": {"seconds_per_step": 1}}', '{"graph": 1, "xla_loop": 2}']
    + [json.dumps(TABLE | {"graph": {"seconds_per_step": value}}) for value in (0, -1, float("nan"), "x", None)],
)
def test_a_measurement_that_makes_no_sense_is_none(content, tmp_path, monkeypatch):
    monkeypatch.setenv("LOOPER_CACHE", str(tmp_path))
    known = Known("a program")
    known.write(TABLE)
    assert known.read() == TABLE
    [path] = tmp_path.rglob("*.json")
    path.write_text(content)
    assert known.read() is None


def test_measurements_are_of_one_program_and_worth_keeping(tmp_path, monkeypatch):
    monkeypatch.setenv("LOOPER_CACHE", str(tmp_path))
    Known("a program").write(TABLE)
    assert Known("another").read() is None
    Known("another").write({"graph": TABLE["graph"], "xla_loop": {"left_out": "not tried"}})
    assert Known("another").read() is None
    monkeypatch.setattr(user_cache, "FORMAT", 2)
    user_cache.machine.cache_clear()
    assert Known("a program").read() is None
    user_cache.machine.cache_clear()
