"""`keras.utils.PyDataset`: batches by their number, in order."""

import collections
import itertools
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import keras

from looper.base.errors import InputError
from looper.base.lines import warn
from looper.data.python import PythonSource, has_state, tidy


class PyDatasetSource(PythonSource):
    """Batches `0, 1, 2...` of a `keras.utils.PyDataset`, in order in every pass: shuffling is its own business.

    `on_epoch_begin` and `on_epoch_end` are called once per pass; a run that is continued calls them for the passes
    it has done, so that an order that they draw from a seed is drawn again. A dataset with `state()` and
    `restore(state)` gets its state back instead. How many batches there are is asked after each pass, as Keras does it;
    what is told of a run's length goes by the first. With `workers` above 1, as many threads read up to
    `max_queue_size` batches ahead.

    Raises:
        InputError: if it has no batch.
    """

    repeats = True

    def __init__(self, dataset: keras.utils.PyDataset, on_demand: bool = False) -> None:
        self.length = dataset.num_batches
        self.endless = self.length is None
        if self.length == 0:
            raise InputError("the data is empty: the PyDataset has 0 batches.")
        self._dataset_object = dataset
        self._begun: int | None = None  # the pass that on_epoch_begin was called for
        self._ended = 0  # passes that on_epoch_end was called for
        self._state: Any = None
        examples = 1 if on_demand or self.length == 1 else 2
        super().__init__([tidy(dataset[i]) for i in range(examples)], on_demand)
        if dataset.use_multiprocessing:
            warn(f"use_multiprocessing=True of {type(dataset).__name__}: looper reads it in threads, not in processes.")

    def _batches(self, number: int, batch: int) -> Iterator[Any]:
        self._catch_up(number)
        self._begin(number)
        numbers = iter(range(batch, self.length)) if self.length is not None else itertools.count(batch)
        workers = self._dataset_object.workers
        if workers <= 1 or self.on_demand:
            return (tidy(self._dataset_object[i]) for i in numbers)
        return self._in_threads(numbers, workers, self._dataset_object.max_queue_size)

    def _in_threads(self, numbers: Iterator[int], workers: int, ahead: int) -> Iterator[Any]:
        waiting: collections.deque = collections.deque()
        with ThreadPoolExecutor(workers) as pool:
            for i in numbers:
                waiting.append(pool.submit(self._dataset_object.__getitem__, i))
                if len(waiting) >= max(ahead, 1):
                    yield tidy(waiting.popleft().result())
            while waiting:
                yield tidy(waiting.popleft().result())

    def _catch_up(self, number: int) -> None:
        """Has the dataset do what it does in the passes before this one."""
        while self._ended < number:
            self._begin(self._ended)
            self.end_pass(self._ended)

    def _begin(self, number: int) -> None:
        if self._begun != number:
            self._begun = number
            self._dataset_object.on_epoch_begin()
            self._note_state()

    def end_pass(self, number: int) -> None:
        self._ended = number + 1
        self._dataset_object.on_epoch_end()
        self._note_state()
        self.look_again()

    def _note_state(self) -> None:
        """Between passes nothing is being read: later, threads may be ahead of training."""
        self._state = self._dataset_object.state() if has_state(self._dataset_object) else None

    def look_again(self) -> None:
        if not self.endless:
            self.length = self._dataset_object.num_batches
            if not self.length:
                raise InputError(f"the data is empty: after {self._ended} passes the PyDataset has 0 batches.")

    def state(self, number: int, batch: int) -> Any:
        return None if self._state is None else {"of": self._state, "begun": self._begun == number}

    def restore(self, state: Any, number: int, batch: int) -> None:
        if state is not None and has_state(self._dataset_object):
            self._dataset_object.restore(state["of"])
            self._begun, self._ended = number if state["begun"] else None, number
            self._state = state["of"]
            self.look_again()
        else:
            self._catch_up(number)

    def describe(self) -> dict[str, Any]:
        return {"batches": "endless" if self.endless else self.length}
