"""The processes of one job: where they are, and which of them this one is. Free of TensorFlow, but for SLURM."""

import contextlib
import dataclasses
import json
import os
import random
import socket
from collections.abc import Mapping, Sequence
from typing import Any

from looper.base.errors import InputError

EXAMPLE = (
    '{"cluster": {"worker": ["10.0.0.1:2222", "10.0.0.2:2222"]}, "task": {"type": "worker", "index": 0}}, with '
    "another index on each worker"
)


PORT = 8888
"""Of a node's first worker in a SLURM step, the next one has the next; LOOPER_PORT sets another."""


@dataclasses.dataclass(frozen=True)
class Cluster:
    """A job of several workers, as this one sees it.

    Attributes:
        addresses: "host:port" of each worker, the chief's first.
        rank: which of them this process is; 0 is the chief.
        source: what it was read from: "TF_CONFIG" or "SLURM".

    Example:
        >>> Cluster(("10.0.0.1:2222", "10.0.0.2:2222"), 1).describe(0)
        'worker 0 (10.0.0.1:2222)'
    """

    addresses: tuple[str, ...]
    rank: int
    source: str = "TF_CONFIG"

    @property
    def size(self) -> int:
        return len(self.addresses)

    def describe(self, rank: int) -> str:
        """A worker's name in messages."""
        return f"worker {rank} ({self.addresses[rank]})"

    def place(self, rank: int) -> tuple[str, int]:
        """A worker's host and port."""
        host, _, port = self.addresses[rank].rpartition(":")
        return host.strip("[]"), int(port)


def read_cluster(environment: Mapping[str, str] = os.environ) -> Cluster | None:
    """The cluster that the environment tells of, or None if this process is alone.

    `TF_CONFIG` comes first: Kubernetes' training operators and `looper run --workers` set it. A job of one worker is
    none. Otherwise the tasks of a SLURM step are the workers, as TensorFlow's own resolver finds them.

    Raises:
        InputError: if TF_CONFIG is not one that a synchronous job can have, or SLURM's variables are incomplete.

    Example:
        >>> read_cluster({"TF_CONFIG": '{"cluster": {"chief": ["a:1"], "worker": ["b:1"]}, '
        ...                            '"task": {"type": "worker", "index": 0}}'})
        Cluster(addresses=('a:1', 'b:1'), rank=1, source='TF_CONFIG')
    """
    if environment.get("TF_CONFIG", "").strip():
        return _from_tf_config(environment["TF_CONFIG"])
    tasks = environment.get("SLURM_STEP_NUM_TASKS", "1")
    if "SLURM_PROCID" in environment and tasks.isdecimal() and int(tasks) > 1:
        return _from_slurm(environment, int(tasks))
    return None


def in_cluster(strategy: str, environment: Mapping[str, str] = os.environ) -> bool:
    """Whether the option `strategy` means the cluster that the environment tells of.

    Example:
        >>> in_cluster("auto", {})
        False
    """
    return strategy in ("auto", "multi_worker") and read_cluster(environment) is not None


def _from_tf_config(text: str) -> Cluster | None:
    try:
        given = json.loads(text)
    except ValueError as error:
        raise _malformed(text, f"it is not JSON ({error})") from None
    if not isinstance(given, dict):
        raise _malformed(text, "it is not a JSON object")
    jobs, task = given.get("cluster"), given.get("task")
    if jobs is None and task is None:
        return None
    if not isinstance(jobs, dict) or not jobs:
        raise _malformed(text, '"cluster" is missing')
    others = sorted(set(jobs) - {"chief", "master", "worker"})
    if others:
        raise _malformed(text, f'"{others[0]}" has no place in synchronous training: only "chief" and "worker" do')
    for job, addresses in jobs.items():
        if not isinstance(addresses, list) or not all(map(_is_address, addresses)):
            raise _malformed(text, f'"{job}" is {json.dumps(addresses)}; expected a list of "host:port"')
    order = [(job, i) for job in ("chief", "master", "worker") for i in range(len(jobs.get(job, [])))]
    addresses = tuple(jobs[job][i] for job, i in order)
    if len(set(addresses)) < len(addresses):
        twice = next(a for a in addresses if addresses.count(a) > 1)
        raise _malformed(text, f"{twice} is the address of two workers")
    if not isinstance(task, dict) or not isinstance(task.get("index", 0), int):
        raise _malformed(text, '"task" is missing, or its "index" is not a whole number')
    place = (task.get("type", "worker"), task.get("index", 0))
    if place not in order:
        named = ", ".join(f"{job} {i}" for job, i in order) or "none"
        raise _malformed(text, f'"task" is {place[0]} {place[1]}, and the cluster has {named}')
    return Cluster(addresses, order.index(place)) if len(addresses) > 1 else None


def _is_address(address: Any) -> bool:
    host, _, port = address.rpartition(":") if isinstance(address, str) else ("", "", "")
    return bool(host) and port.isdecimal() and 0 < int(port) < 65536


def _malformed(text: str, why: str) -> InputError:
    shown = text if len(text) < 200 else text[:200] + "..."
    return InputError(f"TF_CONFIG: {why}. Expected {EXAMPLE}. It is {shown}")


def _from_slurm(environment: Mapping[str, str], tasks: int) -> Cluster:
    import tensorflow as tf

    try:
        # which GPUs a task may use is not asked of the resolver: SLURM binds them, or see `local_share`
        resolver = tf.distribute.cluster_resolver.SlurmClusterResolver(
            port_base=int(environment.get("LOOPER_PORT", PORT)),
            gpus_per_node=tasks,
            gpus_per_task=1,
            auto_set_gpu=False,
        )
        addresses = tuple(resolver.cluster_spec().as_dict()["worker"])
        _, rank = resolver.get_task_info()
    except (RuntimeError, ValueError, KeyError) as error:
        raise InputError(
            f"this looks like a task of a SLURM step, and TensorFlow cannot find the others: {error} Start with srun."
        ) from None
    return Cluster(addresses, rank, "SLURM")


@dataclasses.dataclass(frozen=True)
class Share:
    """The share of a machine that is this worker's, where several run on it.

    Attributes:
        rank, workers: it is the `rank`-th of so many on this machine.
        cores, gpus: whether it has to keep to its part of the cores, and of the GPUs that it sees.
    """

    rank: int = 0
    workers: int = 1
    cores: bool = False
    gpus: bool = False


def local_share(environment: Mapping[str, str] = os.environ) -> Share:
    """This worker's share of the machine, by what `looper run --workers` or SLURM has set.

    SLURM binds a task to its cores, and with `--gpus-per-task` to its GPUs; without it all tasks see all of them.

    Example:
        >>> local_share({"LOOPER_LOCAL_RANK": "1", "LOOPER_LOCAL_WORKERS": "2"})
        Share(rank=1, workers=2, cores=True, gpus=True)
    """
    rank, workers = (environment.get(f"LOOPER_LOCAL_{name}", "") for name in ("RANK", "WORKERS"))
    if rank.isdecimal() and workers.isdecimal():
        return Share(int(rank), int(workers), cores=True, gpus=True)
    rank, workers = environment.get("SLURM_LOCALID", ""), environment.get("SLURM_STEP_TASKS_PER_NODE", "")
    workers = workers.partition("(")[0]  # "2(x4)": two tasks on each of four nodes
    if rank.isdecimal() and workers.isdecimal():
        return Share(int(rank), int(workers), gpus="SLURM_GPUS_PER_TASK" not in environment)
    return Share()


PORTS = range(10_000, 32_768)
"""Below those that systems give to whoever asks for any port (32768 on Linux, 49152 elsewhere): no connection that some
process opens between the choice of a port and its use gets it by chance."""


def free_ports(count: int) -> list[int]:
    """Ports of this machine that nobody has at this moment.

    Raises:
        InputError: if there are not so many.

    Example:
        >>> len(set(free_ports(3)))
        3
    """
    found: list[int] = []
    for port in random.SystemRandom().sample(PORTS, len(PORTS)):  # recipes may have set a seed
        with socket.socket() as one, contextlib.suppress(OSError):
            one.bind(("", port))
            found.append(port)
        if len(found) == count:
            return found
    raise InputError(f"{count} workers need a port each, and from {PORTS[0]} to {PORTS[-1]} {len(found)} are free.")


def tf_config(addresses: Sequence[str], rank: int) -> str:
    """The `TF_CONFIG` of one worker of a cluster.

    Example:
        >>> read_cluster({"TF_CONFIG": tf_config(["a:1", "b:1"], 1)})
        Cluster(addresses=('a:1', 'b:1'), rank=1, source='TF_CONFIG')
    """
    return json.dumps({"cluster": {"worker": list(addresses)}, "task": {"type": "worker", "index": rank}})


def local_cluster(workers: int) -> list[str]:
    """The `TF_CONFIG` of each worker of a new cluster on this machine."""
    addresses = [f"127.0.0.1:{port}" for port in free_ports(workers)]
    return [tf_config(addresses, rank) for rank in range(workers)]
