"""Exact means of what steps return: packed into one row per step on the device, added up in float64 on the host.

A row holds the number of examples, 1 if the update was skipped, and for every log a pair (weighted sum, weight)
for each divisor that it has. The mean over any number of steps is then sum / weight, without an average of averages.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from looper.base.errors import InputError
from looper.base.own_logs import is_own
from looper.base.put_back import put_back
from looper.recipe import losses

FIXED = 2
"""Columns before the pairs: examples, skipped."""


def local_pairs(
    logs: Mapping[str, object], examples: tf.Tensor, shares: float, dtype: tf.DType, idle: bool = False
) -> tuple[list[str], list[tf.Tensor]]:
    """The (sum, weight) pairs of one replica's logs.

    Args:
        logs: values as `losses.as_terms` reads them.
        examples: int scalar, this replica's number of examples that count.
        shares: number of replicas times micro-batches that a plain sum is spread over.
        dtype: of the results.
        idle: whether that may be none; what is logged then has no weight.

    Returns:
        The name of each pair (a name stands once for each divisor its log has), and the flat list of scalars.

    Raises:
        InputError: if a log has a name of looper's own.
    """
    names, scalars = [], []
    for value in list(logs.values()):
        logs = {**logs, **value.logs} if isinstance(value, losses.Loss) else logs
    check_names("a step returns a log", logs)
    for name, value in logs.items():
        terms = losses.as_terms(name, value, examples)
        for group in losses.by_divisor(losses.weightless_if_idle(terms, examples) if idle else terms):
            names.append(name)
            divisor = 1.0 / shares if group[0].divisor is None else group[0].divisor
            scalars += [tf.add_n([tf.cast(t.total, dtype) for t in group]), tf.cast(divisor, dtype)]
    return names, scalars


def checked(method: str, logs: Any) -> Mapping[str, object]:
    """The logs that a step returned.

    Raises:
        InputError: if they are no dict.
    """
    if not isinstance(logs, Mapping):
        raise InputError(f"{method} returned {type(logs).__name__}; expected a dict of logs, such as {{'loss': loss}}.")
    return logs


def check_names(what: str, names: Iterable[str]) -> None:
    """Raises `InputError` if looper itself logs something of one of these names.

    Example:
        >>> check_names("train_step returned a log", ["loss", "my/step"])
    """
    for name in names:
        if isinstance(name, str) and is_own(name):
            raise InputError(f"{what} called {name!r}: looper logs that itself; give it another name, as 'my_{name}'.")


def by_name(names: Sequence[str], scalars: Sequence[tf.Tensor]) -> dict[str, list[tuple[tf.Tensor, tf.Tensor]]]:
    """The pairs of a flat list, as of `local_pairs`, by the names of their logs.

    Example:
        >>> {name: len(pairs) for name, pairs in by_name(["loss", "loss", "a"], [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]).items()}
        {'loss': 2, 'a': 1}
    """
    found: dict[str, list[tuple[tf.Tensor, tf.Tensor]]] = {}
    for name, total, weight in zip(names, scalars[::2], scalars[1::2], strict=True):
        found.setdefault(name, []).append((total, weight))
    return found


class Window:
    """Sums over the steps since the last log. Adding rows one by one gives the same bits as adding them at once.

    Attributes:
        sums: float64 `[columns]`, or None before the first row.
        steps: the number of rows.
        held: what the metrics held when they were emptied in this epoch, added up; None if they were not.
        held_known: whether that is known.

    Example:
        >>> window = Window()
        >>> window.add(np.array([[32, 0, 64.0, 32.0], [16, 0, 16.0, 16.0]]))
        >>> window.means(["loss"])["loss"], window.examples
        (1.6666666666666667, 48)
    """

    def __init__(self) -> None:
        self.reset()
        self.begin_epoch()

    def reset(self) -> None:
        self.sums: np.ndarray | None = None
        self.steps = 0

    def begin_epoch(self) -> None:
        """Begins the sums over an epoch, which `reset` leaves alone."""
        self.epoch_sums: np.ndarray | None = None
        self.held: list[np.ndarray] | None = None
        self.held_known = True

    def hold(self, held: Sequence[np.ndarray]) -> None:
        """Adds what the metrics hold, before they are emptied within an epoch: see `Reader.held`."""
        self.held = self.with_held(held)

    def with_held(self, held: Sequence[np.ndarray]) -> list[np.ndarray] | None:
        """What they would hold if they had not been emptied since the epoch began; None if that is not known."""
        if not self.held_known:
            return None
        return list(held) if self.held is None else [a + b for a, b in zip(self.held, held, strict=True)]

    def forget_held(self) -> None:
        """There are other metrics now: of none is known what it would hold over this epoch."""
        self.held, self.held_known = None, self.epoch_sums is None

    def add(self, rows: np.ndarray) -> None:
        """Adds rows `[steps, columns]`. A pair that is not finite in a skipped step is left out."""
        if not len(rows):
            return
        rows = rows.astype(np.float64)
        if any(sums is not None and sums.size != rows.shape[1] for sums in (self.sums, self.epoch_sums)):
            self.reset()  # the step was compiled anew, and its loss has other logs: the sums cannot go on
            self.begin_epoch()
        skipped = rows[:, 1] > 0
        if skipped.any():
            pairs = rows[:, FIXED:].reshape(len(rows), -1, 2)
            pairs[skipped[:, None] & ~np.isfinite(pairs).all(axis=2)] = 0.0
        self.sums, self.epoch_sums = _added(self.sums, rows), _added(self.epoch_sums, rows)
        self.steps += len(rows)

    @property
    def examples(self) -> int:
        return 0 if self.sums is None else int(self.sums[0])

    @property
    def skipped(self) -> int:
        return 0 if self.sums is None else int(self.sums[1])

    def means(self, names: Sequence[str]) -> dict[str, float]:
        """The mean of each log; `names` are those of the pairs."""
        return means(self.sums, names)

    def epoch_means(self, names: Sequence[str]) -> dict[str, float]:
        """The mean of each log over the epoch so far; `names` are those of the pairs."""
        return means(self.epoch_sums, names)

    def state(self) -> dict[str, object]:
        sums = {"sums": self.sums, "epoch_sums": self.epoch_sums}
        held = None if self.held is None else [one.tolist() for one in self.held]
        plain = {name: None if s is None else s.tolist() for name, s in sums.items()}
        return plain | {"steps": self.steps, "held": held, "held_known": self.held_known}

    def restore(self, state: Mapping[str, Any]) -> None:
        self.sums = None if state["sums"] is None else np.array(state["sums"], np.float64)
        self.epoch_sums = None if state["epoch_sums"] is None else np.array(state["epoch_sums"], np.float64)
        self.steps = int(state["steps"])
        held = state.get("held")
        self.held = None if held is None else [np.array(one, np.float64) for one in held]
        # before looper 0.2 there was neither
        self.held_known = bool(state.get("held_known", self.epoch_sums is None))


def _added(sums: np.ndarray | None, rows: np.ndarray) -> np.ndarray:
    start = np.zeros_like(rows[0]) if sums is None else sums
    return np.cumsum(np.vstack([start, rows]), axis=0)[-1]  # cumsum adds in order, np.sum does not


def means(sums: np.ndarray | None, names: Sequence[str]) -> dict[str, float]:
    """The means of a row's pairs by name. Of examples without any weight it is 0, as Keras logs it; of steps whose sums
    were left out, because they were skipped, it is NaN."""
    result: dict[str, float] = {}
    if sums is None:
        return result
    nothing = math.nan if sums[1] else 0.0
    pairs = sums[FIXED:].tolist()
    for name, total, weight in zip(names, pairs[::2], pairs[1::2], strict=True):
        result[name] = result.get(name, 0.0) + (total / weight if weight else nothing)
    return result


class Reader:
    """Reads Keras metrics, and settings such as the learning rate, as one vector.

    Attributes:
        names: the name of each result and setting of `everything`; known once that was traced or called.
        metric_names: those of the metrics' results.
        metrics: see the arguments.

    Args:
        metrics: Keras metrics; read in cross-replica context, where they are summed over the replicas.
        settings: gives scalars that are not metrics, such as the learning rate.
        name: what a metric's result is called.
        workers: the strategy whose replicas are those of several workers, or None.
    """

    def __init__(
        self,
        metrics: Sequence[keras.Metric],
        settings: Callable[[], Mapping[str, Any]],
        name: Callable[[keras.Metric], str] = lambda metric: metric.name,
        workers: tf.distribute.Strategy | None = None,
    ) -> None:
        self.metrics = tuple(metrics)
        check_names("there is a metric", map(name, self.metrics))
        self._left_out = frozenset[str]()
        self._workers = workers
        self._settings = settings
        self._name = name
        self.names: list[str] = []
        self._adding = [metric for metric in self.metrics if adds_up(metric)]
        self._held: list[keras.Variable] = []
        self.metric_names = frozenset[str]()

    def everything(self) -> tf.Tensor:
        """The metrics' results and the settings, and what metrics hold that add up, float64 `[values]`. Part of a
        compiled execution."""
        self._held = [v for metric in self._adding if numbers_in(metric) <= MOST_HELD for v in metric.variables]
        with nullcontext() if self._workers is None else summed_at_once(self.metrics, self._workers):
            read = [(variable, tf.convert_to_tensor(variable.value)) for variable in self._held]
            if self._workers is None:  # what was read is not read again
                with keras.StatelessScope(state_mapping=read):
                    results = self._results(self.metrics)
            else:
                results = self._results(self.metrics)
        held = [tf.reshape(tf.cast(value, tf.float64), [-1]) for _, value in read]
        self.metric_names = frozenset(_flat(results))
        values = _flat({**results, **self._settings()})
        self.names = list(values)
        found = [tf.stack(list(values.values()))] if values else []
        return tf.concat([*found, *held], 0) if found or held else tf.zeros([0], tf.float64)

    def reset(self) -> None:
        """Empties the metrics."""
        for metric in self.metrics:
            if self._workers is None:
                metric.reset_state()
            else:
                reset_apart(metric)

    def leave_out(self, metrics: Sequence[keras.Metric]) -> None:
        """Has the results of these metrics missing from what steps of training log from now on."""
        self._left_out = self.names_of(metrics)

    def names_of(self, metrics: Sequence[keras.Metric]) -> frozenset[str]:
        """The names that the results of these metrics have."""
        return frozenset(_flat(self._results(metrics)))

    def logged(self, values: Sequence[float]) -> dict[str, float]:
        """The results among the values of `everything`, read after steps of training, by name."""
        named = zip(self.names, values, strict=False)
        return {name: value for name, value in named if name not in self._left_out}

    def held(self, values: np.ndarray) -> list[np.ndarray]:
        """What metrics hold, among the values of `everything`: their sums over several windows are those over all."""
        sizes = [math.prod(variable.shape) for variable in self._held]
        return np.split(values[len(self.names) :], np.cumsum(sizes)[:-1]) if sizes else []

    def over(self, held: Sequence[np.ndarray]) -> dict[str, float]:
        """The results of the metrics that `held` is of, if they held this."""
        shaped = zip(self._held, held, strict=True)
        mapping = [(v, tf.cast(tf.reshape(tf.constant(one), v.shape), v.dtype)) for v, one in shaped]
        known = [metric for metric in self._adding if numbers_in(metric) <= MOST_HELD]
        with keras.StatelessScope(state_mapping=mapping):
            results = {name: float(value) for name, value in _flat(self._results(known)).items()}
        return {name: value for name, value in results.items() if name not in self._left_out}

    @property
    def training_names(self) -> list[str]:
        """The names of `logged`."""
        return [name for name in self.names if name not in self._left_out]

    def results(self) -> dict[str, float]:
        """The metrics' results after an evaluation, read now."""
        return {name: float(value) for name, value in _flat(self._results(self.metrics)).items()}

    def _results(self, metrics: Sequence[keras.Metric]) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for metric in metrics:
            value = metric.result()
            found.update(value if isinstance(value, dict) else {self._name(metric): value})
        return found


MOST_HELD = 1 << 12
"""Numbers that a metric may hold to be read with each execution."""


def numbers_in(metric: keras.Metric) -> int:
    """How many numbers a metric holds.

    Example:
        >>> numbers_in(keras.metrics.Mean())
        2
    """
    return sum(math.prod(variable.shape) for variable in metric.variables)


def adds_up(metric: keras.Metric) -> bool:
    """Whether what a metric holds after some steps is the sum of what it would hold after each: so are Keras' own.

    Example:
        >>> adds_up(keras.metrics.AUC())
        True
    """
    return type(metric).update_state.__module__.startswith("keras.")


def _flat(values: Mapping[str, Any]) -> dict[str, tf.Tensor]:
    """As float64 scalars; a vector becomes one value per element, `name/0`, `name/1` and so on."""
    flat: dict[str, tf.Tensor] = {}
    for name, value in values.items():
        value = tf.cast(tf.convert_to_tensor(value), tf.float64)
        if value.shape.rank == 0:
            flat[name] = value
        else:
            elements = tf.unstack(tf.reshape(value, [-1]))
            flat.update({f"{name}/{i}": element for i, element in enumerate(elements)})
    return flat


@contextmanager
def summed_at_once(metrics: Sequence[keras.Metric], strategy: tf.distribute.Strategy) -> Iterator[None]:
    """Within it, metrics hold their sums over all replicas, from one collective for each dtype.

    Otherwise each variable is a collective of its own when it is read, and small ones take as long as large ones.
    """
    on_read = [v for metric in metrics for v in metric.variables if v.synchronization == "on_read"]
    variables = {id(v): v for v in on_read if v.aggregation == "sum"}
    by_dtype: dict[str, list[keras.Variable]] = {}
    for variable in variables.values():
        by_dtype.setdefault(variable.dtype, []).append(variable)

    def on_replica() -> list[list[tf.Tensor]]:
        context = tf.distribute.get_replica_context()
        values = [[v.value.read_value() for v in same] for same in by_dtype.values()]
        return [context.all_reduce(tf.distribute.ReduceOp.SUM, same) for same in values]

    summed: list[tuple[Any, tf.Tensor]] = []
    for same, sums in zip(by_dtype.values(), strategy.run(on_replica), strict=True):
        summed += zip(same, (strategy.experimental_local_results(s)[0] for s in sums), strict=True)
    with keras.StatelessScope(state_mapping=summed):
        yield


def reset_apart(metric: keras.Metric) -> None:
    """Empties a metric without a collective; Keras' `assign` sums the new values over the replicas to return them."""
    with keras.StatelessScope() as scope:
        metric.reset_state()
    for variable in metric.variables:
        value = scope.get_current_value(variable)
        if value is not None:
            variable.value.assign(tf.cast(value, variable.dtype), read_value=False)


@contextmanager
def set_aside(metrics: Sequence[keras.Metric], strategy: tf.distribute.Strategy) -> Iterator[None]:
    """Empties the metrics, and puts back after the `with` what they held: evaluation has a state of its own."""
    copies = [c for m in metrics for v in m.variables for c in strategy.experimental_local_results(v.value)]
    with put_back(copies):
        for metric in metrics:
            metric.reset_state()
        yield
