"""A small process beside the launcher: when the launcher is killed, it kills what the launcher had started.

The workers themselves end with the launcher where the kernel sees to it (`looper.launch.launched`), but not the
processes that they started, such as data loaders. The guard reads process groups from its standard input, `+GROUP` for
one to watch and `-GROUP` for one to forget, and kills those that are left where the input ends: the system closes it
with the launcher, whatever ended that. A process that made a session of its own has left its group and is not found.

This file is also what the guard's process runs: it imports nothing of looper.
"""

import contextlib
import os
import signal
import subprocess
import sys


class Guard:
    """Runs the guard, within a `with`."""

    def __enter__(self) -> "Guard":
        self._process = subprocess.Popen(
            [sys.executable, "-I", "-S", __file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,  # what is sent to the launcher's group is not for it
        )
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()
        self._process.wait()

    def watch(self, group: int) -> None:
        """Has a process group killed when this process is gone."""
        self._tell(f"+{group}\n")

    def forget(self, group: int) -> None:
        """No longer."""
        self._tell(f"-{group}\n")

    def _tell(self, line: str) -> None:
        with contextlib.suppress(BrokenPipeError):  # somebody killed the guard: the kernel still ends the workers
            self._process.stdin.write(line.encode())
            self._process.stdin.flush()


def kill_group(group: int) -> None:
    """Kills a process group, if there is one."""
    with contextlib.suppress(ProcessLookupError, PermissionError):  # macOS: no permission for those that ended
        os.killpg(group, signal.SIGKILL)


def main() -> None:
    for number in (signal.SIGHUP, signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    groups: set[int] = set()
    for line in sys.stdin.buffer:
        group = int(line[1:])
        if line.startswith(b"+"):
            groups.add(group)
        else:
            groups.discard(group)
    for group in groups:
        kill_group(group)


if __name__ == "__main__":
    main()
