"""A side's process, as the command sees it."""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from looper.base.errors import InputError
from looper.commands.bench.messages import LeftOutError


class Process:
    """Starts a worker and asks it.

    Args:
        side: which one it is.
        spec, options: the recipe and its options, as the command line has them.
        workdir: a directory for what the side and the worker's output write.
    """

    def __init__(self, side: str, spec: str, options: Sequence[str], workdir: Path) -> None:
        self.side = side
        self._printed = workdir / f"{side}.log"
        # several processes share a GPU: none may take its whole memory at the start
        environment = {"TF_FORCE_GPU_ALLOW_GROWTH": "true", **os.environ}
        with self._printed.open("w") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "looper.commands.bench.worker"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                env=environment,
            )
        self.send(side=side, spec=spec, options=list(options), workdir=str(workdir / side))

    def send(self, **request: Any) -> None:
        try:
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            pass  # `receive` says why

    def receive(self) -> dict[str, Any]:
        """The next answer.

        Raises:
            LeftOutError: if the side cannot run the recipe, or the process died.
            InputError: if something is wrong with the recipe or its options.
        """
        line = self._process.stdout.readline()
        if not line:
            code = self._process.wait()
            said = [line for line in self._printed.read_text().splitlines() if line.strip()]
            raise LeftOutError(f"its process ended with code {code}; its last line: {said[-1] if said else 'none'}")
        answer = json.loads(line)
        if "left_out" in answer:
            raise LeftOutError(answer["left_out"])
        if "error" in answer:
            raise InputError(answer["error"])
        return answer

    def ask(self, **request: Any) -> dict[str, Any]:
        """Sends a request and returns its answer. Raises what `receive` raises."""
        self.send(**request)
        return self.receive()

    def close(self) -> None:
        """Ends the process, whatever it does."""
        self._process.kill()
        self._process.wait()
        self._process.stdin.close()
        self._process.stdout.close()
