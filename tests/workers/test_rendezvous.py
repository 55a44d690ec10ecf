"""Workers find each other before TensorFlow starts, or all say in one line who is missing or unlike."""

import concurrent.futures
import contextlib
import json
import socket
import time
from pathlib import Path

import pytest

from looper.base.errors import InputError
from looper.workers import rendezvous
from looper.workers.cluster import PORTS, Cluster, Share, free_ports, local_share, read_cluster


def cluster(ports, rank):
    return Cluster(tuple(f"127.0.0.1:{port}" for port in ports), rank)


def meet_all(clusters, seconds):
    """What each of these workers, in a thread of its own, is told; None if all is well."""

    def meet(one):
        try:
            rendezvous.meet(one, "1 CPU", seconds)
        except InputError as error:
            return str(error)
        return None

    with concurrent.futures.ThreadPoolExecutor(len(clusters)) as threads:
        return list(threads.map(meet, clusters))


@pytest.mark.parametrize("workers", [2, 4])
def test_all_there(workers):
    ports = free_ports(workers)
    assert meet_all([cluster(ports, rank) for rank in range(workers)], 30) == [None] * workers
    for port in ports:  # TensorFlow's servers will want them
        socket.create_server(("127.0.0.1", port)).close()


def test_a_missing_worker_is_named_by_all():
    ports = free_ports(3)
    told = meet_all([cluster(ports, rank) for rank in (0, 1)], 1.0)
    assert told[0] == told[1]
    assert told[0].startswith(f"after 1 s there is no word of worker 2 (127.0.0.1:{ports[2]}): start it")


def test_a_missing_chief_is_named():
    ports = free_ports(2)
    (told,) = meet_all([cluster(ports, 1)], 0.5)
    assert told.startswith(f"after 0.5 s worker 0 (127.0.0.1:{ports[0]}), the chief, does not answer")


def test_a_port_in_use():
    ports = free_ports(2)
    with (
        socket.create_server(("", ports[0])),
        pytest.raises(InputError, match=r"worker 0 .* its port cannot be listened"),
    ):
        rendezvous.meet(cluster(ports, 0), "1 CPU", 1.0)


def test_a_wire_between_two_workers_is_missing():
    """Worker 1 reaches the chief, and not the address that worker 2 is said to have."""
    ports = free_ports(4)

    class Blocked(Cluster):
        def place(self, rank):
            return ("127.0.0.1", ports[3]) if rank == 2 else super().place(rank)

    clusters = [cluster(ports[:3], rank) for rank in range(3)]
    clusters[1] = Blocked(clusters[1].addresses, 1)
    told = meet_all(clusters, 30)
    assert len(set(told)) == 1
    assert told[0].startswith(f"worker 1 (127.0.0.1:{ports[1]}) cannot reach worker 2 (127.0.0.1:{ports[2]})")


def test_two_workers_with_one_index_or_another_list():
    ports = free_ports(3)
    told = meet_all([cluster(ports, 0), Cluster((*cluster(ports, 0).addresses[:2], "127.0.0.1:1"), 1)], 30)
    assert told[0] == told[1] and "worker 1 was started for the cluster" in told[0]


def test_other_devices():
    ports = free_ports(2)

    def meet(rank):
        try:
            rendezvous.meet(cluster(ports, rank), ("2 GPU", "1 CPU")[rank], 30)
        except InputError as error:
            return str(error)
        return None

    with concurrent.futures.ThreadPoolExecutor(2) as threads:
        told = list(threads.map(meet, range(2)))
    assert told[0] == told[1] and "has 1 CPU, and worker 0 has 2 GPU" in told[0]


def test_a_worker_that_starts_anew_while_others_are_awaited():
    """Its first process has reported and gone; the next takes its place, and only worker 2 is missed."""
    ports = free_ports(3)
    with concurrent.futures.ThreadPoolExecutor(1) as threads:
        chief = threads.submit(rendezvous.meet, cluster(ports, 0), "1 CPU", 2.0)
        reported = 0
        while reported < 2:
            try:
                connection = socket.create_connection(("127.0.0.1", ports[0]), 1)
            except OSError:
                continue  # the chief does not listen yet
            with connection:
                rendezvous._send(connection, rendezvous._greeting(cluster(ports, 1), "1 CPU"))
            reported += 1
        with pytest.raises(InputError, match=r"no word of worker 2"):
            chief.result()


def test_other_versions(monkeypatch):
    ports, greeting = free_ports(2), rendezvous._greeting

    def with_old_keras(one, devices):
        found = greeting(one, devices)
        return found | {"versions": found["versions"] | {"keras": "3.0.0"}}

    monkeypatch.setattr(rendezvous, "_greeting", with_old_keras)
    told = meet_all([cluster(ports, rank) for rank in (0, 1)], 30)
    assert told[0] == told[1] and "has keras 3.0.0, and worker 0 has" in told[0]


def test_strangers_who_knock_are_ignored():
    ports = free_ports(2)
    with concurrent.futures.ThreadPoolExecutor(2) as threads:
        chief = threads.submit(rendezvous.meet, cluster(ports, 0), "1 CPU", 30)
        while True:
            try:
                knock = socket.create_connection(("127.0.0.1", ports[0]), 1)
                break
            except OSError:
                continue
        with knock:
            knock.sendall(b"GET / HTTP/1.0\r\n\r\n")
        threads.submit(rendezvous.meet, cluster(ports, 1), "1 CPU", 30).result()
        chief.result()


def knock(port):
    """A connection to a chief, as soon as it listens."""
    while True:
        try:
            return socket.create_connection(("127.0.0.1", port), 1)
        except OSError:
            continue


def test_strangers_are_read_beside_each_other_ignored_and_counted(monkeypatch):
    """Silent ones, slow ones, long ones, wrong types, another cluster, no token: none takes a second of the meeting."""
    monkeypatch.setenv("LOOPER_TOKEN", "secret")
    ports = free_ports(2)
    good = rendezvous._greeting(cluster(ports, 1), "1 CPU")
    said = [
        b"",
        b"{",
        b"GET / HTTP/1.0\r\n\r\n",
        b"[" * 100_000 + b"\n",
        b"x" * (rendezvous.MOST_BYTES + 10),
        b"5\n",
        *(json.dumps({**good, "rank": rank}).encode() + b"\n" for rank in (0, 2, -1, "1", 1.0, None, True, [1])),
        *(json.dumps({**good, "addresses": addresses}).encode() + b"\n" for addresses in (None, [5], ["a:1"], "a")),
        *(json.dumps({**good, "token": token}).encode() + b"\n" for token in ("", "secreT", 5, None)),
        json.dumps({**good, "versions": []}).encode() + b"\n",
        json.dumps({**good, "devices": {}}).encode() + b"\n",
        json.dumps({key: good[key] for key in ("rank", "addresses")}).encode() + b"\n",
    ]
    began = time.monotonic()
    with concurrent.futures.ThreadPoolExecutor(2) as threads, contextlib.ExitStack() as stack:
        chief = threads.submit(rendezvous.meet, cluster(ports, 0), "1 CPU", 30)
        for text in said:
            with contextlib.suppress(OSError):  # the chief may have closed it
                stack.enter_context(knock(ports[0])).sendall(text)
        threads.submit(rendezvous.meet, cluster(ports, 1), "1 CPU", 30).result()
        chief.result()
    assert time.monotonic() - began < rendezvous.ANSWER_SECONDS  # seconds: less than a single silent one may take


def test_a_worker_without_the_token_is_missed_with_a_hint(monkeypatch):
    monkeypatch.setenv("LOOPER_TOKEN", "secret")
    ports = free_ports(2)
    greeting = {**rendezvous._greeting(cluster(ports, 1), "1 CPU"), "token": "other"}
    with concurrent.futures.ThreadPoolExecutor(1) as threads:
        chief = threads.submit(rendezvous.meet, cluster(ports, 0), "1 CPU", 1.0)
        with knock(ports[0]) as connection:
            rendezvous._send(connection, greeting)
            with pytest.raises(
                InputError, match=r"no word of worker 1 .* \(1 that are no workers spoke to this port\)"
            ):
                chief.result()


def test_a_worker_listens_at_its_own_address_alone(capfd):
    port, other = free_ports(2)
    one = Cluster((f"127.0.0.1:{port}", f"127.0.0.2:{other}"), 0)
    with rendezvous._listening(one) as server:
        assert server.getsockname()[0] == "127.0.0.1"
    elsewhere = Cluster((f"192.0.2.7:{port}", f"127.0.0.2:{other}"), 0)  # an address for documentation
    with rendezvous._listening(elsewhere) as server:
        assert server.getsockname()[0] in ("::", "0.0.0.0")
    assert "192.0.2.7 is no address of this machine: listening on all." in capfd.readouterr().err


GOOD = {"cluster": {"worker": ["a:1", "b:2"]}, "task": {"type": "worker", "index": 1}}


@pytest.mark.parametrize(
    "given, said",
    [
        ("{", "it is not JSON"),
        ([1], "it is not a JSON object"),
        ({"task": GOOD["task"]}, '"cluster" is missing'),
        (GOOD | {"cluster": {"worker": ["a:1"], "ps": ["b:2"]}}, '"ps" has no place in synchronous training'),
        (GOOD | {"cluster": {"worker": ["a", "b:2"]}}, 'expected a list of "host:port"'),
        (GOOD | {"cluster": {"worker": "a:1"}}, 'expected a list of "host:port"'),
        (GOOD | {"cluster": {"worker": ["a:1", "a:1"]}}, "a:1 is the address of two workers"),
        (GOOD | {"task": {"type": "worker", "index": 2}}, '"task" is worker 2, and the cluster has worker 0, worker 1'),
        (GOOD | {"task": {"type": "worker", "index": "1"}}, "not a whole number"),
        ({"cluster": GOOD["cluster"]}, '"task" is missing'),
    ],
)
def test_malformed_tf_config(given, said):
    text = given if isinstance(given, str) else json.dumps(given)
    with pytest.raises(InputError) as error:
        read_cluster({"TF_CONFIG": text})
    assert said in str(error.value) and "Expected" in str(error.value) and "\n" not in str(error.value)


def test_clusters():
    assert (
        read_cluster({}) is None
        and read_cluster({"TF_CONFIG": " "}) is None
        and read_cluster({"TF_CONFIG": "{}"}) is None
    )
    assert read_cluster({"TF_CONFIG": json.dumps(GOOD)}) == Cluster(("a:1", "b:2"), 1)
    alone = {"cluster": {"worker": ["a:1"]}, "task": {"type": "worker", "index": 0}}
    assert read_cluster({"TF_CONFIG": json.dumps(alone)}) is None
    with_chief = {"cluster": {"worker": ["b:2"], "chief": ["a:1"]}, "task": {"type": "chief", "index": 0}}
    assert read_cluster({"TF_CONFIG": json.dumps(with_chief)}) == Cluster(("a:1", "b:2"), 0)


SLURM = {
    "SLURM_PROCID": "3",
    "SLURM_LOCALID": "1",
    "SLURM_STEP_NUM_TASKS": "4",
    "SLURM_STEP_NODELIST": "gpu[07-08]",
    "SLURM_STEP_TASKS_PER_NODE": "2(x2)",
}


def test_slurm(monkeypatch):
    for name, value in SLURM.items():  # TensorFlow's resolver reads the process's own
        monkeypatch.setenv(name, value)
    found = read_cluster()
    assert found == Cluster(("gpu07:8888", "gpu07:8889", "gpu08:8888", "gpu08:8889"), 3, "SLURM")
    assert local_share() == Share(1, 2, gpus=True)
    monkeypatch.setenv("SLURM_GPUS_PER_TASK", "1")  # then SLURM has bound each task to its own
    assert local_share() == Share(1, 2)
    monkeypatch.setenv("LOOPER_PORT", "9000")
    assert read_cluster().addresses[1] == "gpu07:9001"
    monkeypatch.delenv("SLURM_STEP_NODELIST")
    with pytest.raises(InputError, match=r"looks like a task of a SLURM step.*srun"):
        read_cluster()
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "1")  # sbatch without srun: one process
    assert read_cluster() is None


def test_free_ports_are_not_those_that_any_connection_may_get(monkeypatch):
    ports = free_ports(50)
    assert len(set(ports)) == 50
    assert set(ports) <= set(PORTS)
    first = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    if first > PORTS[-1]:  # an administrator may have set it otherwise
        with socket.create_server(("127.0.0.1", 0)) as server:
            assert server.getsockname()[1] not in PORTS
    with socket.create_server(("127.0.0.1", ports[0])):
        monkeypatch.setattr("looper.workers.cluster.PORTS", sorted(ports[:2]))
        assert free_ports(1) == [ports[1]]
        with pytest.raises(InputError, match=r"2 workers need a port each, and .* 1 are free"):
            free_ports(2)
