"""Generators and other iterables of batches: what cannot be reached at any position, but can be read."""

import copy
import itertools
from collections.abc import Iterator
from typing import Any

from looper.base.errors import InputError
from looper.data.python import PythonSource, has_state, tidy


class IterableSource(PythonSource):
    """Batches of an iterable, or of what a function of no arguments makes for each pass.

    A generator can be read once: it serves `steps`, or `epochs` with `steps_per_epoch`, as far as it goes. A function
    (such as a generator function) is called for each pass; other iterables, such as a `torch.utils.data.DataLoader`
    (which is not imported: anything that yields batches serves), are iterated anew.

    An iterable with `state()` and `restore(state)` is continued exactly: its state after each batch is kept until
    training has come to that batch, because batches are read ahead. One that is read on demand is asked for its state
    when that is saved, so that the state may be large. The state is made of JSON values and numeric arrays. `restore`
    is called before `iter`. All others are read past the batches that were seen.

    Batches are read ahead of training, so that an iterable that looks at the model sees it as it was some steps before;
    one that is read `on_demand` sees it after the step before.

    Args:
        data: the iterable or the function.
        on_demand: see `Source`.

    Raises:
        InputError: if it yields no batch.

    Example:
        >>> import numpy as np
        >>> source = IterableSource(lambda: (np.full(2, i) for i in range(3)))
        >>> [batch.numpy().tolist() for batch in source.open(1, 1)]
        [[1, 1], [2, 2]]
    """

    def __init__(self, data: Any, on_demand: bool = False) -> None:
        self._data = data
        self._called = callable(data) and not hasattr(data, "__iter__")
        self._thing = self._make()
        self._stateful = has_state(self._thing)
        self._states: dict[tuple[int, int], Any] = {}
        self.on_demand = on_demand  # before the first state
        self._note(0, 0, keep=True)  # a batch is read at once
        iterator = iter(self._thing)
        self.once = not self._called and not self._stateful and iterator is self._thing
        self.repeats = not self.once
        read: list[Any] = []
        for batch in itertools.islice(iterator, 1 if on_demand else 2):
            read.append(tidy(batch))
            self._note(0, len(read))
        if not read:
            raise InputError("the data is empty: it yielded 0 batches.")
        # the first pass begins with what was read here: it may not come again
        self._first: Iterator[Any] | None = self._numbered(0, itertools.chain(read, map(tidy, iterator)), len(read))
        self._restored: tuple[int, int] | None = None
        super().__init__(read, on_demand)

    def _batches(self, number: int, batch: int) -> Iterator[Any]:
        if self.once and number > 0:
            raise InputError(
                "the data is a generator, which can be read only once: give a function that makes a new one for each "
                "pass, or steps_per_epoch= and one that goes on."
            )
        first, self._first = self._first, None
        if self._restored == (number, batch):
            return self._numbered(number, map(tidy, iter(self._thing)), 0, batch)
        if first is not None and (number == 0 or self.once):
            batches = first
        elif self.once:
            raise InputError("the data is a generator, and was read already: give a function that makes a new one.")
        else:
            self._thing = self._make()
            self._note(number, 0)
            batches = self._numbered(number, map(tidy, iter(self._thing)), 0)
        for _ in range(batch):
            next(batches, None)
        return batches

    def _numbered(self, number: int, batches: Iterator[Any], noted: int, begin: int = 0) -> Iterator[Any]:
        """Goes through a pass and keeps the state after each batch; those of the first `noted` are kept already."""
        self._restored = None
        count = begin
        for count, batch in enumerate(batches, begin + 1):
            if count > noted:
                self._note(number, count)
            yield batch
        if not self._called:
            self._note(number + 1, 0)

    def _note(self, number: int, batch: int, keep: bool = False) -> None:
        """This batch was read last. Keeps its state if batches are read ahead, or if `keep` says so."""
        self._read_last = number, batch
        if self._stateful and (keep or not self.on_demand):
            self._states[number, batch] = copy.deepcopy(self._thing.state())

    def _make(self) -> Any:
        if not self._called:
            return self._data
        made = self._data()
        if not hasattr(made, "__iter__"):
            raise InputError(
                f"the data is a function that returned {type(made).__name__}: expected an iterable of batches."
            )
        return made

    def advance(self, number: int, batch: int) -> None:
        for position in [position for position in self._states if position < (number, batch)]:
            del self._states[position]

    def state(self, number: int, batch: int) -> Any:
        if self._stateful and self.on_demand and (number, batch) == self._read_last:
            return copy.deepcopy(self._thing.state())
        return self._states.get((number, batch))

    def restore(self, state: Any, number: int, batch: int) -> None:
        if state is not None and self._stateful:
            self._thing = self._make()
            self._thing.restore(state)
            self._states = {(number, batch): state}
            self._restored = self._read_last = (number, batch)

    def inexact(self) -> str | None:
        if self._stateful:
            return None
        kind = type(self._thing).__name__
        again = "reads it" if self.once else "makes it anew and reads it"
        return (
            f"the data is a {kind}, whose position cannot be saved: a run that is continued {again} past the batches "
            "it has seen, and other draws of its own are not repeated. Give it state() and restore(state), or use "
            "arrays, an indexable source or a keras.utils.PyDataset."
        )

    def describe(self) -> dict[str, Any]:
        return {"elements": str(self.element_spec)}
