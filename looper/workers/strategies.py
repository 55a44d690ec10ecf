"""From the options `strategy` and `devices` to one `tf.distribute.Strategy` per device set and process."""

import functools
import os
import signal
import threading

import tensorflow as tf

from looper.base.errors import InputError, check_choice, first_line
from looper.base.options import STRATEGIES
from looper.workers.cluster import Cluster, Share, in_cluster, local_share, read_cluster
from looper.workers.rendezvous import meet


def resolve(strategy: str | tf.distribute.Strategy, devices: int | None) -> tf.distribute.Strategy:
    """The strategy to run on.

    Args:
        strategy: `"one_device"`; `"mirrored"`; `"multi_worker"`, in a cluster that `TF_CONFIG` or SLURM tells of;
            `"tpu"`; `"auto"`: multi_worker in a cluster, or else mirrored where there are several GPUs, or else
            one_device; or a `tf.distribute.Strategy` of your own.
        devices: how many devices to mirror over, on each worker (default: all GPUs, or 2). Without GPUs, the CPU is
            split into so many logical devices, which TensorFlow allows only before its first operation.

    Raises:
        InputError: if there are fewer devices, it is too late to split the CPU or to join a cluster, or not all
            workers of the cluster are there within a bounded time.
    """
    if isinstance(strategy, tf.distribute.Strategy):
        if devices is not None:
            raise InputError(f"devices={devices} with a strategy object: it has its devices already.")
        return strategy
    check_choice("strategy", strategy, STRATEGIES)
    cluster = read_cluster()
    if cluster is not None and in_cluster(strategy):
        return _multi_worker(cluster, devices)
    if cluster is not None and strategy != "tpu":
        raise InputError(
            f"strategy={strategy!r} in a cluster of {cluster.size} workers ({cluster.source}): each would train the "
            "whole alone, into the same workdir. Leave strategy out, or start one process."
        )
    if strategy == "multi_worker":
        raise InputError(
            "strategy='multi_worker' needs a cluster of two workers or more, and there is none: start with "
            "`looper run RECIPE --workers 2`, set TF_CONFIG, or use srun."
        )
    if strategy == "tpu":
        return _tpu()
    # Not list_logical_devices: that starts TensorFlow, and then the CPU cannot be split.
    gpus = tf.config.list_physical_devices("GPU")
    if strategy == "one_device" or (strategy == "auto" and devices is None and len(gpus) < 2):
        if devices not in (None, 1):
            raise InputError(f"strategy='one_device' with devices={devices}: use strategy='mirrored'.")
        return tf.distribute.get_strategy()
    if gpus:
        count = devices or len(gpus)
        if count > len(gpus):
            raise InputError(f"devices={count}: this machine has {len(gpus)} GPUs.")
        return _mirrored(tuple(device.name for device in tf.config.list_logical_devices("GPU")[:count]))
    return _mirrored(_split_cpu(devices or 2))


def cluster_of(strategy: tf.distribute.Strategy) -> Cluster | None:
    """The cluster of a strategy, or None if it has one worker."""
    if not isinstance(strategy, tf.distribute.MultiWorkerMirroredStrategy):
        return None
    resolver = strategy.cluster_resolver
    jobs = resolver.cluster_spec().as_dict()
    order = [(job, i) for job in ("chief", "worker") for i in range(len(jobs.get(job, [])))]
    if len(order) < 2:
        return None
    rank = order.index((resolver.task_type, resolver.task_id))
    return Cluster(tuple(jobs[job][i] for job, i in order), rank, "the strategy's resolver")


@functools.cache
def _mirrored(devices: tuple[str, ...]) -> tf.distribute.MirroredStrategy:
    """One object per device set: TensorFlow's collectives fail if a process makes a second."""
    return tf.distribute.MirroredStrategy(list(devices))


@functools.cache
def _multi_worker(cluster: Cluster, devices: int | None) -> tf.distribute.MultiWorkerMirroredStrategy:
    """One object per process: TensorFlow cannot join a cluster twice."""
    if _has_started():  # nobody should wait for a worker that will fail
        raise InputError(
            "strategy='multi_worker': TensorFlow has already started. Make the Trainer before any TensorFlow operation "
            "(such as keras.Input or tf.constant), or use `looper run`."
        )
    meet(cluster, _take_share(local_share(), devices))
    # all are called "worker", the first of them the chief
    resolver = tf.distribute.cluster_resolver.SimpleClusterResolver(
        tf.train.ClusterSpec({"worker": list(cluster.addresses)}),
        task_type="worker",
        task_id=cluster.rank,
        rpc_layer="grpc",
    )
    handler = signal.getsignal(signal.SIGTERM)
    strategy = tf.distribute.MultiWorkerMirroredStrategy(cluster_resolver=resolver)
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, handler)  # TensorFlow's servers take it: a worker could not be ended before `fit`
    return strategy


def _has_started() -> bool:
    """Whether TensorFlow's devices are fixed. It has no question for that: it refuses to change its threads then."""
    threads = tf.config.threading.get_inter_op_parallelism_threads()
    try:
        tf.config.threading.set_inter_op_parallelism_threads(threads + 1)
    except RuntimeError:
        return True
    tf.config.threading.set_inter_op_parallelism_threads(threads)
    return False


def _take_share(share: Share, devices: int | None) -> str:
    """Keeps this worker to its part of the machine's GPUs and cores. Returns what it computes on, such as "2 GPU"."""
    gpus = own = tf.config.list_physical_devices("GPU")
    if share.gpus and gpus:
        each = len(gpus) // share.workers
        if not each:
            raise InputError(
                f"{share.workers} workers on this machine, and {len(gpus)} GPU(s): start as many workers as there are "
                "GPUs or fewer; under SLURM, give each task its own with --gpus-per-task."
            )
        own = gpus[share.rank * each : (share.rank + 1) * each]
    if devices is not None:
        if not gpus and devices > 1:
            raise InputError(f"devices={devices} with strategy='multi_worker': without GPUs a worker has one CPU.")
        if gpus and devices > len(own):
            raise InputError(f"devices={devices}: this worker has {len(own)} of the machine's {len(gpus)} GPUs.")
        own = own[:devices]
    if len(own) < len(gpus):
        tf.config.set_visible_devices(own, "GPU")
    if share.cores and not own and share.workers > 1:
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        threads = max(1, cores // share.workers)
        tf.config.threading.set_intra_op_parallelism_threads(threads)
        tf.config.threading.set_inter_op_parallelism_threads(max(2, threads))
    return f"{len(own)} GPU" if own else "1 CPU"


def _tpu() -> tf.distribute.TPUStrategy:
    try:
        # without a name: the chips of a TPU VM
        resolver = tf.distribute.cluster_resolver.TPUClusterResolver.connect(os.environ.get("TPU_NAME", "local"))
    except (ValueError, tf.errors.OpError, OSError) as error:
        raise InputError(f"strategy='tpu': no TPU is found here ({first_line(error)}).") from None
    return tf.distribute.TPUStrategy(resolver)


def _split_cpu(count: int) -> tuple[str, ...]:
    physical = tf.config.list_physical_devices("CPU")[0]
    try:
        if tf.config.get_logical_device_configuration(physical) is None:
            tf.config.set_logical_device_configuration(physical, [tf.config.LogicalDeviceConfiguration()] * count)
    except RuntimeError:
        pass  # TensorFlow has started; the devices there are decide
    cpus = tf.config.list_logical_devices("CPU")
    if len(cpus) < count:
        raise InputError(
            f"strategy='mirrored' with devices={count}: TensorFlow has already started with {len(cpus)} CPU device(s). "
            "Make the Trainer before any TensorFlow operation (such as keras.Input or tf.constant), or use "
            "`looper run`."
        )
    return tuple(cpu.name for cpu in cpus[:count])
