"""Exact evaluation: every example once, the means over all of them."""

import contextlib
import functools
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import tensorflow as tf

from looper.base.errors import InputError, StepError
from looper.data.feed import Feed
from looper.data.source import Source
from looper.data.stacks import graph_stack_size
from looper.recipe import metrics
from looper.run.components import Components
from looper.run.watch import Watch, as_keras
from looper.step.programs import Execution, StackedExecution, explained

CHUNK = 100
"""Steps per execution."""


class Evaluator:
    """Evaluates one set of data, as often as wanted.

    Attributes:
        execute: see the arguments.
        hint: what to add to an error about the data, such as that it looks like several sets.
        left_out: names of metrics that the steps do not update: their results are of nothing, and missing from those of
            `run`.

    Args:
        execute: the compiled evaluation steps.
        feed: the data.
        limit: the most batches to take, or None for all.
        components: whose weights and metrics they are.
        hint: see above.

    Raises:
        InputError: if the data never ends and there is no limit, or is known to be shorter than the limit.
    """

    def __init__(
        self, execute: Execution, feed: Feed, limit: int | None, components: Components, hint: str = ""
    ) -> None:
        if feed.source.endless and limit is None:
            raise InputError("the evaluation data never ends: give eval_steps=, the number of batches to take.")
        length = feed.source.length
        if limit is not None and length is not None and length < limit:
            raise InputError(_too_short(length, limit))
        self._feed, self._limit, self._components, self.hint = feed, limit, components, hint
        self.use(execute)
        self.left_out: frozenset[str] = frozenset()

    def use(self, execute: Execution) -> None:
        """Evaluates with these steps from now on."""
        self.execute = execute

    def leave_out(self, names: frozenset[str]) -> None:
        """Leaves metrics of these names out of the results from now on."""
        self.left_out = names

    @property
    def source(self) -> Source:
        """The data."""
        return self._feed.source

    def check_repeatable(self) -> None:
        """Raises `InputError` if the data can be read only once."""
        if self._feed.source.once:
            raise InputError("eval_data is a generator, which can be read only once: give a function that makes one.")

    def trace(self, recorder: Any = None) -> set[str]:
        """Traces the evaluation step. Returns the names of its logs and metrics, none in eager mode.

        Args:
            recorder: see `Execution.trace`.
        """
        self.execute.trace(self.source.element_spec, recorder)
        return set(self.execute.names)

    def run(self, averaged: bool = True, watch: Watch | None = None) -> dict[str, float]:
        """Evaluates.

        Args:
            averaged: whether with the averages of the Trainer's `ema`, if it has them.
            watch: what to call around executions; it may end the evaluation, whose results are of less data then.

        Returns:
            The exact mean of each log, the metrics, and `examples`, the number of examples seen.

        Raises:
            InputError: if the data is empty or ends before the limit.
        """
        self._feed.look_again()
        if watch is not None:
            watch.go_on()
        window, taken, wanted = metrics.Window(), 0, self._limit or self.source.length
        most, stopped = 1 if watch is not None and watch.each_batch else CHUNK, False

        def found() -> dict[str, float]:
            known = self._components.reader.results()
            return window.means(self.execute.names) | {n: x for n, x in known.items() if n not in self.left_out}

        self._feed.give(self._stack_size())
        with self._components.evaluating(averaged), self._feed.one_pass():
            while wanted is None or taken < wanted:
                steps = most if wanted is None else min(most, wanted - taken)
                if watch is not None:
                    watch.begin()
                try:
                    rows, ran, _ = self.execute(self._feed.iterator, steps)
                except tf.errors.OpError as error:
                    raise explained(error, taken, self._feed.unread or steps, "evaluation step") from error
                window.add(rows.numpy())
                taken += int(ran)
                self._feed.advance(int(ran))
                stopped = bool(watch is not None and int(ran) and watch.end(lambda: as_keras(found())))
                if (int(ran) < steps and not self._feed.fails_next) or stopped:
                    break
            results = found() if taken else {}
        if taken == 0:
            raise InputError("the evaluation data is empty: it yielded 0 batches.")
        if self._limit is not None and taken < self._limit and not stopped:
            raise InputError(_too_short(taken, self._limit))
        return results | {"examples": window.examples}

    def _stack_size(self) -> int | None:
        """Batches in a stack, if the steps take stacks."""
        if not isinstance(self.execute, StackedExecution):
            return None
        return graph_stack_size(self._feed.batch_bytes, CHUNK, self.source.length)


class Evaluation:
    """The evaluation of one set of data, or of several, one after the other.

    Args:
        sets: evaluators by the names of their sets; "" is the name of a set that has none.
    """

    def __init__(self, sets: Mapping[str, Evaluator]) -> None:
        self.sets = sets

    @property
    def evaluators(self) -> list[Evaluator]:
        """All of them."""
        return list(self.sets.values())

    def named(self, logs: Callable[[Evaluator], Iterable[str]]) -> set[str]:
        """The names that logs of each evaluator have in the results of all."""
        return {_in_set(name, log) for name, evaluator in self.sets.items() for log in logs(evaluator)}

    def run(self, watch: Watch | None = None) -> dict[str, float]:
        """Evaluates on all sets. Returns what `Evaluator.run` does, with the sets' names before those of the logs."""
        return self._together(functools.partial(Evaluator.run, watch=watch))

    def run_both(self) -> dict[str, float]:
        """The same with averaged weights, and as `raw_...` with the weights that they are averages of."""

        def both(evaluator: Evaluator) -> dict[str, float]:
            raw = evaluator.run(averaged=False)
            return evaluator.run() | {f"raw_{log}": raw[log] for log in raw if log != "examples"}

        return self._together(both)

    def each(self, act: Callable[[Evaluator], Any]) -> dict[str, Any]:
        """What `act` returns for each evaluator, by the names of their sets."""
        found = {}
        for name, evaluator in self.sets.items():
            with in_set(name, evaluator.hint):
                found[name] = act(evaluator)
        return found

    def _together(self, run: Callable[[Evaluator], Mapping[str, float]]) -> dict[str, float]:
        return {_in_set(name, log): value for name, logs in self.each(run).items() for log, value in logs.items()}


@contextlib.contextmanager
def in_set(name: str, hint: str = "") -> Iterator[None]:
    """Inside it, an error says in which of several sets it occurred; "" is the name of a set that has none.

    `hint` is added where the error has it not.

    Example:
        >>> with in_set("ood"):
        ...     raise InputError("the data is empty.")
        Traceback (most recent call last):
        looper.errors.InputError: in the set 'ood': the data is empty.
    """
    try:
        yield
    except (InputError, StepError) as error:
        where = f"in the set {name!r}: " if name else ""
        error.args = (f"{where}{error}{'' if hint in str(error) else hint}",)
        raise


def _in_set(name: str, log: str) -> str:
    return f"{name}/{log}" if name else log


def predict_each(
    predict: Callable[[Any], Any], feed: Feed, limit: int | None, watch: Watch | None = None
) -> Iterator[Any]:
    """The outputs for each batch of a pass.

    Args:
        predict: from an iterator to the outputs for its next batch.
        feed: the data.
        limit: the most batches to take, or None for all.
        watch: what to call around batches; it may end the prediction.

    Yields:
        NumPy arrays in the outputs' structure.

    Raises:
        InputError: if there is no batch.
    """
    taken = 0
    feed.give(None)
    with feed.one_pass():
        while (feed.left is None or feed.left > 0) and (limit is None or taken < limit):
            try:
                if watch is not None:
                    watch.begin()
                outputs = tf.nest.map_structure(lambda x: x.numpy(), predict(feed.iterator))
            except (tf.errors.OutOfRangeError, StopIteration):
                break
            except tf.errors.OpError as error:
                raise explained(error, taken, 1, "batch") from error
            feed.advance(1)
            taken += 1
            yield outputs
            if watch is not None and watch.end(functools.partial(dict, outputs=outputs)):
                break
    if not taken:
        raise InputError("the data is empty: it yielded 0 batches.")


def join(batches: Iterable[Any]) -> Any:
    """Joins batches of arrays, each in the same structure, along their first axis.

    Example:
        >>> join([{"a": np.array([1, 2])}, {"a": np.array([3])}])
        {'a': array([1, 2, 3])}
    """
    return tf.nest.map_structure(lambda *arrays: np.concatenate(arrays), *batches)


def _too_short(length: int, limit: int) -> str:
    return f"the evaluation data ends after {length} batches, before eval_steps={limit}: lower it, or leave it out."
