"""`looper doctor` says what works here, and of each thing that does not what to do. All are real processes."""

import re
import socket
import subprocess
import sys

import pytest

from looper import cli
from looper.commands.doctor import capabilities
from looper.workers.cluster import local_cluster
from tests.support import processes

pytestmark = pytest.mark.xdist_group("workers")

SECONDS = 300
"""Until a process has ended, on a busy machine."""

COMMAND = ["-m", "looper.cli", "doctor"]


def doctor(*words):
    """The exit code and what was found, by name."""
    command = [sys.executable, *COMMAND, *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=processes.ROOT, check=False, timeout=SECONDS)
    return done.returncode, found_in(done.stdout)


def found_in(text):
    """`{name: (verdict, what was seen and the fix)}` of what the doctor printed."""
    lines = [re.fullmatch(r"(ok|warn|skip|FAIL) +(\w+(?: clock)?) +(.*)", line) for line in text.splitlines()]
    return {line[2]: (line[1], line[3]) for line in lines if line}


def verdicts(found):
    return {name: verdict for name, (verdict, _) in found.items()}


ALL = ["versions", "devices", "workers", "collectives", "step clock", "workdir", "resume", "replicas"]


def test_two_workers(tmp_path):
    code, found = doctor("--workers", "2", "--workdir", tmp_path / "new")
    assert code == 0, found
    assert set(verdicts(found).values()) <= {"ok", "warn"} and list(found) == ALL  # another process may slow one down
    assert verdicts(found)["collectives"] == verdicts(found)["resume"] == verdicts(found)["replicas"] == "ok"
    assert "the same bits" in found["resume"][1]
    assert "2 workers see and may write" in found["workdir"][1]
    assert "sum over 2 replicas is right" in found["collectives"][1]
    assert re.search(r"alone: [\d,]+, [\d,]+ us", found["step clock"][1])
    assert list((tmp_path / "new").iterdir()) == [], "it leaves nothing behind"


def test_a_workdir_that_is_not_shared(tmp_path):
    configs = local_cluster(2)
    running = [
        processes.start(rank, config, [*COMMAND, "--workdir", str(tmp_path / f"of_{rank}")], tmp_path)
        for rank, config in enumerate(configs)
    ]
    try:
        assert [process.wait(SECONDS) for process in running] == [1, 1], processes.output(tmp_path, 0)
    finally:
        for process in running:
            process.kill()
    found = found_in(processes.output(tmp_path, 0))
    verdict, line = found["workdir"]
    assert verdict == "FAIL"
    assert re.search(r"worker 1 \(\S+\) does not see what worker 0 writes there  -> give a directory on storage", line)
    assert found["resume"][0] == "skip"
    assert {found[name][0] for name in ("workers", "collectives", "replicas")} == {"ok"}
    assert found_in(processes.output(tmp_path, 1)) == {}, "the chief speaks for all"


def test_a_port_in_use(tmp_path):
    """The worker whose port it is says so itself: the others can only miss it."""
    rank = 1
    config = local_cluster(2)[rank]
    port = int(re.findall(r"127.0.0.1:(\d+)", config)[rank])
    with socket.create_server(("127.0.0.1", port)):
        process = processes.start(rank, config, COMMAND, tmp_path)
        assert process.wait(SECONDS) == 1
    found = found_in(processes.output(tmp_path, rank))
    assert list(found) == ["versions", "devices", "workers"]
    assert found["workers"][0] == "FAIL"
    assert f"worker {rank} (127.0.0.1:{port}): its port cannot be listened on" in found["workers"][1]
    assert "-> end the process that uses it, or give this worker another port in TF_CONFIG" in found["workers"][1]


def test_a_worker_that_cannot_start(tmp_path, monkeypatch):
    """Python runs a `sitecustomize` before all else."""
    code = 'import os\nif os.environ.get("LOOPER_LOCAL_RANK") == "1":\n    os.kill(os.getpid(), 9)\n'
    (tmp_path / "sitecustomize.py").write_text(code)
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{processes.ROOT}")
    code, found = doctor("--workers", "2")
    assert code == 1
    assert found["start"][0] == "FAIL" and "worker 1 was killed by SIGKILL" in found["start"][1]


def test_a_gpu_that_tensorflow_does_not_see(tmp_path, monkeypatch):
    program = tmp_path / "nvidia-smi"
    program.write_text("#!/bin/sh\necho 'GPU 0: Some Kind (UUID: GPU-1)'\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    facts = capabilities._facts() | {"gpus": 0}  # on a machine that has one, too
    assert facts["driver"] == 1
    check = capabilities._devices([facts])
    assert check.verdict == "FAIL" and "lists 1 GPU(s), TensorFlow sees none" in check.seen and "cuda" in check.fix
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert capabilities._devices([capabilities._facts() | {"gpus": 0}]).verdict == "ok", "somebody wants none"


def test_workers_with_different_numbers_of_devices():
    fact = {"versions": {}, "gpus": 3, "driver": 3, "hidden": False}
    check = capabilities._devices([fact | {"devices": 2}, fact | {"devices": 1}])
    assert check.verdict == "FAIL" and check.seen.endswith("different numbers of devices: 2, 1")


def test_options_that_are_wrong(capsys):
    for words, said in {
        ("--workers", "0"): "--workers 0: expected a whole number of at least 1",
        ("--strategy", "mirrored", "--workers", "two"): "--workers two: expected a whole number",
    }.items():
        assert cli.main(["doctor", *words]) == 2 and said in capsys.readouterr().err
