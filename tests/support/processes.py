"""Starts worker processes on this machine, and gathers what each found out."""

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from looper.workers.cluster import local_cluster

ROOT = Path(__file__).parents[2]


def start(
    rank: int,
    tf_config: str | None,
    command: list[str],
    folder: Path,
    prefix: Sequence[str] = (),
    **environment: str,
) -> subprocess.Popen:
    """Starts one worker with Python, or with what `prefix` begins. What it prints goes to `folder/rank_K.txt`."""
    own = {"TF_CPP_MIN_LOG_LEVEL": "2", "LOOPER_LOCAL_RANK": str(rank), "LOOPER_LOCAL_WORKERS": "2"}
    own |= {} if tf_config is None else {"TF_CONFIG": tf_config}
    with (folder / f"rank_{rank}.txt").open("ab") as output:
        return subprocess.Popen(
            [*prefix, sys.executable, *command],
            cwd=ROOT,
            env=os.environ | own | environment,
            stdout=output,
            stderr=subprocess.STDOUT,
        )


def together(workers: int, command: list[str], folder: Path, seconds: float = 600, **environment: str) -> list[int]:
    """Runs a command as so many workers. Returns their exit codes."""
    configs = local_cluster(workers) if workers > 1 else [None]
    running = [start(rank, config, command, folder, **environment) for rank, config in enumerate(configs)]
    try:
        return [process.wait(seconds) for process in running]
    finally:
        for process in running:
            process.kill()


def output(folder: Path, rank: int) -> str:
    """What a worker printed."""
    return (folder / f"rank_{rank}.txt").read_text(errors="replace")
