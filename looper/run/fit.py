"""One call of `fit`: its data, evaluator and workdir, where it goes on, and what its callbacks see."""

import dataclasses
import functools
import json
import sys
import warnings
import weakref
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import keras
import tensorflow as tf

from looper.audit import Tree
from looper.audit.replicas import kept_alike
from looper.base.batches import of_any_size
from looper.base.errors import InputError
from looper.base.ledger import Ledger
from looper.base.names import as_tf, named_objects, path_of
from looper.base.options import FitOptions, TrainerOptions
from looper.data import (
    Feed,
    Feeds,
    Named,
    Source,
    check_batch_size,
    check_length,
    has_batches,
    hint_at_named,
    identity,
    make_source,
    split,
)
from looper.recipe import build, optimizers
from looper.recipe.describe import as_json, describe
from looper.recipe.freezing import Switches
from looper.recipe.metrics import Window
from looper.run.alike import Alike
from looper.run.callback import Callback, Run
from looper.run.evaluation import Evaluation, Evaluator, in_set
from looper.run.events import Events
from looper.run.history import METRICS_FILE, History
from looper.run.loop import Loop
from looper.run.numbers import Numbers
from looper.run.on_batch import BatchSource, structure_of
from looper.run.session import Session
from looper.saved.progress import Progress
from looper.saved.resume import Restored, load_latest, load_weights, take_over
from looper.saved.variables import State, trainable_flags
from looper.saved.workdir import Workdir
from looper.step import autotune, programs
from looper.step.counting import Counting
from looper.step.trial import Modes
from looper.workers.peers import is_of_collectives


class Fit(Session):
    """The pieces of one `Trainer.fit`, put together before the loop runs, and after."""

    def __init__(self, options: TrainerOptions) -> None:
        self.history = History()
        self.ledger: Ledger | None = None
        self._progress = Progress()
        self._counts = Counting(lambda: (self._progress.step, self._progress.epoch))
        self._feed: Feed | None = None
        self._placed: Feed | None = None  # the one that was put to a checkpoint's position
        self._feeds = Feeds()
        self._refusals: set[str] = set()
        self._window = Window()
        self._numbers: weakref.WeakKeyDictionary[Any, Numbers] = weakref.WeakKeyDictionary()  # of single batches' steps
        self._switches: Switches | None = None  # as they were when a step on single batches was made last
        super().__init__(options)

    def _make_feed(self, data: Any, options: FitOptions, share: bool) -> Feed:
        """A feed over the data; the one of the last `fit` if the data is the same, so that it goes on there.

        With `share`, the data is this worker's part of it.
        """
        if data is None:
            raise InputError("there is no data to train on: give fit() some, or override train_data.")
        fraction = options.validation_split
        key = [*identity(data), options.batch_size, options.shuffle, fraction, options.prefetch]
        if self._feed is None or self._feed.key != key:
            with self._policy():
                source = make_source(
                    data if fraction is None else split(data, fraction)[0],
                    batch_size=options.batch_size,
                    shuffle=options.shuffle,
                    seed=self._options.seed,
                    name="training data",
                    training=True,
                    on_demand=options.prefetch == 0,
                )
            started = self._feed is not None and self._restored is None and self._no_step_since is None
            self._feed = Feed(source, key=key, holding=data)
            if started:
                self._feed.number = self.epoch if source.repeats else 0
                self._progress.epoch_step = 0
        self._set_parts(self._feed.source)
        self._set_share(self._feed.source, share)
        check_batch_size(self._feed, self._replicas_of_batch(self._feed))
        return self._feed

    def _replicas_of_batch(self, feed: Feed) -> int:
        return self._workers.replicas if feed.source.is_share else self.strategy.num_replicas_in_sync

    def _set_share(self, source: Source, share: bool) -> None:
        """Makes known that a source is this worker's part of the data.

        Raises:
            InputError: if the workers' parts may not end together, or a batch may leave a replica without examples;
                without `share`, if the workers read other batches.
        """
        source.is_share = share
        if not share:
            reason = source.why_unalike() if self._workers.size > 1 else None
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
        lengths = self._workers.gather([-1 if source.length is None else source.length])[:, 0].astype(int)
        if len(set(lengths)) > 1 or not (source.endless or source.length is not None):
            found = ", ".join("unknown" if length < 0 else str(length) for length in lengths)
            raise InputError(
                f"each worker loads its share of the data, and the shares have {found} batches: workers step together, "
                "so make them equal, or repeat() each and give steps_per_epoch=."
            )
        if self._workers.replicas > 1 and (source.smallest_batch or 0) < self._workers.replicas:
            raise InputError(
                f"a batch of a worker's share may have fewer examples than the {self._workers.replicas} replicas of a "
                "worker: batch with drop_remainder=True."
            )

    def _check_length(self, feed: Feed, options: FitOptions) -> None:
        try:
            check_length(feed, options, self.step, self._replicas_of_batch(feed))
        except tf.errors.OpError as error:  # of the batch that it looked at
            raise programs.explained(error, self.step, 1) from error

    def _make_own_evaluation(
        self, feed: Feed, train_data: Any, eval_data: Any, options: FitOptions
    ) -> Evaluation | None:
        """The evaluation of a fit: of the data it is given, of what it holds out, of the recipe's own, or None."""
        held_out = options.validation_split
        if held_out is not None and feed.source.is_share:
            raise InputError(
                f"validation_split={held_out} of a train_data(self, context), which loads a worker's share: hold out "
                "in an eval_data(self, context)."
            )
        eval_data, share = self._recipes(self.eval_data) if eval_data is None else (eval_data, False)
        if held_out is not None and eval_data is not None:
            raise InputError(f"validation_split={held_out} and eval_data: give one of them.")
        data = train_data if held_out is not None else eval_data
        if data is None:
            return None
        size = None if has_batches(data) else options.batch_size
        evaluation = self._make_evaluation(data, size, options.eval_steps, held_out, share)
        for evaluator in evaluation.evaluators:
            evaluator.check_repeatable()
        return evaluation

    def _make_evaluation(
        self,
        data: Any,
        batch_size: int | None,
        limit: int | None,
        held_out: float | None = None,
        share: bool = False,
    ) -> Evaluation:
        """An evaluation of one set of data or of several; then `batch_size` is for those that are not in batches."""
        if not isinstance(data, Named):
            with in_set("", hint := hint_at_named(data)):
                evaluator = self._make_evaluator(data, batch_size, limit, held_out, share)
            evaluator.hint = hint
            return Evaluation({"": evaluator})
        self._feeds.most = max(self._feeds.most, len(data.sets) + 1)
        sizes = {name: None if has_batches(each) else batch_size for name, each in data.sets.items()}
        evaluators = {}
        for name, each in data.sets.items():
            with in_set(name):
                evaluators[name] = self._make_evaluator(each, sizes[name], limit, held_out, share)
        return Evaluation(evaluators)

    def _make_evaluator(
        self,
        data: Any,
        batch_size: int | None,
        limit: int | None,
        held_out: float | None,
        share: bool,
    ) -> Evaluator:
        with self._policy():
            feed = self._feeds.get(data, batch_size=batch_size, name="evaluation data", held_out=held_out)
        self._set_parts(feed.source)
        self._set_share(feed.source, share)
        self._build_variables(feed.source.element_spec)
        execute = self._execution("eval", feed.source)
        return Evaluator(execute, feed, limit, self._evaluating, self._reader.results)

    def _execution_on(self, batch: Any, leaves: Sequence[Any]) -> programs.BatchExecution:
        """The training step for a batch, compiled anew if what is trained is another than the last time.

        Of one structure of batches the first is compiled for its number of examples, and one step for all others.
        """
        self._refresh()
        structure, sizes = structure_of(batch, leaves)
        kept = self._executions.of_batches
        if self._switches is None or self._switches.changed():
            kept.clear()
        found = kept.get((structure, sizes)) or kept.get((structure, None))
        if found is None:
            several = any(other == structure for other, _ in kept)
            found = self._make_execution_on(batch, None if several else sizes[0])
            kept[structure, None if several else sizes] = found
        return found

    def _make_execution_on(self, batch: Any, examples: int | None) -> programs.BatchExecution:
        spec = tf.nest.map_structure(tf.type_spec_from_value, batch)
        source = BatchSource(tf.nest.map_structure(of_any_size, spec) if examples is None else spec, examples)
        self._set_parts(source)
        self._class_weight, self._pipeline.skip_nonfinite = None, False  # of a fit and of its callbacks
        self._build_variables(source.element_spec)
        self._look_at_own_step(source.element_spec, source.parts)
        self._check_trainable()
        asked = self._options.execution
        execute = self._executions.on_batches(
            self._recipe(),
            source,
            self._reader,
            trainable_flags(self._attributes()),
            asked if asked == "xla_step" else "graph",
        )
        self._compile(execute, source, None, strict=self._options.strict)
        self._switches = Switches(self._layers())
        self._numbers[execute] = Numbers(self, execute.numbers)
        return execute

    def _look_at_replicas(self) -> Callable[[], None] | None:
        """What compares this process's replicas, if there are several."""
        if self._workers.replicas == 1:
            return None
        tree = Tree(self._attributes(), self.strategy)
        own = {id(thing): name for name, thing in named_objects(self._attributes())}

        def others() -> list[Any]:
            return kept_alike(self._attributes(), self._trainable_variables())

        def name(variable: Any) -> str:
            return own.get(id(variable)) or tree.name(as_tf(variable)) or path_of(variable)

        return Alike(self.strategy, self._trainable_variables, others, name).check

    def _describe(self, feed: Feed, options: FitOptions) -> dict[str, Any]:
        mine = ("precision", "accumulate", "clip_norm", "clip_value", "ema", "seed", "deterministic")
        chosen = {name: getattr(self._options, name) for name in mine}
        chosen["execution"] = self._options.execution
        chosen["replicas"] = self.strategy.num_replicas_in_sync
        chosen["steps_per_epoch"], chosen["class_weight"] = options.steps_per_epoch, options.class_weight
        data = feed.source.describe()
        if feed.source.is_share:  # they may have other numbers of examples
            data = json.loads(self._workers.texts(json.dumps(data, default=str))[0])
        return as_json(
            {
                "recipe": type(self).__name__,
                "config": describe(self.config),
                **self._described,
                "options": chosen,
                "data": data,
            }
        )

    def _decided_by(self, evaluation: Evaluation | None, callbacks: Sequence[Callback]) -> dict[str, Any]:
        """The settings that decide, besides the configuration, where executions end: the same on all workers."""
        sets = {} if evaluation is None else {name: evaluator.source for name, evaluator in evaluation.sets.items()}
        data = {name: "a share" if source.is_share else as_json(source.describe()) for name, source in sets.items()}
        called = [f"{type(callback).__name__} {callback.every or ''}".strip() for callback in callbacks]
        return {"evaluation data": data, "callbacks": called}

    def _open_workdir(self, config: Mapping[str, Any], resume: str | bool) -> Workdir | None:
        self._weights_from: Path | None = None
        if self.workdir is None:
            return None
        workdir = Workdir(self.workdir, self._workers)
        if self.step == 0 or self._restored is not None:
            self._weights_from = take_over(workdir, config, resume, self._workers)
        return workdir

    def _resume(self, workdir: Workdir, options: FitOptions) -> None:
        if options.resume in ("auto", True):
            restored = load_latest(
                workdir.checkpoints, self._state_in, lambda progress: progress.reached(options), self._workers
            )
            if restored is not None:
                self._take(restored)
                self._check_mode(workdir)
                self.history.load(workdir.path / METRICS_FILE, self.step)
        elif options.resume == "weights" and self._weights_from is not None:
            load_weights(self._weights_from, State(self._layers(), self.strategy))
            if self._average is not None:
                self._average.reset()

    def _check_mode(self, workdir: Workdir) -> None:
        """Raises `InputError` if the workdir's run is to go on in another mode: it would not end with the same bits."""
        asked, ran = self._options.execution, self._progress.mode
        if ran is not None and asked not in ("auto", ran):
            raise InputError(
                f"the workdir {workdir.path} holds a run with execution={ran!r}, and execution={asked!r} draws other "
                "numbers: leave it out, or give another workdir; or resume='weights' to start anew from "
                "its weights, resume=False to start anew (its files are kept in previous/)."
            )

    def _take(self, restored: Restored) -> None:
        self._progress = restored.progress
        self._restored = restored

    def _continue(self, workdir: Workdir | None, state: State, feed: Feed, options: FitOptions) -> None:
        """Puts everything where the workdir's last checkpoint, or the one given to `restore`, was."""
        target = options.steps or options.epochs
        if self._restored is None or target > (self._progress.ended_before or target):
            self._progress.ended = None  # an early stop holds for the same command started again, not for a longer one
        restored = self._restored or (self._no_step_since if feed is not self._placed else None)
        if restored is not None:
            restored.load_rest(state)
            self._window.restore(restored.window)
            feed.restore(restored.feed, restored.load_iterator)
            self._placed = feed
        if workdir is not None:
            workdir.set_aside_after(self.step)
            feed.warn_if_not_saved()

    def _modes(self, feed: Feed, options: FitOptions) -> Modes:
        """The ways to run the training steps."""
        replicas, most = self.strategy.num_replicas_in_sync, self._options.steps_per_execution
        # several replicas slice the batch, each to its own device
        on_gpu = replicas == 1 and tf.config.list_logical_devices("GPU")
        feed.stack, feed.device = None, "GPU:0" if on_gpu else None
        return Modes(
            make=functools.partial(self._execution, "train", feed.source),
            feed=feed,
            replicas=replicas,
            own_step=None if self._own_train_step is None else self._own_step.reason,
            from_chief=self._workers.from_chief,
            step=self.step,
            between=min(filter(None, (options.log_every.steps, None if most == "auto" else most)), default=None),
        )

    def _steps_per_execution(self, options: FitOptions) -> int | str:
        most = self._options.steps_per_execution
        if options.prefetch is None:
            return most
        if most not in ("auto", 1):
            raise InputError(
                f"prefetch=0 runs one step at a time, and steps_per_execution={most}: leave one of them out."
            )
        return 1

    def _settled_mode(self, feed: Feed, options: FitOptions) -> str | None:
        """The mode of the run if it is known without comparing them: asked for, or that which it began with."""
        asked, progress = self._options.execution, self._progress
        if asked != "auto":
            return asked
        if options.prefetch == 0:
            return "graph"  # to compare, the others would read ahead
        begun = None if progress.mode == "eager" else progress.mode  # what was run for debugging goes on compiled
        if self._options.deterministic:
            return begun or "graph"  # a clock may choose otherwise the next time
        return None if progress.mode_was_for_less(self._last_step(options, feed)) else begun

    def _in_mode(self, modes: Modes, options: FitOptions) -> tuple[programs.Execution, autotune.Choice | None]:
        """The training steps in the mode of the run, or of mode "graph" where XLA cannot do it.

        Also returns how the mode was chosen, if it was chosen now.
        """
        progress, choice = self._progress, None
        progress.mode = self._settled_mode(modes.feed, options)
        if progress.mode == "eager":
            return modes.enter("graph"), None  # which is not compiled then
        if progress.mode is None:
            last = self._last_step(options, modes.feed)
            choice = autotune.choose(modes, None if last is None else last - self.step, options.max_time)
            progress.mode = choice.mode
            self._executions.keep(choice.mode)
            progress.mode_for = None if choice.compared else last
        reason = modes.why_not(progress.mode)
        if reason is None:
            return modes.enter(progress.mode), choice
        self._say_refused(reason, 5)
        return modes.enter("graph"), choice

    def _fall_back(self, modes: Modes, error: tf.errors.OpError) -> programs.Execution | None:
        """The steps to go on with if the run's first one failed in XLA; None if that was not XLA's fault."""
        if is_of_collectives(error) or programs.is_own_check(error):  # another worker is gone, or the data is wrong
            return None
        self._say_refused(modes.refuse(self._progress.mode, error), 10)
        return modes.enter("graph")

    def _say_refused(self, reason: str, stacklevel: int) -> None:
        """Warns, once; `stacklevel` is that of the line with `fit`."""
        if reason not in self._refusals:
            self._refusals.add(reason)
            message = f"execution={self._progress.mode!r}: {reason}; training goes on with 'graph'."
            warnings.warn(message, stacklevel=stacklevel)

    def _tell(self, choice: autotune.Choice, workdir: Workdir | None) -> None:
        if choice.compared and self._workers.is_chief:
            print(f"looper: {choice}", file=sys.stderr)
        if workdir is not None:
            workdir.write_execution(dataclasses.asdict(choice))

    def _last_step(self, options: FitOptions, feed: Feed) -> int | None:
        """The step at which a fit will end, or None if it depends on data of unknown length.

        The epochs that are done may have had another length.
        """
        steps_per_epoch = options.steps_per_epoch or feed.source.length
        if options.steps is not None or steps_per_epoch is None:
            return options.steps
        begun_at = self.step - self._progress.epoch_step
        return begun_at + (options.epochs - self._progress.epoch) * steps_per_epoch

    def _events(self) -> Events | None:
        if self.workdir is None:
            return None
        return Events(self.workdir if self._workers.is_chief else None, self.step)

    def _make_run(
        self,
        options: FitOptions,
        feed: Feed,
        state: State,
        config: Mapping[str, Any],
        log_names: frozenset[str],
        callback_logs: frozenset[str],
        choice: autotune.Choice | None,
        needs: frozenset[str],
    ) -> Run:
        steps_per_epoch = options.steps_per_epoch or feed.source.length

        def begin_at_epoch(epoch: int) -> None:
            if steps_per_epoch is None:
                raise InputError(f"cannot begin at epoch {epoch} of data of unknown length: give fit steps_per_epoch=.")
            self._progress.step, self._progress.epoch, self._progress.epoch_step = epoch * steps_per_epoch, epoch, 0
            run.first_step, run.first_epoch = self.step, epoch
            self._window.reset()
            if steps_per_epoch == feed.source.length:  # otherwise the data goes on from where it is
                feed.restore({"number": epoch, "batch": 0}, None)

        run = Run(
            model=self.model,
            optimizer=self.optimizer,
            loss=self.loss,
            metrics={self._output_metrics.name(metric): metric for metric in self._output_metrics.metrics},
            workdir=self.workdir,
            events=self._events(),
            config=config,
            first_step=self.step,
            last_step=self._last_step(options, feed),
            epochs=options.epochs,
            steps_per_epoch=steps_per_epoch,
            log_names=log_names,
            **self._access(state),
            predict=self.predict,
            compute_loss=self._loss_alone,
            begin_at_epoch=begin_at_epoch,
            audit=self._report,
            choice=choice,
            ledger=self.ledger,
            input_wait=(lambda: run.ledger.seconds["input"]) if self._timed else None,
            averaged=self._average is not None,
            needs=needs,
            trainer=self._workers,
            workers=self._workers.size,
            is_chief=self._workers.is_chief,
            first_epoch=self._progress.epoch,
            callback_logs=callback_logs,
            models={name: thing for name, thing in self._layers().items() if isinstance(thing, keras.Model)},
            optimizers=build.named_optimizers(self._attributes()),
        )
        return run

    def _run(self, loop: Loop, callbacks: Sequence[Callback], run: Run, workdir: Workdir | None) -> None:
        begun: list[Callback] = []
        status = "failed"
        versions = {"tensorflow": tf.__version__, "keras": keras.__version__}
        if workdir is not None:
            workdir.write_run("running", self.step, versions)
        try:
            for callback in run.each(callbacks):
                callback.begin(run)
                begun.append(callback)
            if self._restored is not None:
                self._restored.give_states(callbacks)
                self._no_step_since, self._restored = self._restored, None
            began = self.step
            with run.ledger.section("other"), self._workers.watching("training"):
                loop.run()
            self._no_step_since = self._no_step_since if self.step == began else None
            status = "interrupted" if run.interrupted else "finished"
            if not run.interrupted:
                with self._scope():
                    for optimizer in build.all_optimizers(self._attributes()).values():
                        optimizers.finalize(optimizer)
            for callback in run.each(callbacks):
                callback.on_fit_end()
            loop.give_logged(self._progress.epoch if self._progress.epoch_step == 0 else None)
        except BaseException as error:
            status = "interrupted" if isinstance(error, KeyboardInterrupt | SystemExit) else status
            for callback in run.each(begun):
                callback.on_exception(error)
            raise
        finally:
            if workdir is not None:
                run.events.close()
                workdir.write_run(status, self.step, versions)
            run.ledger.end()
