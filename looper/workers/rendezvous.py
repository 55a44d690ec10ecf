"""Before TensorFlow starts: all workers find each other, or are told within a bounded time who is missing.

TensorFlow itself waits without end and without a word. The workers meet on the very ports that its servers will
listen on, so that a port in use, a wrong address and a firewall between two of them are noticed here:

1. each worker listens on its own port, and all but the chief report to the chief;
2. once all have reported, each tries to reach each other one, and tells the chief;
3. the chief tells all that all is well, or what is not; then the ports are free for TensorFlow.

What strangers send to a port is ignored and counted. With LOOPER_TOKEN, which the launcher makes and others may set,
only who knows it is a worker; it is sent as it is, so that it keeps out who can reach the port, not who can listen to
the network.
"""

import contextlib
import errno
import hmac
import json
import os
import platform
import selectors
import socket
import time
from collections.abc import Iterator
from importlib.metadata import version
from typing import Any

from looper.base.errors import InputError
from looper.base.say import say
from looper.workers.cluster import Cluster

SECONDS = 300.0
"""How long to wait for all workers: nodes start at their own pace. LOOPER_START_SECONDS sets another."""

ANSWER_SECONDS = 10.0
"""How long a worker that listens may take to answer."""

MOST_BYTES = 1 << 20
"""Of a message: the addresses of ten thousand workers are half of it."""

MOST_CONNECTIONS = 512
"""That may be open to the chief without having said who they are."""

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
    """Listens on this worker's port: at its own address where that is one of this machine's, else at all of them."""
    host, port = cluster.place(cluster.rank)
    server = None
    try:
        with contextlib.suppress(socket.gaierror):
            for family, *_, address in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM):
                try:
                    server = socket.create_server(address[:2], family=family, backlog=cluster.size + 8)
                    break
                except OSError as error:
                    if error.errno not in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT):
                        raise
        if server is None:
            say(f"looper: {cluster.describe(cluster.rank)}: {host} is no address of this machine: listening on all.")
            both = socket.has_dualstack_ipv6()
            family = socket.AF_INET6 if both else socket.AF_INET
            server = socket.create_server(("", port), family=family, dualstack_ipv6=both, backlog=cluster.size + 8)
    except OSError as error:
        raise InputError(
            f"{cluster.describe(cluster.rank)}: its port cannot be listened on ({error.strerror}): end the process "
            f"that uses it, or give this worker another port in {cluster.source}."
        ) from None
    with server:
        yield server


class _Greetings:
    """What comes to the chief's port, read side by side: who is slow or silent keeps nobody waiting.

    Attributes:
        strangers: how many have said nothing that a worker says.

    Args:
        cluster: the job.
        server: listens.
        deadline: of the whole meeting.
    """

    def __init__(self, cluster: Cluster, server: socket.socket, deadline: float) -> None:
        self.strangers = 0
        self._cluster, self._server, self._deadline = cluster, server, deadline
        self._waiting: dict[socket.socket, tuple[bytes, float]] = {}
        self._selector = selectors.DefaultSelector()
        server.setblocking(False)
        self._selector.register(server, selectors.EVENT_READ)

    def __enter__(self) -> "_Greetings":
        return self

    def __exit__(self, *_: object) -> None:
        for connection in list(self._waiting):
            self._drop(connection)
        self._selector.close()

    def next(self) -> tuple[socket.socket, dict[str, Any]]:
        """The next worker, and what it says. Raises TimeoutError when the deadline is over."""
        while True:
            now = time.monotonic()
            for connection, (_, until) in list(self._waiting.items()):
                if now > until or len(self._waiting) > MOST_CONNECTIONS:
                    self._drop(connection, stranger=True)
            if now >= self._deadline:
                raise TimeoutError
            until = min([self._deadline, *(until for _, until in self._waiting.values())])
            ready = {key.fileobj for key, _ in self._selector.select(max(until - now, 0.001))}
            if self._server in ready:
                self._accept()
            for connection in [one for one in self._waiting if one in ready]:
                found = self._read(connection)
                if found is not None:
                    return connection, found

    def _accept(self) -> None:
        with contextlib.suppress(OSError):  # it is gone already
            connection = self._server.accept()[0]
            connection.setblocking(False)
            self._waiting[connection] = (b"", time.monotonic() + ANSWER_SECONDS)
            self._selector.register(connection, selectors.EVENT_READ)

    def _read(self, connection: socket.socket) -> dict[str, Any] | None:
        """What a worker says, when it has said all of it."""
        text, until = self._waiting[connection]
        try:
            block = connection.recv(1 << 16)
        except BlockingIOError:
            return None
        except OSError:
            block = b""
        text += block
        if block and not text.endswith(b"\n") and len(text) <= MOST_BYTES:
            self._waiting[connection] = (text, until)
            return None
        message = _parsed(text) if text.endswith(b"\n") else None
        if message is None or not _is_greeting(self._cluster, message):
            self._drop(connection, stranger=True)
            return None
        self._selector.unregister(connection)
        del self._waiting[connection]
        connection.settimeout(ANSWER_SECONDS)
        return message

    def _drop(self, connection: socket.socket, stranger: bool = False) -> None:
        self.strangers += stranger
        self._selector.unregister(connection)
        del self._waiting[connection]
        connection.close()


def _is_greeting(cluster: Cluster, message: dict[str, Any]) -> bool:
    """Whether it is what a worker of this job says: it has the types, the token, and knows the chief's address."""
    rank, addresses, versions = message.get("rank"), message.get("addresses"), message.get("versions")
    token = message.get("token", "")
    if not isinstance(rank, int) or isinstance(rank, bool) or not 0 < rank < cluster.size:
        return False
    if not isinstance(addresses, list) or cluster.addresses[0] not in addresses:
        return False
    if not all(isinstance(address, str) for address in addresses) or not isinstance(versions, dict):
        return False
    if not isinstance(message.get("devices"), str) or not isinstance(token, str):
        return False
    return hmac.compare_digest(token.encode(), _token().encode()) or not _token()


def _token() -> str:
    return os.environ.get("LOOPER_TOKEN", "")


def _lead(cluster: Cluster, server: socket.socket, deadline: float, seconds: float, devices: str) -> str | None:
    """The chief's side. Returns what is wrong, in one line, or None."""
    present: dict[int, socket.socket] = {}
    wrong = None
    with contextlib.ExitStack() as stack:
        greetings = stack.enter_context(_Greetings(cluster, server, deadline))
        while len(present) < cluster.size - 1 and not wrong:
            try:
                connection, greeting = greetings.next()
            except TimeoutError:
                missing = [r for r in range(1, cluster.size) if r not in present]
                named = ", ".join(map(cluster.describe, missing))
                ignored = f" ({greetings.strangers} that are no workers spoke to this port)" * bool(greetings.strangers)
                wrong = (
                    f"after {seconds:g} s there is no word of {named}{ignored}: start it, and see that it can reach "
                    f"worker 0{' and has its LOOPER_TOKEN' if _token() else ''}."
                )
                break
            stack.enter_context(connection)
            wrong = _unlike(cluster, greeting, devices)
            before = present.get(greeting["rank"])
            if before is not None and not _is_closed(before):  # otherwise it was started anew
                twice = cluster.describe(greeting["rank"])
                wrong = f"two processes say that they are {twice}: give each worker its own index."
            present[greeting["rank"]] = connection
        if not wrong:
            wait = ANSWER_SECONDS * (cluster.size + 1)  # each may try as many that are silent
            for connection in present.values():
                _send(connection, {"try": True})
            unreached = [(0, rank) for rank in _unreached(cluster)]
            for rank, connection in present.items():
                answer = _receive(connection, wait)
                found = None if answer is None else answer.get("unreached")
                if not isinstance(found, list) or not all(other in range(cluster.size) for other in found):
                    wrong = wrong or f"{cluster.describe(rank)} went away while the job was starting: see its log."
                else:
                    unreached += [(rank, other) for other in found]
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
            # the chief, which may have begun later, waits for all
            answer = _receive(connection, seconds + ANSWER_SECONDS)
            if answer is None:
                return gone
            if "wrong" not in answer:
                _send(connection, {"unreached": _unreached(cluster)})
                answer = _receive(connection, ANSWER_SECONDS * (cluster.size + 1))
            if answer is None or not isinstance(answer.get("wrong"), str | None):
                return gone
            return answer.get("wrong")


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
    about = {"addresses": list(cluster.addresses), "versions": _versions(), "devices": devices, "token": _token()}
    return {"rank": cluster.rank, **about}


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


def _receive(connection: socket.socket, seconds: float) -> dict[str, Any] | None:
    """One line of JSON; None if the other end is gone, not done after so long, or speaks of something else."""
    text, until = b"", time.monotonic() + seconds
    try:
        while not text.endswith(b"\n"):
            connection.settimeout(max(until - time.monotonic(), 0.001))
            block = connection.recv(1 << 16)
            text += block
            if not block or len(text) > MOST_BYTES:
                return None
    except OSError:
        return None
    return _parsed(text)


def _parsed(text: bytes) -> dict[str, Any] | None:
    """A message; None if it is none."""
    try:
        message = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return message if isinstance(message, dict) else None
