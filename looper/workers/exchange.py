"""The exchange between the workers of a job between executions, by TensorFlow's own collectives.

All workers call the same methods in the same order, as they run the same program. What depends on a clock, a signal or
anything else that may differ is told by the chief, so that it does not.
"""

import contextlib
import functools
import itertools
import json
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from looper.base.differences import differences
from looper.base.errors import InputError, PeerLostError, StepError
from looper.workers.cluster import Cluster
from looper.workers.peers import lost_peer


class Workers:
    """This worker, and the others. Alone, everything is answered at once.

    Attributes:
        rank: of this worker; the chief's is 0.
        size: how many there are.
        replicas: of each worker.
        job: a name that all workers of this start of the job share, and no other job has.

    Args:
        strategy: the job's.
        cluster: where the workers are, or None if there is one.

    Example:
        >>> alone = Workers(tf.distribute.get_strategy(), None)
        >>> alone.is_chief, alone.gather([1.5, 2.0]).tolist(), alone.texts("hello")
        (True, [[1.5, 2.0]], ['hello'])
    """

    def __init__(self, strategy: tf.distribute.Strategy, cluster: Cluster | None) -> None:
        self._strategy, self._cluster = strategy, cluster
        self.rank, self.size = (0, 1) if cluster is None else (cluster.rank, cluster.size)
        self.replicas = strategy.num_replicas_in_sync // self.size
        self.job = self.texts(uuid.uuid4().hex[:8])[0]
        self._numbers = itertools.count()

    @property
    def is_chief(self) -> bool:
        """Whether this is the worker that writes and decides."""
        return self.rank == 0

    @property
    def context(self) -> tf.distribute.InputContext:
        """Which part of the data is this worker's, for a `train_data` or `eval_data` that loads only that."""
        return tf.distribute.InputContext(self.size, self.rank, self.size * self.replicas)

    @property
    def first_replica(self) -> int:
        """The first of this worker's replicas among all."""
        return self.rank * self.replicas

    def describe(self, rank: int) -> str:
        """A worker's name in messages."""
        return "worker 0" if self._cluster is None else self._cluster.describe(rank)

    def tag(self) -> str:
        """A name that the workers share, another one at each call, such as of a file that they write together."""
        return f"{self.job}-{next(self._numbers)}"

    def gather(self, values: Sequence[float]) -> np.ndarray:
        """Each worker's values, float64 `[workers, values]`."""
        own = np.asarray(values, np.float64)
        if self.size == 1:
            return own[None]
        everything = np.zeros((self.size, own.size))
        everything[self.rank] = own
        return self._sum(tf.constant(everything.ravel())).numpy().reshape(everything.shape)

    def from_chief(self, value: float) -> float:
        """The chief's value."""
        return float(self.gather([value])[0, 0])

    def mean_over_replicas(self, sums: tf.Tensor) -> tf.Tensor:
        """The mean over all replicas; `sums`, float64 `[values]`, are those over this worker's."""
        return (sums if self.size == 1 else self._sum(sums)) / (self.size * self.replicas)

    def texts(self, text: str) -> list[str]:
        """Each worker's text."""
        if self.size == 1:
            return [text]
        own = np.frombuffer(text.encode(), np.uint8)
        lengths = self.gather([own.size])[:, 0].astype(int)
        padded = np.zeros(max(lengths.max(), 1))
        padded[: own.size] = own
        rows = self.gather(padded).astype(np.uint8)
        return [row[:length].tobytes().decode() for row, length in zip(rows, lengths, strict=True)]

    def wait(self) -> None:
        """Returns when all workers have come here."""
        self.gather([0.0])

    def by_chief(self, act: Callable[[], Any]) -> None:
        """Has the chief do something; what it finds wrong with the input is an error on all workers."""
        wrong = ""
        if self.is_chief:
            try:
                act()
            except InputError as error:
                wrong = str(error)
        if said := self.texts(wrong)[0]:
            raise InputError(said)

    def check_same(self, describe: Callable[[], Mapping[str, Any]]) -> None:
        """Raises `InputError`, on all workers, if what they were started with differs; JSON values by name.

        Alone, nothing is described.
        """
        if self.size == 1:
            return
        texts = self.texts(json.dumps(describe(), default=str))
        for rank, text in enumerate(texts):
            if text != texts[0]:
                different = differences(json.loads(texts[0]), json.loads(text), words=("is", f"on worker {rank} it is"))
                shown = "; ".join(different[:6])
                raise InputError(
                    f"{self.describe(rank)} was started otherwise than worker 0: {shown}. Start all workers with the "
                    "same recipe and the same options."
                )

    def lost(self, error: BaseException, where: str) -> PeerLostError | None:
        """The error to raise if one of TensorFlow comes of another worker's end; None if it does not."""
        return lost_peer(error, where, self._cluster)

    @contextlib.contextmanager
    def watching(self, where: str) -> Iterator[None]:
        """Inside the `with`, TensorFlow's errors about a lost worker become a `PeerLostError` that names it."""
        try:
            yield
        except (tf.errors.OpError, StepError) as error:
            cause = error.__cause__ if isinstance(error, StepError) else error
            lost = self.lost(cause, where)
            if lost is None:
                raise
            raise lost from cause

    def clock(self) -> "Clock":
        """A clock that is the same on all workers."""
        return Clock(self)

    def _sum(self, values: tf.Tensor) -> tf.Tensor:
        with self.watching("an exchange between steps"):
            return _summing(self._strategy, self.replicas)(values)


class Clock:
    """Seconds since some fixed moment, by the chief's clock as it was told last; alone, by the clock itself.

    Example:
        >>> clock = Workers(tf.distribute.get_strategy(), None).clock()
        >>> clock() <= clock()
        True
    """

    def __init__(self, workers: Workers) -> None:
        self._alone = workers.size == 1
        self._told = workers.from_chief(time.monotonic())

    def __call__(self) -> float:
        return time.monotonic() if self._alone else self._told

    def tell(self, now: float) -> None:
        """Takes the chief's time."""
        self._told = now


@functools.cache
def _summing(strategy: tf.distribute.Strategy, replicas: int) -> Callable[[tf.Tensor], tf.Tensor]:
    """Adds up a vector over the workers; the first replica of each contributes its worker's."""

    def on_replica(values: tf.Tensor) -> tf.Tensor:
        replica = tf.distribute.get_replica_context().replica_id_in_sync_group
        return tf.where(replica % replicas == 0, values, tf.zeros_like(values))

    @functools.partial(tf.function, input_signature=[tf.TensorSpec([None], tf.float64)], autograph=False)
    def summed(values: tf.Tensor) -> tf.Tensor:
        return strategy.reduce(tf.distribute.ReduceOp.SUM, strategy.run(on_replica, args=(values,)), axis=None)

    return summed
