"""The other end of the line: starts peers, makes them train bursts, and compares them."""

import contextlib
import dataclasses
import json
import os
import re
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from benchmarks import environments
from benchmarks.peers import ON_REPLICAS, PEERS

ROOT = Path(__file__).parent.parent.parent
SHARED_DEVICE = {"TF_FORCE_GPU_ALLOW_GROWTH": "true", "XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
"""Otherwise the first process takes all memory of a GPU."""


KNOWN = PEERS | ON_REPLICAS


class PeerError(Exception):
    """A peer cannot be measured; the message says why."""


@dataclasses.dataclass(frozen=True)
class Size:
    """What each peer of a comparison is started with.

    Attributes:
        model: of `PROBLEMS`.
        steps_per_burst, steps_per_call: as in `line.Settings`.
        dropout: as in `line.Settings`.
        execution: looper's mode.
        replicas, precision, workdir, data, bursts: as in `line.Settings`.
        batch: examples in a batch, or 0 for as many as the problem has.
    """

    model: str
    steps_per_burst: int
    steps_per_call: int
    dropout: float = 0.5
    execution: str = "auto"
    replicas: int = 1
    precision: str = "float32"
    batch: int = 0
    workdir: str = ""
    data: str = "arrays"
    bursts: int = 10**6

    def arguments(self) -> list[str]:
        """The peer's command line."""
        given = dataclasses.asdict(self).items()
        return [text for name, value in given for text in (f"--{name.replace('_', '-')}", str(value))]


def why_not(name: str) -> str | None:
    """Why a peer cannot run here, or None if it can."""
    peer = KNOWN[name]
    if peer.environment is not None and environments.python_of(peer.environment) is None:
        return f"missing: python -m benchmarks.environments {peer.environment}"
    return None


class Process:
    """A peer that is running. Use it in a `with`, which waits for its first burst, and ends it at the end.

    Attributes:
        first: the answer to the first burst.

    Args:
        name: of `PEERS` or `ON_REPLICAS`.
        size: of the task.
        limit: the most seconds to wait for an answer.
        environment: what to add to the environment variables.

    Raises:
        PeerError: if it is missing; `with`, `burst` and `close`, if it fails or takes too long.
    """

    def __init__(
        self, name: str, size: Size, limit: float = 900, environment: Mapping[str, str] = MappingProxyType({})
    ) -> None:
        reason = why_not(name)
        if reason is not None:
            raise PeerError(reason)
        peer = KNOWN[name]
        size = dataclasses.replace(size, execution=peer.execution or size.execution)
        home = peer.environment
        python = sys.executable if home is None else environments.python_of(home)
        self._limit = limit
        self._errors = tempfile.TemporaryFile("w+")  # noqa: SIM115 - closed in __exit__
        self._process = subprocess.Popen(
            [python, "-m", f"benchmarks.peers.{peer.module or name}", *size.arguments()],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
            cwd=ROOT,
            env={"TF_CPP_MIN_LOG_LEVEL": "3", **SHARED_DEVICE, **os.environ, **environment},
        )

    def __enter__(self) -> "Process":
        try:
            self.first = self._answer()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.communicate()
        self._errors.close()

    def burst(self) -> dict[str, float]:
        """Has it train a burst: its seconds and loss."""
        self._tell("burst")
        return self._answer()

    def kill(self) -> None:
        """Ends it now; who waits for its answer gets a `PeerError`."""
        self._process.kill()

    def close(self) -> float:
        """Ends it: the most memory that was resident, in MiB."""
        self._tell("quit")
        return self._answer()["peak_mib"]

    def _tell(self, command: str) -> None:
        with contextlib.suppress(BrokenPipeError):  # that it has ended is seen by the answer
            self._process.stdin.write(command + "\n")
            self._process.stdin.flush()

    def _answer(self) -> dict[str, Any]:
        late = threading.Timer(self._limit, self._process.kill)
        late.start()
        line = self._process.stdout.readline()
        in_time = late.is_alive()
        late.cancel()
        if line:
            return json.loads(line)
        self._errors.seek(0)
        errors = [text for text in self._errors if re.match(r"[\w.]+(Error|Exception)\b", text)]
        why = errors[-1].strip() if errors else f"ended with code {self._process.wait()}"
        raise PeerError(f"failed: {why}" if in_time else f"no answer within {self._limit:g} s")


def first_losses(name: str, size: Size, bursts: int = 10) -> list[float]:
    """Mean losses of a peer's first bursts.

    Raises:
        PeerError: as of `Process`.
    """
    with Process(name, size) as process:
        return [process.first["loss"], *(process.burst()["loss"] for _ in range(bursts - 1))]
