"""One step on a global batch: each replica takes its slice, and what comes back is summed over the replicas."""

import contextlib
import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import keras
import tensorflow as tf

from looper.base import xla
from looper.base.batches import Parts, count_examples, cut, lengths
from looper.base.conditions import run_if
from looper.base.errors import InputError
from looper.recipe import metrics, optimizers, precision
from looper.step import counting, idle, lookups
from looper.step.division import Division
from looper.step.gradients import Pipeline
from looper.step.noting import Notes
from looper.step.record import StepRecord

Logs = Mapping[str, object]

SKIPPED = 1
"""The column of a row that tells whether its step's update was skipped: see `looper.recipe.metrics`."""


@dataclasses.dataclass(frozen=True)
class Recipe:
    """The methods and variables of a trainer that a step needs.

    Attributes:
        compute_loss: `(batch, training) -> loss or (loss, logs)`.
        train_step: the recipe's own `(batch) -> logs`, or None for the default.
        waits: whether the one `minimize` of that may wait until it has returned.
        after_update: what the recipe does after an update, or None.
        eval_step: `(batch) -> logs`.
        predict_step: `(batch) -> outputs`.
        optimizer: the trainer's optimizer, or None where `train_step` has its own.
        optimizers: all that the trainer has.
        variables: what the default step trains.
        untouched: what an idle replica leaves as it is: see `looper.step.idle`.
        lookups: the layers that look rows of large tables up: see `looper.step.lookups`.
        counts: the numbers of steps and epochs done.
        precision: the dtype policy that they run in.
        world: a context that is entered, once for all replicas, around the Python code of a step: when it is traced
            or, without compilation, run.
    """

    compute_loss: Callable[[Any, bool], Any]
    train_step: Callable[[Any], Logs] | None
    waits: bool
    after_update: Callable[[], None] | None
    eval_step: Callable[[Any], Logs]
    predict_step: Callable[[Any], Any]
    optimizer: Any
    optimizers: tuple[Any, ...]
    variables: tuple[Any, ...]
    untouched: tuple[idle.Copies, ...]
    lookups: tuple[keras.Layer, ...]
    counts: counting.Counting
    precision: str
    world: Callable[[], contextlib.AbstractContextManager]


@dataclasses.dataclass(frozen=True)
class Sharing:
    """How replicas share a batch.

    Attributes:
        division: how its parts are divided.
        some_idle: whether it may have fewer examples than there are replicas: then it goes to all of them as it is, and
            counts on the first alone.
        spread: whether they share it at all; otherwise it always goes to all.
        sharers: if it is one worker's part of the global batch, how many replicas share it; else None.
    """

    division: Division
    some_idle: bool = True
    spread: bool = True
    sharers: int | None = None


def train_step(
    recipe: Recipe, pipeline: Pipeline, names: list[str], sharing: Sharing, in_xla: bool = False
) -> Callable[[Any], tf.Tensor]:
    """One training step: from a global batch to its row. Fills `names` with the names of the row's pairs.

    With `in_xla`, forward and backward of each replica are an XLA program, and the rest is not.
    """
    strategy, division = pipeline.strategy, sharing.division
    some_idle = (sharing.some_idle or not sharing.spread) and strategy.num_replicas_in_sync > 1
    sharing = dataclasses.replace(sharing, some_idle=some_idle)
    updated: list[bool] = []

    def on_replica(batch: Any, examples: tf.Tensor, global_examples: tf.Tensor, of_parts: Any) -> tf.Tensor:
        with (
            pipeline.step(examples, global_examples, some_idle, in_xla, division=division, of_parts=of_parts) as record,
            idle.untouched(recipe.untouched if some_idle else (), examples),
        ):
            if recipe.train_step is None:
                found, scalars = pipeline.accumulated(
                    pipeline.default_part(
                        lambda micro_batch: split_loss(recipe.compute_loss(micro_batch, True)),
                        recipe.optimizer,
                        recipe.variables,
                    ),
                    batch,
                    in_xla,
                )
            elif recipe.waits:
                found, scalars = pipeline.accumulated(pipeline.own_part(recipe.train_step), batch, in_xla, waiting=True)
            else:
                found, scalars = _summed_pairs("train_step", recipe.train_step(batch), record, pipeline)
                pipeline.check_used(record)
        for name, norm in record.norms.items():
            found = [*found, "gradient_norm" if len(record.norms) == 1 else f"gradient_norm/{name}"]
            scalars = [*scalars, tf.cast(norm, pipeline.dtype), tf.ones((), pipeline.dtype)]
        names[:] = found
        updated[:] = [bool(record.norms)]
        return _row(global_examples, record.skipped, scalars, pipeline.dtype)

    on_all = _on_all_replicas(on_replica, recipe, strategy, sharing)

    def step(batch: Any) -> tf.Tensor:
        with optimizers.telling(recipe.optimizers, pipeline.tell_of_own_update):
            row = on_all(batch)
            applied = tf.equal(row[SKIPPED], 0) if pipeline.skips else None  # None: each is
            if updated == [True] and pipeline.loss_scale is not None:
                pipeline.loss_scale.update(applied)  # once a step, however many updates it made
            if recipe.after_update is not None:
                run_if(applied, lambda: _run_after(recipe, strategy))
            return row

    return step


def _run_after(recipe: Recipe, strategy: tf.distribute.Strategy) -> None:
    counted = counting.here()

    def on_replica() -> None:
        with precision.scope(recipe.precision), counted():
            recipe.after_update()

    strategy.run(on_replica)


def noted(recipe: Recipe, pipeline: Pipeline, division: Division, element_spec: Any) -> list[Notes]:
    """Traces an own `train_step` without any update. Returns the notes of each replica."""
    found: list[Notes] = []

    def on_replica(batch: Any, examples: tf.Tensor, global_examples: tf.Tensor, of_parts: Any) -> tf.Tensor:
        found.append(Notes())
        with pipeline.step(examples, global_examples, notes=found[-1], division=division, of_parts=of_parts):
            recipe.train_step(batch)
        return tf.constant(0)

    def step(batch: Any) -> Any:
        told = optimizers.telling(recipe.optimizers, pipeline.tell_of_own_update)
        with told, recipe.counts.at(recipe.counts.tensor()):
            return _run_on_slices(on_replica, recipe, pipeline.strategy, Sharing(division), batch)

    tf.function(step, autograph=False).get_concrete_function(element_spec)
    return found


def eval_step(recipe: Recipe, pipeline: Pipeline, names: list[str], sharing: Sharing) -> Callable[[Any], tf.Tensor]:
    """One evaluation step: from a global batch to its row. Fills `names` with the names of the row's pairs."""
    strategy, division = pipeline.strategy, sharing.division
    some_idle = sharing.some_idle and strategy.num_replicas_in_sync > 1
    sharing = dataclasses.replace(sharing, some_idle=some_idle)

    def on_replica(batch: Any, examples: tf.Tensor, global_examples: tf.Tensor, of_parts: Any) -> tf.Tensor:
        with (
            pipeline.step(
                examples, global_examples, some_idle, division=division, of_parts=of_parts, evaluating=True
            ) as record,
            idle.untouched(recipe.untouched if some_idle else (), examples),
        ):
            names[:], scalars = _summed_pairs("eval_step", recipe.eval_step(batch), record, pipeline)
        return _row(global_examples, tf.constant(0), scalars, pipeline.dtype)

    return _on_all_replicas(on_replica, recipe, strategy, sharing)


def predict_function(
    recipe: Recipe, strategy: tf.distribute.Strategy, *, division: Division, compiled: bool, gathered: bool
) -> Callable[[Any], Any]:
    """From an iterator to the outputs for its next batch, rows in the batch's order.

    With `gathered`, replicas of other workers have rows, too.
    """

    def predict(iterator: Any, counts: tf.Tensor) -> Any:
        def on_replica(batch: Any, examples: tf.Tensor, *_: Any) -> Any:
            outputs = recipe.predict_step(batch)
            if strategy.num_replicas_in_sync == 1:
                return outputs
            rows = tf.where(examples > 0, tf.int32.max, 0)  # another replica has those of an idle one
            return tf.nest.map_structure(lambda x: x[:rows], outputs)

        batch = iterator.get_next() if compiled else next(iterator)
        with recipe.counts.at(counts):
            outputs = _run_on_slices(on_replica, recipe, strategy, Sharing(division), batch)
        if gathered:
            return tf.nest.map_structure(lambda x: strategy.gather(x, axis=0), outputs)
        return tf.nest.map_structure(lambda x: tf.concat(strategy.experimental_local_results(x), 0), outputs)

    program = tf.function(predict, autograph=False) if compiled else predict
    return lambda iterator: program(iterator, recipe.counts.tensor())


def split_loss(returned: Any) -> tuple[Any, Logs]:
    """Splits what `compute_loss` returned into `(loss, logs)`; it may return the loss alone.

    Example:
        >>> split_loss((1.0, {"penalty": 0.5}))
        (1.0, {'penalty': 0.5})
    """
    if isinstance(returned, tuple) and len(returned) == 2 and isinstance(returned[1], Mapping):
        return returned
    return returned, {}


def _on_all_replicas(
    on_replica: Callable[..., tf.Tensor], recipe: Recipe, strategy: tf.distribute.Strategy, sharing: Sharing
) -> Callable[[Any], tf.Tensor]:
    def step(batch: Any) -> tf.Tensor:
        row = _run_on_slices(on_replica, recipe, strategy, sharing, batch)
        return strategy.experimental_local_results(row)[0]

    return step


def _run_on_slices(
    on_replica: Callable[..., Any], recipe: Recipe, strategy: tf.distribute.Strategy, sharing: Sharing, batch: Any
) -> Any:
    """Runs `on_replica` on every replica.

    Its arguments are the slice, how many of its examples count, the examples of the global batch, and the lengths of
    that batch's parts.
    """
    check_batch_axis(batch)
    replicas = strategy.num_replicas_in_sync
    batch = sharing.division.checked(batch)
    parts, sharers = sharing.division.parts, sharing.sharers
    global_examples, of_parts = count_examples(batch, parts), lengths(batch, parts) if parts else ()
    random = xla.fast_random if xla.traces() else contextlib.nullcontext
    counted = counting.here()

    def run(batch: Any, global_examples: tf.Tensor, of_parts: Any) -> Any:
        with (
            precision.scope(recipe.precision),
            random(),
            counted(),
        ):  # these hold for a thread, and each replica has one
            if replicas == 1:
                return on_replica(batch, global_examples, global_examples, of_parts)
            context = tf.distribute.get_replica_context()
            replica = context.replica_id_in_sync_group
            if sharers is not None:
                place = replica % sharers
                first = tf.where(tf.equal(place, 0), global_examples, 0)  # one replica speaks for its worker
                total = context.all_reduce(tf.distribute.ReduceOp.SUM, first)
                return on_replica(*slices(batch, place, sharers, parts), total, of_parts)
            if not sharing.some_idle:
                return on_replica(*slices(batch, replica, replicas, parts), global_examples, of_parts)
            shortest = tf.reduce_min(tf.stack(of_parts)) if parts else global_examples
            whole = shortest < replicas if sharing.spread else tf.constant(True)
            found, examples = slices(batch, tf.where(whole, 0, replica), tf.where(whole, 1, replicas), parts)
            examples = tf.where(whole & tf.not_equal(replica, 0), 0, examples)
            return on_replica(found, examples, global_examples, of_parts)

    # floatx and the layers' calls are the whole process': set around all threads of the replicas
    with recipe.world(), precision.scope(recipe.precision), lookups.of_rows(recipe.lookups):
        return strategy.run(run, args=(batch, global_examples, of_parts))


def slices(batch: Any, replica: int | tf.Tensor, replicas: int | tf.Tensor, parts: Parts = ()) -> tuple[Any, tf.Tensor]:
    """A replica's slice of a batch and its number of examples; each part is divided by its own length.

    Example:
        >>> found, examples = slices({"a": tf.range(3), "b": tf.range(8)}, 1, 2, ["a", "b"])
        >>> found["b"].numpy().tolist(), int(examples)
        ([4, 5, 6, 7], 2)
    """
    return cut(batch, lambda length: (length * replica // replicas, length * (replica + 1) // replicas), parts)


def check_batch_axis(batch: Any) -> None:
    """Raises `InputError` if a tensor of the batch has no first axis to divide."""
    scalars = [x for x in tf.nest.flatten(batch) if x.shape.rank == 0]
    if scalars:
        raise InputError("the data yields scalars, not batches: batch it, such as with dataset.batch(32).")


def _summed_pairs(method: str, logs: Any, record: StepRecord, pipeline: Pipeline) -> tuple[list[str], list[tf.Tensor]]:
    """The pairs of a step's logs, summed over all replicas; those that the record has reduced are summed already."""
    metrics.checked(method, logs)
    reduced = record.reduced
    summed = {name: reduced[x.ref()] for name, x in logs.items() if isinstance(x, tf.Tensor) and x.ref() in reduced}
    others = {name: value for name, value in logs.items() if name not in summed}
    if record.division.parts:
        record.division.note_means(others, record.examples)
    names, scalars = metrics.local_pairs(others, record.examples, pipeline.replicas, pipeline.dtype, record.idle)
    scalars = record.checked(scalars)
    if pipeline.replicas > 1 and scalars:
        total = tf.distribute.get_replica_context().all_reduce(tf.distribute.ReduceOp.SUM, tf.stack(scalars))
        scalars = tf.unstack(total, num=len(scalars))
    pairs = metrics.by_name(names, scalars) | summed
    names = [name for name in dict.fromkeys([*logs, *pairs]) for _ in pairs.get(name, ())]  # in the order of the logs
    return names, [scalar for name in dict.fromkeys(names) for pair in pairs[name] for scalar in pair]


def _row(examples: tf.Tensor, skipped: tf.Tensor, scalars: list[tf.Tensor], dtype: tf.DType) -> tf.Tensor:
    return tf.stack([tf.cast(examples, dtype), tf.cast(skipped, dtype), *scalars])
