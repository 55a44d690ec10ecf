"""The devices, workers and number format that a trainer runs on."""

import contextlib
from collections.abc import Iterator

import tensorflow as tf

from looper.base.errors import InputError
from looper.base.options import TrainerOptions
from looper.base.own_world import ONE_AT_A_TIME, OwnRandom
from looper.recipe import precision
from looper.workers.exchange import Workers
from looper.workers.strategies import cluster_of, resolve


class Devices:
    """Where one trainer runs, and the worlds that its models are made and its steps are traced in.

    Attributes:
        strategy: the strategy.
        workers: this worker and the others.
        random: the trainer's own stream of random numbers.
        precision: the dtype policy's name.

    Args:
        options: the trainer's.

    Raises:
        InputError: if there are no such devices.
    """

    def __init__(self, options: TrainerOptions) -> None:
        if options.deterministic:
            tf.config.experimental.enable_op_determinism()
        self.strategy = resolve(options.strategy, options.devices)  # before anything that starts TensorFlow
        self.workers = Workers(self.strategy, cluster_of(self.strategy))
        self.precision = options.precision
        self.random = OwnRandom(options.seed)

    @property
    def replicas(self) -> int:
        """How many replicas there are, on all workers."""
        return self.strategy.num_replicas_in_sync

    @property
    def row_dtype(self) -> tf.DType:
        """The dtype of the rows that steps return."""
        return tf.float64 if self.precision == "float64" else tf.float32

    def check_mode(self, execution: str) -> None:
        """Raises `InputError` if a mode is not for so many replicas."""
        if execution == "xla_loop" and self.replicas > 1:
            raise InputError(
                "execution='xla_loop' is for one device, as XLA has no collectives in a loop, and there are "
                f"{self.replicas} replicas: use 'auto' or 'xla_step'."
            )

    @contextlib.contextmanager
    def scope(self) -> Iterator[None]:
        """Where models and optimizers are made: the strategy's scope, the dtype policy, own random numbers."""
        with self.random.entered(), self.strategy.scope(), self.policy():
            yield

    @contextlib.contextmanager
    def policy(self) -> Iterator[None]:
        """Inside it, the dtype policy and floatx are the trainer's."""
        with ONE_AT_A_TIME, precision.scope(self.precision):
            yield
