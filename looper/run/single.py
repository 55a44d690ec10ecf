"""Training steps on single batches, for somebody else's loop."""

import weakref
from collections.abc import Sequence
from typing import Any

import tensorflow as tf

from looper.base.batches import of_any_size
from looper.recipe.freezing import Switches
from looper.run import on_batch
from looper.run.numbers import Numbers
from looper.run.position import Position
from looper.run.session import Session
from looper.step.programs import BatchExecution, explained


class SingleBatches:
    """Makes one step at a time.

    Args:
        session: the trainer's.
        position: how far it is.
    """

    def __init__(self, session: Session, position: Position) -> None:
        self._session, self._position = session, position
        self._numbers: weakref.WeakKeyDictionary[BatchExecution, Numbers] = weakref.WeakKeyDictionary()
        self._switches: Switches | None = None  # as they were when a step was made last

    def train(self, batch: Any) -> dict[str, float]:
        """One training step: see `Trainer.train_on_batch`."""
        devices, position = self._session.devices, self._position
        batch, leaves = on_batch.converted(batch, devices.row_dtype)
        step = position.progress.step
        try:
            with devices.workers.watching("training"):
                execute = self._execution_on(batch, leaves)
                row, values = execute.on(batch)
                self._numbers[execute].check()
        except tf.errors.OpError as error:
            raise explained(error, step, 1) from error
        position.step()
        logged = self._session.components.reader.logged(values.tolist())
        return on_batch.results(row, execute.names, logged, position.progress.step)

    def _execution_on(self, batch: Any, leaves: Sequence[Any]) -> BatchExecution:
        """The training step for a batch, compiled anew if what is trained is another than the last time.

        Of one structure of batches the first is compiled for its number of examples, and one step for all others.
        """
        if self._session.refresh():
            self._position.window.reset()
        structure, sizes = on_batch.structure_of(batch, leaves)
        kept = self._session.executions.of_batches
        if self._switches is None or self._switches.changed():
            kept.clear()
        found = kept.get((structure, sizes)) or kept.get((structure, None))
        if found is None:
            several = any(other == structure for other, _ in kept)
            found = self._make_execution_on(batch, None if several else sizes[0])
            kept[structure, None if several else sizes] = found
        return found

    def _make_execution_on(self, batch: Any, examples: int | None) -> BatchExecution:
        session = self._session
        spec = tf.nest.map_structure(tf.type_spec_from_value, batch)
        spec = tf.nest.map_structure(of_any_size, spec) if examples is None else spec
        source = session.sources.single(on_batch.BatchSource(spec, examples))
        session.pipeline.set_skipping(False)  # which is of a fit and of its callbacks
        session.sources.make_variables(source.element_spec, self._position)
        session.building.look(source.element_spec, source.parts, self._position.saved)
        session.check_trainable()
        execute = session.steps.on_batches(source)
        session.steps.compile(execute, source, None, strict=session.options.strict)
        session.sources.give_saved(self._position)  # to what was made since, too
        self._switches = Switches(session.components.layers())
        self._numbers[execute] = Numbers(session.hooks.attribute, execute.numbers)
        return execute
