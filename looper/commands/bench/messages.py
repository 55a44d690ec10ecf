"""Messages between `looper bench` and its worker processes: JSON objects, one a line."""

import json
import os
import sys
from typing import Any, TextIO


class LeftOutError(Exception):
    """A side that cannot run this recipe; the message says why."""


class Channel:
    """A worker's end.

    Args:
        incoming: where requests come from.
        outgoing: where answers go to.

    Example:
        >>> import io
        >>> channel = Channel(io.StringIO('{"burst": true}\\n'), answers := io.StringIO())
        >>> channel.receive()
        {'burst': True}
        >>> channel.send(seconds=0.25); answers.getvalue()
        '{"seconds": 0.25}\\n'
    """

    def __init__(self, incoming: TextIO, outgoing: TextIO) -> None:
        self._incoming, self._outgoing = incoming, outgoing

    @classmethod
    def of_process(cls) -> "Channel":
        """The channel over this process' standard input and output; what else is printed goes to standard error."""
        outgoing = os.fdopen(os.dup(sys.stdout.fileno()), "w")
        os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
        return cls(sys.stdin, outgoing)

    def receive(self) -> dict[str, Any]:
        """The next request. Ends the process if there is nobody any more who could send one."""
        line = self._incoming.readline()
        if not line:
            os._exit(1)
        return json.loads(line)

    def send(self, **answer: Any) -> None:
        self._outgoing.write(json.dumps(answer) + "\n")
        self._outgoing.flush()
