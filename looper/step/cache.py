"""Compiled steps of a trainer: made once for each structure of batches, and anew when what they hold changes."""

import dataclasses
from collections.abc import Callable
from typing import Any

import tensorflow as tf

from looper.data.source import Source
from looper.data.stacks import stacked_in_graph
from looper.recipe.metrics import Reader
from looper.step import programs, replicas
from looper.step.counting import Counting
from looper.step.division import Division
from looper.step.gradients import Pipeline
from looper.step.retraces import Compiled, Retraces

MOST = 12
"""Compiled steps at once: settings that change from call to call, such as class weights, compile steps of their own."""


class Executions:
    """Keeps compiled (or eager) steps.

    Attributes:
        compiled: them, by what they depend on, with the structure of their batches as text.
        of_batches: the steps to take on single batches, by the batches' structure and shapes.

    Args:
        pipeline: whose strategy and dtype the steps use, and which training updates variables with.
        compiled: whether to compile.
        workers: how many processes the replicas are in.
        counts: the numbers of steps and epochs done.
    """

    def __init__(self, pipeline: Pipeline, *, compiled: bool, workers: int, counts: Counting) -> None:
        self._pipeline, self._compiles = pipeline, compiled
        self._workers, self._counts = workers, counts
        self.compiled: dict[Compiled, Any] = {}
        self.of_batches: dict[Any, Any] = {}
        self._retraces = Retraces()
        self._dropped: set[int] = set()  # hashes of keys

    def clear(self) -> None:
        """Forgets everything: the model, the loss or the like is another one now."""
        self.compiled.clear()
        self.of_batches.clear()
        self._retraces.clear()
        self._dropped.clear()

    def keep(self, mode: str) -> None:
        """Forgets the training steps of modes other than this and "graph"."""
        for key in [key for key in self.compiled if key.kind == "train" and key.mode not in (mode, "graph")]:
            del self.compiled[key]

    def training(
        self,
        recipe: replicas.Recipe,
        source: Source,
        reader: Reader,
        flags: Any,
        class_weight: tuple[tuple[int, float], ...],
        timed: bool,
        mode: str,
        stack: int | None,
    ) -> programs.Execution:
        """Training steps over a source.

        Args:
            recipe: what a step does.
            source: for the structure of its batches.
            reader: the metrics to read after an execution.
            flags, class_weight: what else the recipe depends on; steps made under others are not used.
            timed: see `Execution`; steps over stacks wait outside of the graph, and need no clock in it.
            mode: "graph", "xla_step" or "xla_loop"; without compilation it is always "eager".
            stack: for "xla_loop", the batches in a stack.
        """
        some_idle = self._some_idle(source)
        stacked = mode == "xla_loop" or self._stacks_in_graph(source)
        timed = timed and not stacked
        kind = (_counted(source), some_idle, source.is_share, source.parts)
        settings = (kind, flags, self._pipeline.skip_nonfinite, timed, stacked, stack)
        needed = Compiled("train", source.element_spec, class_weight, mode, settings)

        def make() -> programs.Execution:
            step, outer = self._train_step(recipe, source, mode)
            more = {"kind": "train", "reader": reader, **self._settled}
            execute: programs.Execution
            if stacked:
                spec = source.element_spec
                execute = programs.StackedExecution(step, mode=outer, element_spec=spec, size=stack, **more)
            else:
                execute = programs.Execution(step, mode=outer, counted=_counted(source), timed=timed, **more)
            if mode == "xla_step":
                execute.await_xla()
            return execute

        return self._get(needed, make)

    def on_batches(
        self, recipe: replicas.Recipe, source: Source, reader: Reader, flags: Any, mode: str
    ) -> programs.BatchExecution:
        """A training step on single batches, in mode "graph" or "xla_step". Other arguments as for `training`."""

        def make() -> programs.BatchExecution:
            step, outer = self._train_step(recipe, source, mode)
            spec = source.element_spec
            return programs.BatchExecution(step, element_spec=spec, mode=outer, reader=reader, **self._settled)

        settings = ("single batches", flags, self._some_idle(source))
        return self._get(Compiled("train", source.element_spec, mode=mode, settings=settings), make)

    def _train_step(self, recipe: replicas.Recipe, source: Source, mode: str) -> tuple[programs.Step, str]:
        """A training step, and the mode of what loops over it."""
        names: list[str] = []
        xla_inside = mode == "xla_step" and self._pipeline.replicas > 1
        sharing = self._sharing(source, self._pipeline.division(source.parts))
        run = replicas.train_step(recipe, self._pipeline, names, sharing, xla_inside)
        step = programs.Step(run, names, self._pipeline.dtype, sharing.division)
        return step, ("graph" if xla_inside else mode) if self._compiles else "eager"

    def evaluation(self, recipe: replicas.Recipe, source: Source, flags: Any) -> programs.Execution:
        """Evaluation steps over a source. Arguments as for `training`."""
        sharing = self._sharing(source, self._pipeline.division(source.parts).without_micro_batches())
        stacked = self._stacks_in_graph(source)

        def make() -> programs.Execution:
            names: list[str] = []
            run = replicas.eval_step(recipe, self._pipeline, names, sharing)
            step = programs.Step(run, names, self._pipeline.dtype, sharing.division)
            more = {"kind": "eval", **self._settled}
            if stacked:
                return programs.StackedExecution(step, mode="graph", element_spec=source.element_spec, **more)
            mode = "graph" if self._compiles else "eager"
            return programs.Execution(step, mode=mode, counted=_counted(source), **more)

        settings = (_counted(source), sharing.some_idle, source.is_share, source.parts, flags, stacked)
        return self._get(Compiled("eval", source.element_spec, settings=settings), make)

    def _stacks_in_graph(self, source: Source) -> bool:
        """Whether steps in the graph take their batches from stacks: see `looper.data.feed.Feed`."""
        return self._compiles and stacked_in_graph(source.batch_bytes)

    def _sharing(self, source: Source, division: Division) -> replicas.Sharing:
        """How replicas share a source's batches, each of which may be one worker's part of the global one."""
        sharers = self._pipeline.replicas // self._workers if source.is_share else None
        return replicas.Sharing(division, self._some_idle(source), sharers=sharers)

    def _some_idle(self, source: Source) -> bool:
        """Whether a batch may have fewer examples than there are replicas."""
        if source.is_share:  # was looked at before: see `Fit._set_share`
            return False
        specs = tf.nest.flatten(source.element_spec)
        fixed = [spec.shape[0] if spec.shape.rank else None for spec in (specs if source.parts else specs[:1])]
        least = min(fixed) if all(fixed) else None if source.parts else source.smallest_batch
        return self._pipeline.replicas > 1 and (least is None or least < self._pipeline.replicas)

    def prediction(self, recipe: replicas.Recipe, source: Source) -> Any:
        """From an iterator over a source to the outputs for its next batch."""

        def make() -> Any:
            return replicas.predict_function(
                recipe,
                self._pipeline.strategy,
                division=self._pipeline.division(source.parts).without_micro_batches(),
                compiled=self._compiles,
                gathered=self._workers > 1,
            )

        return self._get(Compiled("predict", source.element_spec, settings=source.parts), make)

    def _get(self, needed: Compiled, make: Callable[[], Any]) -> Any:
        key = dataclasses.replace(needed, element_spec=str(needed.element_spec))
        if key in self.compiled:
            self.compiled[key] = self.compiled.pop(key)  # to the end: what is dropped was not used for longest
        else:
            if self._compiles and hash(key) in self._dropped:
                self._retraces.again(needed.kind, MOST)
            elif self._compiles:
                self._retraces.compiled(needed)
            while len(self.compiled) >= MOST:
                dropped = next(iter(self.compiled))
                self._dropped.add(hash(dropped))
                del self.compiled[dropped]
            self.compiled[key] = make()
        return self.compiled[key]

    @property
    def _settled(self) -> dict[str, Any]:
        """What every execution is made with."""
        return {"retraces": self._retraces, "counts": self._counts}


def _counted(source: Source) -> bool:
    return source.endless or source.length is not None
