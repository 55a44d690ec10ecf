"""The data of a trainer, opened as feeds: for training, for evaluation, and the first batch for an audit."""

import inspect
import itertools
from collections.abc import Callable, Mapping
from typing import Any

from looper.base.batches import Parts, count_examples, parts_in
from looper.base.errors import InputError
from looper.base.options import FitOptions
from looper.data.choose import has_batches, hint_at_named, make_source
from looper.data.dataset import DatasetSource
from looper.data.feed import Feed, check_batch_size, check_length, replayed
from looper.data.feeds import Feeds, identity
from looper.data.named import Named
from looper.data.python import without_lists
from looper.data.source import Source
from looper.data.split import split
from looper.run.building import Building
from looper.run.components import Components
from looper.run.devices import Devices
from looper.run.evaluation import Evaluation, Evaluator, in_set
from looper.run.hooks import Hooks
from looper.run.position import Position
from looper.run.steps import Steps
from looper.step.division import Division
from looper.step.gradients import Pipeline
from looper.step.programs import explaining


class Sources:
    """Opens the data of one trainer.

    Args:
        devices, components, building, steps, pipeline: the trainer's.
        hooks: the recipe's methods.
        seed: of shuffling.
    """

    def __init__(
        self,
        devices: Devices,
        components: Components,
        building: Building,
        steps: Steps,
        pipeline: Pipeline,
        hooks: Hooks,
        seed: int,
    ) -> None:
        self._devices, self._components, self._building, self._steps = devices, components, building, steps
        self._pipeline, self._hooks, self._seed = pipeline, hooks, seed
        self._feeds = Feeds()
        self._own_training: Any = None
        self._few: Any = None  # the batches that `overfit` trains on

    def own(self, method: Callable[..., Any]) -> tuple[Any, bool]:
        """The recipe's own data, and whether it is this worker's share: of a method that takes a context."""
        takes, workers = _takes_context(method), self._devices.workers
        with self._devices.random.entered():
            return method(workers.context) if takes else method(), takes and workers.size > 1

    def own_training(self) -> tuple[Any, bool]:
        """That of `train_data`; the same each time, so that another `fit` goes on where this one ends."""
        if self._own_training is None:
            self._own_training = self.own(self._hooks.train_data)
        return self._own_training

    def training(self, data: Any, options: FitOptions, share: bool, position: Position) -> Feed:
        """A feed over the data; the one of the last `fit` if the data is the same, so that it goes on there.

        With `share`, the data is this worker's part of it.
        """
        if data is None:
            raise InputError("there is no data to train on: give fit() some, or override train_data.")
        fraction = options.validation_split
        key = [*identity(data), options.batch_size, options.shuffle, fraction, options.prefetch, options.overfit]
        if position.feed is None or position.feed.key != key:
            with self._devices.policy():
                source = make_source(
                    data if fraction is None else split(data, fraction)[0],
                    batch_size=options.batch_size,
                    shuffle=options.shuffle and options.overfit is None,
                    seed=self._seed,
                    name="training data",
                    training=True,
                    on_demand=options.prefetch == 0,
                )
            if options.overfit is not None:
                source = self._first_batches(source, options.overfit)
            position.read(Feed(source, key=key, holding=data))
        position.feed.look_again()
        self._set_parts(position.feed.source)
        self._set_share(position.feed.source, share)
        check_batch_size(position.feed, self.replicas_of_batch(position.feed))
        return position.feed

    def _first_batches(self, source: Source, count: int) -> Source:
        """The first batches of a source, again and again, for as many as it has."""
        count = count if source.length is None else min(count, source.length)
        with explaining(0, count):
            batches = list(itertools.islice(source.open(0, 0), count))
        if not batches:
            raise InputError("the data is empty: it yielded 0 batches.")
        self._few = replayed(batches, source.element_spec)
        length = -1 if source.endless else source.length or len(batches)
        dataset = self._few.repeat().take(length) if length > 0 else self._few.repeat()
        few = DatasetSource(dataset, repeats=source.repeats)
        few.set_parts(source.parts)
        return few

    def replicas_of_batch(self, feed: Feed) -> int:
        """How many replicas share a batch of a feed."""
        return self._devices.workers.replicas if feed.source.is_share else self._devices.replicas

    def check_length(self, feed: Feed, options: FitOptions, step: int) -> None:
        """Raises `InputError` if it is known that the data cannot serve so long."""
        with explaining(step, 1):  # the batch that it looks at
            check_length(feed, options, step, self.replicas_of_batch(feed))

    def for_fit(self, feed: Feed, train_data: Any, eval_data: Any, options: FitOptions) -> Evaluation | None:
        """The evaluation of a fit: of the data it is given, of what it holds out, of the recipe's own, or None."""
        held_out = options.validation_split
        if held_out is not None and feed.source.is_share:
            raise InputError(
                f"validation_split={held_out} of a train_data(self, context), which loads a worker's share: hold out "
                "in an eval_data(self, context)."
            )
        eval_data, share = self.own(self._hooks.eval_data) if eval_data is None else (eval_data, False)
        if held_out is not None and eval_data is not None:
            raise InputError(f"validation_split={held_out} and eval_data: give one of them.")
        data = train_data if held_out is not None else eval_data
        if data is None:
            return None
        if options.overfit is not None:
            data = Named(dict.fromkeys(data.sets, self._few)) if isinstance(data, Named) else self._few
            held_out, share = None, feed.source.is_share
        size = None if has_batches(data) else options.batch_size
        limit = options.eval_steps if options.overfit is None else None
        evaluation = self.evaluation(data, size, limit, held_out=held_out, share=share)
        for evaluator in evaluation.evaluators:
            evaluator.check_repeatable()
        return evaluation

    def evaluation(
        self,
        data: Any,
        batch_size: int | None,
        limit: int | None,
        position: Position | None = None,
        *,
        held_out: float | None = None,
        share: bool = False,
    ) -> Evaluation:
        """An evaluation of one set of data or of several; then `batch_size` is for those that are not in batches.

        Variables that are made for it are given the values of a checkpoint that waits at `position`.
        """

        def make(data: Any, size: int | None) -> Evaluator:
            with self._devices.policy():
                feed = self._feeds.get(data, batch_size=size, name="evaluation data", held_out=held_out)
            self._set_parts(feed.source)
            self._set_share(feed.source, share)
            self.make_variables(feed.source.element_spec, position)
            execute = self._steps.evaluation(feed.source)
            return Evaluator(execute, feed, limit, self._components, hint)

        several = isinstance(data, Named)
        sets, hint = (data.sets, "") if several else ({"": data}, hint_at_named(data))
        self._feeds.keep_at_least(len(sets) + 1)
        evaluators = {}
        for name, each in sets.items():
            with in_set(name, hint):
                evaluators[name] = make(each, None if several and has_batches(each) else batch_size)
        return Evaluation(evaluators)

    def prediction(self, data: Any, batch_size: int | None) -> Feed:
        """A feed over data to predict from."""
        with self._devices.policy():
            feed = self._feeds.get(data, batch_size=batch_size, name="data")
        self._set_parts(feed.source)
        return feed

    def single(self, source: Source) -> Source:
        """Batches that are given one by one."""
        self._set_parts(source)
        return source

    def make_variables(self, element_spec: Any, position: Position | None, metrics: bool = True) -> None:
        """Makes variables for batches, and gives them the values of a checkpoint that waits."""
        self._building.make_variables(element_spec, None if position is None else position.saved, metrics)
        if position is not None:
            self.give_saved(position)

    def give_saved(self, position: Position) -> None:
        """Gives the variables that there are the values of a checkpoint that waits, those that were not given yet."""
        if position.saved is not None and not self._components.unbuilt:
            position.saved.apply(self._components.state(self._steps.captured), partly=True)

    def first_batch(self, batch: Any, batch_size: int | None, data: Any = None) -> tuple[Any, Division]:
        """A batch for the audit: the one given, as `fit` would read it, or the first of `data`.

        Also returns how a training step divides it. `data` is by default the recipe's own for training.
        """
        if isinstance(batch, Named):
            raise InputError("audit() and check_replicas() take one batch, and were given what named() returned.")
        batch = without_lists(batch)
        if batch is not None:
            data = batch
        elif data is None:
            data = self.own(self._hooks.train_data)[0]
        if isinstance(data, Named):
            data = next(iter(data.sets.values()))
        if data is None:
            raise InputError("there is no data to audit with: give audit() a batch, or override train_data.")
        own_parts = self._hooks.parts
        parts: Parts = own_parts

        def read(data: Any, batch_size: int | None) -> Any:
            nonlocal parts
            with self._devices.policy():
                source = make_source(data, batch_size=batch_size, shuffle=False, seed=0, name="data")
            parts = (*own_parts, *source.parts)
            return next(iter(source.open(0, 0)))  # not inside: the data may come from another trainer, in a thread

        def whole(data: Any) -> Any:
            return read(data, int(count_examples(data)))

        if has_batches(data):
            found = read(data, None)
        elif batch is None:
            found = read(data, batch_size or self._hooks.defaults.get("batch_size"))
        elif not parts_in(batch, own_parts):
            found = whole(batch)
        elif isinstance(batch, Mapping):
            found = {name: whole(part) for name, part in batch.items()}
        else:
            found = tuple(map(whole, batch))
        division = self._pipeline.division(parts_in(found, parts))
        return division.checked(found), division

    def _set_parts(self, source: Source) -> None:
        """Makes known which of the recipe's parts, besides those of the data, its batches have."""
        source.set_parts(parts_in(source.element_spec, (*self._hooks.parts, *source.parts)))

    def _set_share(self, source: Source, share: bool) -> None:
        """Makes known that a source is this worker's part of the data.

        Raises:
            InputError: if the workers' parts may not end together, or a batch may leave a replica without examples;
                without `share`, if the workers read other batches.
        """
        workers = self._devices.workers
        source.set_share(share)
        if workers.size > 1:
            source.read_singly()
        if not share:
            reason = source.why_unalike() if workers.size > 1 else None
            if reason is not None:
                raise InputError(
                    f"each worker takes its part of the same batches, and the data is not the same: {reason}."
                )
            return
        if source.parts:
            raise InputError(
                f"a worker's share of the data has the parts {source.parts}: let each worker read the same data, in a "
                "train_data(self), of which looper gives it its part."
            )
        lengths = workers.gather([-1 if source.length is None else source.length])[:, 0].astype(int)
        if len(set(lengths)) > 1 or not (source.endless or source.length is not None):
            found = ", ".join("unknown" if length < 0 else str(length) for length in lengths)
            raise InputError(
                f"each worker loads its share of the data, and the shares have {found} batches: workers step together, "
                "so make them equal, or repeat() each and give steps_per_epoch=."
            )
        if workers.replicas > 1 and (source.smallest_batch or 0) < workers.replicas:
            raise InputError(
                f"a batch of a worker's share may have fewer examples than the {workers.replicas} replicas of a "
                "worker: batch with drop_remainder=True."
            )


def _takes_context(method: Callable[..., Any]) -> bool:
    return bool(inspect.signature(method).parameters)
