"""Before TensorFlow starts: all workers find each other, or are told within a bounded time who is missing.

TensorFlow itself waits without end and without a word. The workers meet on the very ports that its servers will
listen on, so that a port in use, a wrong address and a firewall between two of them are noticed here:

1. each worker listens on its own port, and all but the chief report to the chief;
2. once all have reported, each tries to reach each other one, and tells the chief;
3. the chief tells all that all is well, or what is not; then the ports are free for TensorFlow.
"""

import contextlib
import json
import os
import platform
import socket
import time
from collections.abc import Iterator
from importlib.metadata import version
from typing import Any

from looper.base.errors import InputError
from looper.workers.cluster import Cluster

SECONDS = 300.0
"""How long to wait for all workers: nodes start at their own pace. LOOPER_START_SECONDS sets another."""

ANSWER_SECONDS = 10.0
"""How long a worker that listens may take to answer."""

PAUSE_SECONDS = 0.1
"""Between two tries to reach a worker that does not listen yet."""


def meet(cluster: Cluster, devices: str, seconds: float | None = None) -> None:
    """Returns when all workers of the cluster are there, run the same versions, and reach each other.

    Args:
        cluster: the job.
        devices: what this worker computes on, such as "2 GPU"; all must have the same.
        seconds: how long to wait at most (default: LOOPER_START_SECONDS, or 300).

    Raises:
        InputError: on every worker that is there, with the same reason: who is missing, cannot be reached, or runs
            other versions. If a port is in use, on the worker whose it is; the others then miss it.
    """
    seconds = _patience() if seconds is None else seconds
    deadline = time.monotonic() + seconds
    with _listening(cluster) as server:
        if cluster.rank == 0:
            wrong = _lead(cluster, server, deadline, seconds, devices)
        else:
            wrong = _follow(cluster, deadline, seconds, devices)
    if wrong:
        raise InputError(wrong)


def _patience() -> float:
    given = os.environ.get("LOOPER_START_SECONDS", str(SECONDS))
    try:
        return float(given)
    except ValueError:
        raise InputError(f"LOOPER_START_SECONDS={given!r}: expected a number of seconds, such as 600.") from None


@contextlib.contextmanager
def _listening(cluster: Cluster) -> Iterator[socket.socket]:
    _, port = cluster.place(cluster.rank)
    both = socket.has_dualstack_ipv6()
    family = socket.AF_INET6 if both else socket.AF_INET
    try:
        server = socket.create_server(("", port), family=family, dualstack_ipv6=both, backlog=cluster.size + 8)
    except OSError as error:
        raise InputError(
            f"{cluster.describe(cluster.rank)}: its port cannot be listened on ({error.strerror}): end the process "
            f"that uses it, or give this worker another port in {cluster.source}."
        ) from None
    with server:
        yield server


def _lead(cluster: Cluster, server: socket.socket, deadline: float, seconds: float, devices: str) -> str | None:
    """The chief's side. Returns what is wrong, in one line, or None."""
    present: dict[int, socket.socket] = {}
    wrong = None
    with contextlib.ExitStack() as stack:
        while len(present) < cluster.size - 1 and not wrong:
            server.settimeout(max(deadline - time.monotonic(), 0.001))
            try:
                connection = stack.enter_context(server.accept()[0])
            except TimeoutError:
                missing = [r for r in range(1, cluster.size) if r not in present]
                named = ", ".join(map(cluster.describe, missing))
                wrong = (
                    f"after {seconds:g} s there is no word of {named}: start it, and see that it can reach worker 0."
                )
                break
            connection.settimeout(ANSWER_SECONDS)
            greeting = _receive(connection)
            if greeting is None or not greeting.keys() >= {"rank", "addresses", "versions", "devices"}:
                continue  # a probe of somebody else
            wrong = _unlike(cluster, greeting, devices)
            before = present.get(greeting["rank"])
            if before is not None and not _is_closed(before):  # otherwise it was started anew
                twice = cluster.describe(greeting["rank"])
                wrong = f"two processes say that they are {twice}: give each worker its own index."
            present[greeting["rank"]] = connection
        if not wrong:
            for connection in present.values():
                connection.settimeout(ANSWER_SECONDS * (cluster.size + 1))  # each may try as many that are silent
                _send(connection, {"try": True})
            unreached = [(0, rank) for rank in _unreached(cluster)]
            for rank, connection in present.items():
                answer = _receive(connection)
                if answer is None:
                    wrong = wrong or f"{cluster.describe(rank)} went away while the job was starting: see its log."
                else:
                    unreached += [(rank, other) for other in answer["unreached"]]
            if unreached and not wrong:
                one, other = unreached[0]
                wrong = (
                    f"{cluster.describe(one)} cannot reach {cluster.describe(other)}: open the network between them "
                    "for that port, and see that the address is one that the others know it by."
                )
        for connection in present.values():
            _send(connection, {"wrong": wrong})
    return wrong


def _follow(cluster: Cluster, deadline: float, seconds: float, devices: str) -> str | None:
    """The side of the other workers. Returns what is wrong, in one line, or None."""
    gone = f"{_chief(cluster)} went away while the job was starting: see its log."
    while True:
        left = deadline - time.monotonic()
        if left <= 0:
            own = cluster.describe(cluster.rank)
            return f"after {seconds:g} s {_chief(cluster)} does not answer: start it, and see that {own} can reach it."
        try:
            connection = socket.create_connection(cluster.place(0), min(left, ANSWER_SECONDS))
        except OSError:
            time.sleep(PAUSE_SECONDS)
            continue
        with connection:
            _send(connection, _greeting(cluster, devices))
            connection.settimeout(seconds + ANSWER_SECONDS)  # the chief, which may have begun later, waits for all
            answer = _receive(connection)
            if answer is None:
                return gone
            if "wrong" not in answer:
                _send(connection, {"unreached": _unreached(cluster)})
                connection.settimeout(ANSWER_SECONDS * (cluster.size + 1))
                answer = _receive(connection)
            return gone if answer is None else answer["wrong"]


def _unreached(cluster: Cluster) -> list[int]:
    """The workers that this one cannot reach, the chief aside, which it reached already."""
    found = []
    for rank in range(1, cluster.size):
        if rank != cluster.rank:
            try:
                socket.create_connection(cluster.place(rank), ANSWER_SECONDS).close()
            except OSError:
                found.append(rank)
    return found


def _greeting(cluster: Cluster, devices: str) -> dict[str, Any]:
    addresses = list(cluster.addresses)
    return {"rank": cluster.rank, "addresses": addresses, "versions": _versions(), "devices": devices}


def package_versions() -> dict[str, str]:
    """Of the packages that all workers must have the same of."""
    return {name: version(name) for name in ("tensorflow", "keras", "looper-tf")}


def _versions() -> dict[str, str]:
    return {"python": ".".join(platform.python_version_tuple()[:2]), **package_versions()}


def _unlike(cluster: Cluster, greeting: dict[str, Any], devices: str) -> str | None:
    rank = greeting["rank"]
    if greeting["addresses"] != list(cluster.addresses):
        return (
            f"worker {rank} was started for the cluster {', '.join(greeting['addresses'])}, and worker 0 for "
            f"{', '.join(cluster.addresses)}: give all workers the same list."
        )
    for name, here in _versions().items():
        there = greeting["versions"].get(name)
        if there != here:
            return f"{cluster.describe(rank)} has {name} {there}, and worker 0 has {here}: install the same on all."
    if greeting["devices"] != devices:
        return f"{cluster.describe(rank)} has {greeting['devices']}, and worker 0 has {devices}: give all as many."
    return None


def _chief(cluster: Cluster) -> str:
    return f"{cluster.describe(0)}, the chief,"


def _is_closed(connection: socket.socket) -> bool:
    """Whether the other end is gone; nobody speaks before the chief does."""
    connection.setblocking(False)
    try:
        return connection.recv(1, socket.MSG_PEEK) == b""
    except BlockingIOError:
        return False
    except OSError:
        return True
    finally:
        connection.settimeout(ANSWER_SECONDS)


def _send(connection: socket.socket, message: dict[str, Any]) -> None:
    with contextlib.suppress(OSError):  # whoever is gone is missed by who waits for its answer
        connection.sendall(json.dumps(message).encode() + b"\n")


def _receive(connection: socket.socket) -> dict[str, Any] | None:
    """One line of JSON; None if the other end is gone, silent for too long, or speaks of something else."""
    text = b""
    try:
        while not text.endswith(b"\n"):
            block = connection.recv(4096)
            if not block:
                return None
            text += block
        message = json.loads(text)
    except (OSError, ValueError):
        return None
    return message if isinstance(message, dict) else None
