"""A peer as several workers on this machine, each a process of its own."""

import concurrent.futures
import contextlib
import dataclasses
import tempfile
from collections.abc import Callable
from typing import Any

from benchmarks.peers.process import Process, Size
from looper.workers.cluster import local_cluster


class Group:
    """Workers that train together. Use it in a `with`, as a `Process`; one worker is a process without a cluster.

    Attributes:
        first: the chief's answer to the first burst.

    Args:
        name: of `ON_REPLICAS`.
        size: of the task.
        workers: how many there are.
        limit: the most seconds to wait for an answer.

    Raises:
        PeerError: in the cases of a `Process`: what the worker that failed first said.
    """

    def __init__(self, name: str, size: Size, workers: int, limit: float = 300) -> None:
        self._given = name, size, workers, limit
        self._running = contextlib.ExitStack()
        self._processes: list[Process] = []

    def __enter__(self) -> "Group":
        name, size, workers, limit = self._given
        with contextlib.ExitStack() as starting:
            workdir = starting.enter_context(tempfile.TemporaryDirectory(ignore_cleanup_errors=True))
            size = dataclasses.replace(size, workdir=workdir)
            for environment in clusters(workers):
                self._processes.append(Process(name, size, limit, environment))
                starting.callback(self._processes[-1].__exit__)
            self.first = self._together(lambda process: process.__enter__().first)[0]
            self._running = starting.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._running.close()

    def burst(self) -> dict[str, float]:
        """Has it train a burst: the seconds of the slowest worker, the chief's loss."""
        answers = self._together(Process.burst)
        return {**answers[0], "seconds": max(answer["seconds"] for answer in answers)}

    def close(self) -> float:
        """Ends it: the most memory that was resident, in MiB, over all workers."""
        return sum(self._together(Process.close))

    def _together(self, act: Callable[[Process], Any]) -> list[Any]:
        """Does something with all workers at once. If one fails, the others are ended: they would wait for it."""
        with concurrent.futures.ThreadPoolExecutor(len(self._processes)) as pool:
            tasks = [pool.submit(act, process) for process in self._processes]
            done, _ = concurrent.futures.wait(tasks, return_when=concurrent.futures.FIRST_EXCEPTION)
            failed = [task for task in tasks if task in done and task.exception() is not None]
            if failed:
                for process in self._processes:
                    process.kill()
                raise failed[0].exception()
            return [task.result() for task in tasks]


def clusters(workers: int) -> list[dict[str, str]]:
    """What to add to the environment of each worker: a cluster on ports that nobody listens on now.

    Example:
        >>> clusters(1), len(clusters(2))
        ([{}], 2)
    """
    if workers == 1:
        return [{}]
    return [{"TF_CONFIG": config} for config in local_cluster(workers)]
