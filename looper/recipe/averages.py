"""Exponential moving averages of the trained weights, for evaluation, prediction and export."""

import contextlib
from collections.abc import Iterator, Sequence

import tensorflow as tf

from looper.base.put_back import put_back


class WeightAverage:
    """Averages `a <- decay * a + (1 - decay) * w` after each update that was applied.

    The first update sets the averages of its weights to them, as `use_ema` of Keras' optimizers does; in a step with
    several updates, the weights of the later ones begin at what they were built with. The idea is Polyak and
    Juditsky's, "Acceleration of Stochastic Approximation by Averaging", 1992.

    Args:
        decay: between 0 and 1, such as 0.999.

    Example:
        >>> weight = tf.Variable([1.0]); average = WeightAverage(0.5); average.build([weight])
        >>> average.update([weight], tf.distribute.get_strategy()); _ = weight.assign([2.0])
        >>> average.update([weight], tf.distribute.get_strategy())
        >>> with average.swapped_in(tf.distribute.get_strategy()):
        ...     print(weight.numpy())
        [1.5]
        >>> weight.numpy()
        array([2.], dtype=float32)
    """

    def __init__(self, decay: float) -> None:
        self.decay = decay
        self._updates = tf.Variable(0, dtype=tf.int64, trainable=False, name="updates")
        self._weights: list[tf.Variable] = []
        self._averages: dict[int, tf.Variable] = {}

    @property
    def updates(self) -> tf.Variable:
        """How many updates were taken into account, int64 scalar. Must survive a restart, as the averages."""
        return self._updates

    @property
    def averages(self) -> dict[int, tf.Variable]:
        """The averages by the ids of their weights."""
        return dict(self._averages)

    def build(self, weights: Sequence[tf.Variable]) -> None:
        """Makes averages for the weights that have none yet. Call it in the strategy's scope."""
        for weight in weights:
            if id(weight) not in self._averages:
                name = weight.name.split(":")[0].split("/")[-1]
                self._averages[id(weight)] = tf.Variable(weight, trainable=False, name=name)
                self._weights.append(weight)

    def reset(self) -> None:
        """Begins again from the weights as they are."""
        self._updates.assign(0)
        for weight in self._weights:
            self._averages[id(weight)].assign(weight)

    def update(self, weights: Sequence[tf.Variable], strategy: tf.distribute.Strategy) -> None:
        """Takes weights that were just updated into account. In cross-replica context, if there are replicas."""
        decay = tf.where(self._updates > 0, tf.constant(self.decay, tf.float64), 0.0)

        def move(average: tf.Variable, weight: tf.Tensor) -> None:
            momentum = tf.cast(decay, average.dtype)
            average.assign(momentum * average + (1.0 - momentum) * weight)

        for weight in weights:
            average = self._averages[id(weight)]
            if strategy.num_replicas_in_sync == 1:
                move(average, weight)
            else:
                strategy.extended.update(average, move, args=(weight,), group=False)
        self._updates.assign_add(1)

    @contextlib.contextmanager
    def swapped_in(self, strategy: tf.distribute.Strategy) -> Iterator[None]:
        """Inside the `with`, the weights are their averages; after it, they are themselves again."""
        began = int(self._updates.read_value()) > 0  # before that the weights may have been set anew
        pairs: list[tuple[tf.Variable, tf.Variable]] = []
        for weight in self._weights if began else ():
            both = (weight, self._averages[id(weight)])
            pairs += zip(*map(strategy.experimental_local_results, both), strict=True)
        with put_back(copy for copy, _ in pairs):
            for copy, average in pairs:
                copy.assign(average)
            yield
