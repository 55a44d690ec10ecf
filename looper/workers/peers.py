"""Another worker is gone: which, and how.

TensorFlow's coordination service ends a blocked collective on every worker when one of them ended (at once), was
stopped or cut off (after about 10 s without a heartbeat). Its message names the lost one on the chief only. Every
worker has TensorFlow's gRPC server at its address, which answers from threads of its own even while Python is busy: so
whoever fails asks the others, once, who is still there.
"""

import re
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import tensorflow as tf

from looper.base.errors import PeerLostError
from looper.workers.cluster import Cluster

SIGNS = ("Collective ops is aborted", "Collective has timed out")
"""One of them is in each message of TensorFlow's about a collective that another worker will not come to."""

OTHER_PROGRAM = "Shape mismatch in the collective"
"""In messages about workers that do not run the same program."""

PROBE_SECONDS = 2.0
"""How long a worker may take to answer, twice: to connect, and to greet."""

# the client's opening of HTTP/2 (RFC 9113, 3.4) and an empty SETTINGS frame; a server answers with its own
OPENING = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\x00\x00\x00\x04\x00\x00\x00\x00\x00"

SILENT, ENDED, ANSWERS = "does not answer (it is stopped, or the network is cut)", "has ended", "answers"


def lost_peer(error: BaseException, where: str, cluster: Cluster | None) -> PeerLostError | None:
    """The error to raise if one of TensorFlow comes of another worker's end; None if it does not.

    Args:
        error: as TensorFlow raised it.
        where: what this worker did, such as "step 8".
        cluster: the workers, or None if there is one.
    """
    if cluster is None or not is_of_collectives(error) or OTHER_PROGRAM in str(error):
        return None
    gone = missing(cluster)
    who = "; ".join(f"{cluster.describe(rank)} {how}" for rank, how in gone.items())
    if not gone:  # the network is back, or a process went on that was stopped
        names = ", ".join(map(cluster.describe, _named(error))) or "another worker"
        who = f"{names} did not answer for a while"
    return PeerLostError(
        f"{who} (noticed by worker {cluster.rank} in {where}). Start all workers again: they continue from the last "
        "checkpoint."
    )


def is_of_collectives(error: BaseException) -> bool:
    """Whether TensorFlow gave up a collective.

    Example:
        >>> is_of_collectives(tf.errors.UnavailableError(None, None, "Collective ops is aborted by: Socket closed"))
        True
    """
    return isinstance(error, tf.errors.OpError) and any(sign in str(error) for sign in SIGNS)


def said_of_collectives(error: BaseException) -> str:
    """The line of TensorFlow's message that says why it gave up a collective."""
    line = next(line for line in str(error).splitlines() if any(sign in line for sign in SIGNS))
    return re.sub(r"\{\{.*?\}\}", "", line).strip()


def missing(cluster: Cluster) -> dict[int, str]:
    """The workers that are missing, by rank, and how; only the silent ones if there are any.

    A worker that has ended may have ended because of the silent one.
    """
    others = [rank for rank in range(cluster.size) if rank != cluster.rank]
    with ThreadPoolExecutor(min(len(others), 64)) as threads:
        states = dict(zip(others, threads.map(lambda rank: probe(*cluster.place(rank)), others), strict=True))
    bad = {rank: state for rank, state in states.items() if state != ANSWERS}
    return {rank: state for rank, state in bad.items() if state == SILENT} or bad


def probe(host: str, port: int) -> str:
    """How the TensorFlow server there takes a new connection: ANSWERS, ENDED or SILENT.

    Example:
        >>> with socket.create_server(("127.0.0.1", 0)) as server:
        ...     free = server.getsockname()[1]
        >>> probe("127.0.0.1", free)
        'has ended'
    """
    try:
        with socket.create_connection((host, port), timeout=PROBE_SECONDS) as link:
            link.settimeout(PROBE_SECONDS)
            link.sendall(OPENING)
            return ANSWERS if link.recv(9) else ENDED
    except (ConnectionRefusedError, ConnectionResetError, BrokenPipeError):
        return ENDED
    except OSError:  # timed out, no route, network unreachable: the kernel's words for a cut link
        return SILENT


def _named(error: BaseException) -> Iterator[int]:
    """The ranks that TensorFlow's own message names, as "task:N"; the chief's if its heartbeat failed."""
    text = str(error)
    found = re.findall(r"(?:remote target \S*|unhealthy[^/]*\S*)/task:(\d+)", text)
    yield from sorted(map(int, found)) or ([0] if "CoordinationService/Heartbeat" in text else [])
