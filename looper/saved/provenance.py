"""Where a run comes from: the command, the code and the machine, for `run.json`."""

import functools
import platform
import shlex
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

PACKAGES = ("looper-tf", "tensorflow", "keras", "numpy")


@functools.cache
def provenance() -> dict[str, Any]:
    """What this process was started with, from which commit, with which packages, and where.

    Example:
        >>> sorted(provenance())
        ['command', 'directory', 'git', 'host', 'packages', 'python']
    """
    return {
        "command": shlex.join(sys.argv),
        "directory": str(Path.cwd()),
        "git": _git(),
        "host": platform.node(),
        "packages": {name: version for name in PACKAGES if (version := _version(name)) is not None},
        "python": platform.python_version(),
    }


def _version(distribution: str) -> str | None:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def _git() -> dict[str, Any] | None:
    """The commit that is checked out here, and whether files differ from it; None without a repository or git."""

    def run(*words: str) -> str:
        return subprocess.run(["git", *words], capture_output=True, text=True, check=True, timeout=2).stdout.strip()

    try:
        return {"commit": run("rev-parse", "HEAD"), "changed": bool(run("status", "--porcelain", "-uno"))}
    except (OSError, subprocess.SubprocessError):
        return None
