"""Training steps on single batches, for somebody else's loop: `Trainer.train_on_batch`."""

import math
import weakref
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from looper.base.batches import of_any_size
from looper.base.errors import InputError
from looper.data.python import tidy
from looper.data.source import Source
from looper.recipe import metrics
from looper.recipe.freezing import Switches
from looper.run.loop import nonfinite
from looper.run.numbers import Numbers
from looper.run.position import Position
from looper.run.session import Session
from looper.run.skipped import SkippedInARow
from looper.step.programs import BatchExecution, explaining


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
        self._skipped = SkippedInARow(session.options.max_skipped)

    def train(self, batch: Any) -> dict[str, float]:
        """One training step: see `Trainer.train_on_batch`."""
        devices, position = self._session.devices, self._position
        batch, leaves = converted(batch, devices.row_dtype)
        if (position.last_step or 0) <= position.progress.step:
            position.aim(None)  # this is no step of a `fit`: somebody else's loop ends where it likes
        with explaining(position.progress.step, 1), devices.workers.watching("training"):
            execute = self._execution_on(batch, leaves)
            row, values = execute.on(batch)
            self._numbers[execute].check()
        position.step()
        if self._session.components.loss_scale is not None:
            self._skipped.note(row[None, 1] > 0, position.progress.step - 1)
        reader = self._session.components.reader
        logged = reader.logged(values[: len(reader.names)].tolist())
        return results(row, execute.names, logged, position.progress.step)

    def _execution_on(self, batch: Any, leaves: Sequence[Any]) -> BatchExecution:
        """The training step for a batch, compiled anew if what is trained is another than the last time.

        Of one structure of batches the first is compiled for its number of examples, and one step for all others.
        """
        if self._session.refresh():
            self._position.window.reset()
            self._position.window.forget_held()
        structure, sizes = structure_of(batch, leaves)
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
        source = session.sources.single(BatchSource(spec, examples))
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


class BatchSource(Source):
    """Batches of one structure that are given one by one.

    Args:
        element_spec: of a batch.
        examples: in each batch, or None if they differ.
    """

    def __init__(self, element_spec: Any, examples: int | None) -> None:
        self.element_spec, self.smallest_batch, self.largest_batch = element_spec, examples, examples


def converted(batch: Any, floats: tf.DType) -> tuple[Any, list[Any]]:
    """A batch of tensors in the structure that data yields it in, with floats of one dtype; and its leaves.

    Example:
        >>> (x, y), _ = converted((np.ones((2, 3)), [0, 1]), tf.float32)
        >>> x.dtype.name, y.numpy().tolist()
        ('float32', [0, 1])
    """
    if type(batch) is tuple and all(isinstance(x, np.ndarray) and x.dtype.kind in "biuf" for x in batch):
        leaves = [_tensor(leaf, floats) for leaf in batch]  # what comes most often, and at once
        return tuple(leaves), leaves
    batch = tidy(batch)
    leaves = [_tensor(leaf, floats) for leaf in tf.nest.flatten(batch)]
    return tf.nest.pack_sequence_as(batch, leaves), leaves


def _tensor(leaf: Any, floats: tf.DType) -> Any:
    if isinstance(leaf, np.ndarray):
        return tf.constant(leaf, floats if leaf.dtype.kind == "f" else None)
    return tf.cast(leaf, floats) if leaf.dtype.is_floating and leaf.dtype != floats else leaf


def structure_of(batch: Any, leaves: Sequence[Any]) -> tuple[Hashable, tuple[int, ...]]:
    """The structure of a batch but for its number of examples, and the leaves' first axes.

    Raises:
        InputError: if the batch has no tensor, or one without a first axis.
    """
    shapes = [leaf.shape.as_list() for leaf in leaves]
    if not shapes or not all(shapes):
        raise InputError(
            "train_on_batch() takes one batch of examples, such as (x, y) of arrays: this one has scalars."
        )
    flat = type(batch) is tuple and len(batch) == len(leaves)
    shape = len(batch) if flat else str(tf.nest.map_structure(lambda _: 0, batch))
    kinds = tuple(
        (type(leaf), leaf.dtype.as_datatype_enum, *sizes[1:]) for leaf, sizes in zip(leaves, shapes, strict=True)
    )
    return (shape, kinds), tuple(sizes[0] for sizes in shapes)


def results(row: np.ndarray, names: Sequence[str], values: Mapping[str, float], step: int) -> dict[str, float]:
    """The logs of step `step`, which returned a row, with the metrics and settings that were read after it.

    Raises:
        InputError: if the batch has no examples.
        NonFiniteLossError: if the loss or a gradient is not finite.
    """
    if not row[0]:
        raise InputError(f"a batch has no examples (step {step}): leave it out.")
    if not all(map(math.isfinite, row.tolist())):
        error = nonfinite(row[None], names, step - 1)
        if error is not None:
            raise error
    return metrics.means(row.astype(np.float64), names) | dict(values)
