"""Where a run comes from: the command, the code and the machine, for `run.json`."""

import functools
import os
import platform
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

from looper.base.versions import installed

COMMAND = "LOOPER_COMMAND"
"""Environment variable for a worker: what its launcher was started with."""


@functools.cache
def provenance() -> dict[str, Any]:
    """What this process was started with, from which commit, with which packages, and where.

    Example:
        >>> sorted(provenance())
        ['command', 'directory', 'git', 'host', 'packages', 'python']
    """
    return {
        "command": os.environ.get(COMMAND) or command(),
        "directory": str(Path.cwd()),
        "git": _git(),
        "host": platform.node(),
        "packages": {"looper-tf": installed("looper-tf"), "numpy": installed("numpy")},
        "python": platform.python_version(),
    }


def command() -> str | None:
    """What to type to start this process again; None in a notebook.

    Example:
        >>> command() is None
        False
    """
    script = Path(sys.argv[0])
    if script.name in ("looper", "cli.py"):
        return shlex.join(["looper", *sys.argv[1:]])
    return None if "ipykernel" in script.name else shlex.join(["python", *sys.orig_argv[1:]])


def _git() -> dict[str, Any] | None:
    """The commit that is checked out here, and whether files differ from it; None without a repository or git."""

    def run(*words: str) -> str:
        git = ["git", "--no-optional-locks", *words]
        return subprocess.run(git, capture_output=True, text=True, check=True, timeout=2).stdout.strip()

    try:
        return {"commit": run("rev-parse", "HEAD"), "changed": bool(run("status", "--porcelain", "-uno"))}
    except (OSError, subprocess.SubprocessError):
        return None
