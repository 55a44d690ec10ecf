"""How workers ended, and which end was the cause of the others."""

import dataclasses
import re
import signal
from collections.abc import Sequence

REQUEUE, INTERRUPTED, WRONG_INPUT, LOST_PEER = 75, 130, 2, 69
"""Exit codes of `looper run`: saved after SIGTERM or SIGHUP (EX_TEMPFAIL of sysexits.h, "try again later"), stopped by
Ctrl-C, wrong input, and another worker is gone (EX_UNAVAILABLE)."""
REPORTED_LINES = 15
"""Most lines of a traceback in a report."""
PEER_LOSS = (
    "Collective ops is aborted",
    "UnavailableError",
    "Socket closed",
    "GRPC error information from remote target",
    "stopped sending heartbeats",
    "Terminating process because",
)
"""Words of TensorFlow's errors when another worker is gone, and of its last lines when it ends the process for that."""

MARKS = ("Traceback (most recent call last)", "Fatal Python error:", "looper: error: ")
NATIVE_LOG = re.compile(r"[IWEF]\d{4} \d\d:|\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d+: [IWEF] |WARNING: All log messages")
POINTERS = re.compile(r"\s+[\^~]+$")
COLORS = re.compile(r"\x1b\[[0-9;]*m")


@dataclasses.dataclass(frozen=True)
class End:
    """How a worker's process ended.

    Attributes:
        rank: of the worker.
        code: its exit code, or the negative number of the signal that killed it.
        at: seconds since some fixed moment.
        words: its last error, as of `last_words`.
        stopped: whether the launcher killed it, because another had failed.
    """

    rank: int
    code: int
    at: float
    words: Sequence[str] = ()
    stopped: bool = False

    @property
    def lost_a_peer(self) -> bool:
        """Whether its error says that another worker is gone."""
        text = "\n".join(self.words)
        if self.code == LOST_PEER:
            return True
        return self.code not in (0, -signal.SIGKILL, -signal.SIGSEGV) and any(sign in text for sign in PEER_LOSS)

    @property
    def exit_code(self) -> int:
        """The code for a shell: 128 + the signal's number for a signal.

        Example:
            >>> End(rank=0, code=-9, at=0.0).exit_code
            137
        """
        return self.code if self.code >= 0 else 128 - self.code

    def failed(self, stop: int | None) -> bool:
        """Whether something went wrong.

        Args:
            stop: the signal that asked all workers to stop, if one did.
        """
        in_order = (0, REQUEUE, INTERRUPTED)
        return not (self.stopped or self.code in in_order or (stop is not None and self.code == -stop))

    def __str__(self) -> str:
        if self.code < 0:
            try:
                how = f"was killed by {signal.Signals(-self.code).name} (signal {-self.code})"
            except ValueError:
                how = f"was killed by signal {-self.code}"
        else:
            how = f"ended with code {self.code}"
        words = list(self.words)
        if words and words[0].startswith("Fatal Python error"):  # its innermost frame comes first
            words = words[:REPORTED_LINES]
        elif self.code < 0:
            words = []
        lines = [f"looper: worker {self.rank} {how}{':' if words else ''}"]
        return "\n".join(lines + [f"    {line}" for line in words[-REPORTED_LINES:]])


def root_cause(failures: Sequence[End]) -> End:
    """The first that failed by itself; if all of them lost a peer, the first of all.

    Example:
        >>> lost = End(rank=0, code=1, at=1.0, words=["UnavailableError: Collective ops is aborted by: Socket closed"])
        >>> root_cause([lost, End(rank=1, code=3, at=2.0)]).rank
        1
    """
    return min(failures, key=lambda end: (end.lost_a_peer, end.at, end.rank))


def last_words(lines: Sequence[bytes]) -> list[str]:
    """The last error in what a process wrote to standard error: a traceback, or looper's own line.

    Left out are lines of TensorFlow's native log, those that only point at a place in the line above, and errors that
    Python ignored while it shut down. Without any error it is all lines.

    Example:
        >>> last_words([b"hello", b"Traceback (most recent call last):", b"  File ...", b"ValueError: no"])
        ['Traceback (most recent call last):', '  File ...', 'ValueError: no']
    """
    said = [COLORS.sub("", line.decode(errors="replace")).rstrip() for line in lines]
    said = [line for line in said if line and not (NATIVE_LOG.match(line) or POINTERS.match(line))]
    marks = [i for i, line in enumerate(said) if line.startswith(MARKS)]
    counted = [i for i in marks if i == 0 or not said[i - 1].startswith("Exception ignored in")]
    if not counted:
        return said
    ignored = [i for i in range(counted[-1], len(said)) if said[i].startswith("Exception ignored in")]
    return said[counted[-1] : ignored[0] if ignored else None]
