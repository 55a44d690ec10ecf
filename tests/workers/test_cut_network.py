"""A worker that is cut off or stopped is noticed, named, and the run goes on after a restart.

Two workers in two network namespaces, joined by a bridge in a third one: taking a worker's end out of the bridge cuts
it off without a word, as a switch that fails does.
"""

import contextlib
import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest

from looper.workers.cluster import tf_config
from tests.support import processes

pytestmark = pytest.mark.xdist_group("workers")

NOTICED = 60
"""Seconds until all that run have ended. Documented are 15 until the error; the machine may be busy with other tests,
and TensorFlow takes some to end a process. Without a bound it would be TCP's quarter of an hour."""

SHORT = 3
"""Seconds of an interruption that looper/launch/README.md says is waited for."""

BEGUN = 180
"""Seconds for two processes to import TensorFlow, compile and train a few steps, on a busy machine."""


def ip(*arguments: str, check: bool = True) -> subprocess.CompletedProcess:
    return subprocess.run(["ip", *arguments], capture_output=True, text=True, check=check)


def why_not() -> str | None:
    """Why there can be no namespaces here, or None."""
    if os.geteuid() != 0 or shutil.which("ip") is None:
        return "network namespaces need root and iproute2"
    made = ip("netns", "add", f"looper-{os.getpid()}", check=False)
    if made.returncode:
        return f"network namespaces cannot be made here: {made.stderr.strip()}"
    ip("netns", "del", f"looper-{os.getpid()}")
    return None


class Network:
    """Two namespaces, each with an end of a bridge."""

    def __init__(self) -> None:
        self.names = [f"looper-{os.getpid()}-{i}" for i in range(2)]
        self.switch = f"looper-{os.getpid()}-s"
        self.addresses = [f"10.77.77.{i + 1}" for i in range(2)]

    def __enter__(self) -> "Network":
        for name in (*self.names, self.switch):
            ip("netns", "add", name)
            ip("-n", name, "link", "set", "lo", "up")
        ip("-n", self.switch, "link", "add", "bridge", "type", "bridge")
        ip("-n", self.switch, "link", "set", "bridge", "up")
        for i, (name, address) in enumerate(zip(self.names, self.addresses, strict=True)):
            ip("link", "add", "end", "netns", name, "type", "veth", "peer", "name", f"port{i}", "netns", self.switch)
            ip("-n", self.switch, "link", "set", f"port{i}", "up")
            self.join(i)
            ip("-n", name, "addr", "add", f"{address}/24", "dev", "end")
            ip("-n", name, "link", "set", "end", "up")
        return self

    def __exit__(self, *_: object) -> None:
        for name in (*self.names, self.switch):
            ip("netns", "del", name, check=False)

    def cut(self, i: int) -> None:
        ip("-n", self.switch, "link", "set", f"port{i}", "nomaster")

    def join(self, i: int) -> None:
        ip("-n", self.switch, "link", "set", f"port{i}", "master", "bridge")

    def start(self, rank: int, folder: Path) -> subprocess.Popen:
        """Starts worker `rank` in its namespace; the process is Python itself, `ip` gives way to it."""
        config = tf_config([f"{address}:2222" for address in self.addresses], rank)
        options = (
            "recipes/digits.py",
            "--workdir",
            str(folder / "run"),
            "--save-every",
            "20 steps",
            "--steps",
            "1000000",
        )
        prefix = ("ip", "netns", "exec", self.names[rank])
        return processes.start(rank, config, ["-m", "looper.cli", "run", *options], folder, prefix=prefix)


def last_checkpoint(folder: Path) -> int:
    found = sorted((folder / "run" / "checkpoints").glob("step_*"))
    return int(found[-1].name.removeprefix("step_")) if found else 0


@contextlib.contextmanager
def running(network: Network, folder: Path):
    """Both workers; what still runs at the end is ended."""
    started = [network.start(rank, folder) for rank in (0, 1)]
    try:
        yield started
    finally:
        for process in started:
            process.kill()
            process.wait()


def wait_for_checkpoint(folder: Path, step: int, *started: subprocess.Popen) -> None:
    """Returns when there is one of this step or a later one."""
    deadline = time.monotonic() + BEGUN
    while last_checkpoint(folder) < step and time.monotonic() < deadline:
        assert all(process.poll() is None for process in started), processes.output(folder, 0)
        time.sleep(0.1)  # between two looks; what is waited for is the checkpoint
    assert last_checkpoint(folder) >= step, processes.output(folder, 0)


@pytest.mark.skipif(why_not() is not None, reason=str(why_not()))
def test_a_short_interruption_is_waited_for_a_long_one_named_and_the_run_continues(tmp_path):
    """After the restart one worker is stopped, which the other names, too."""
    with Network() as network:
        with running(network, tmp_path) as both:
            wait_for_checkpoint(tmp_path, 20, *both)
            network.cut(1)
            time.sleep(SHORT)  # the fault itself
            network.join(1)
            wait_for_checkpoint(tmp_path, last_checkpoint(tmp_path) + 60, *both)
            network.cut(1)
            for rank, process in enumerate(both):
                names_the_other(network, tmp_path, rank, process)
            network.join(1)
        before = last_checkpoint(tmp_path)
        with running(network, tmp_path) as (chief, other):
            wait_for_checkpoint(tmp_path, before + 40, chief, other)
            assert f"continuing after step {before}" in processes.output(tmp_path, 0)
            other.send_signal(signal.SIGSTOP)
            names_the_other(network, tmp_path, 0, chief, times=2)
            other.send_signal(signal.SIGCONT)
            assert other.wait(NOTICED) != 0  # it ends, too, once it goes on


def names_the_other(network: Network, folder: Path, rank: int, process: subprocess.Popen, times: int = 1) -> None:
    """Waits until a worker ends because the other is gone, and checks how it says so, for the first time or again."""
    assert process.wait(NOTICED) == 69, processes.output(folder, rank)
    lines = [x for x in processes.output(folder, rank).splitlines() if x.startswith("looper: error:")]
    named = 1 - rank
    assert len(lines) == times
    assert f"worker {named} ({network.addresses[named]}:2222) does not answer" in lines[-1]
