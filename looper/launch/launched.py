"""The worker's side of the local launcher: it ends with the launcher, and tells it the workdir."""

import ctypes
import os
import signal
import sys
from pathlib import Path

LAUNCHER = "LOOPER_LAUNCHER"
"""Environment variable for a worker: the launcher's process id."""
REPORT = "LOOPER_LAUNCHER_REPORT"
"""Environment variable for a worker: the number of the pipe to write the workdir to."""
PR_SET_PDEATHSIG = 1


def tie_to_launcher() -> None:
    """Lets the kernel end this process when the launcher ends, however that happens. Nothing without a launcher.

    Linux alone can; elsewhere the launcher's guard does it (`looper.launch.guard`). The variable is removed from
    the environment: processes that this one starts have another parent.
    """
    launcher = os.environ.pop(LAUNCHER, None)
    if launcher is None:
        return
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != int(launcher):  # it was gone before
        os.kill(os.getpid(), signal.SIGKILL)


def report_workdir(workdir: Path | None) -> None:
    """Tells the launcher where this run writes, for its logs: options and the recipe's defaults say it only here."""
    pipe = os.environ.pop(REPORT, None)
    if pipe is not None:
        with os.fdopen(int(pipe), "wb") as report:
            report.write(b"" if workdir is None else os.fsencode(workdir.absolute()))
            report.write(b"\0")
