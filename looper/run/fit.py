"""One call of `fit`: its data and workdir are opened, what was saved is read and applied, and the loop runs."""

import contextlib
import dataclasses
import functools
import json
from collections.abc import Callable, Sequence
from typing import Any

import keras
import tensorflow as tf

from looper.base.errors import InputError
from looper.base.ledger import REMEDIES, Ledger
from looper.base.lines import warn
from looper.base.options import FitOptions
from looper.base.provenance import provenance
from looper.base.say import say
from looper.base.schedule import Every, Ticker
from looper.recipe.describe import as_json, describe
from looper.recipe.freezing import Switches
from looper.recipe.schedules import ends_early
from looper.run.callback import Callback, all_needs
from looper.run.callback_view import Access, Now, Run
from looper.run.evaluation import Evaluator
from looper.run.events import Events
from looper.run.history import METRICS_FILE
from looper.run.loop import RATES, Loop, Plan
from looper.run.numbers import Numbers
from looper.run.position import Position
from looper.run.replica_check import Alike
from looper.run.session import Session
from looper.run.steps import Wanted
from looper.saved import checkpoint
from looper.saved.full_disk import telling_of_files
from looper.saved.lock import Lock
from looper.saved.resume import Pending, load_weights, read_latest, take, take_over
from looper.saved.saver import Saver
from looper.saved.variables import State
from looper.saved.workdir import Workdir
from looper.step import autotune, programs
from looper.step.trial import Modes
from looper.workers.peers import is_of_collectives


class Fit:
    """One call of `Trainer.fit`, from its options to its end.

    Args:
        session: the trainer's.
        position: how far it is; moved on.
        options: of this call.
        callbacks: all of them.
        config: the recipe's own settings.
        lock: of the run's directory, or None for none.
        saver: writes checkpoints.
        predict: the trainer's `predict`, for callbacks.

    Attributes:
        ledger: where its wall time goes.
    """

    def __init__(
        self,
        session: Session,
        position: Position,
        options: FitOptions,
        callbacks: Sequence[Callback],
        config: Any,
        lock: Lock | None,
        saver: Saver,
        predict: Callable[..., Any],
    ) -> None:
        self.ledger = Ledger()
        self._session, self._position, self._options, self._callbacks = session, position, options, callbacks
        self._recipes_config, self._saver, self._predict = config, saver, predict
        self._lock, self._workdir_path = lock, None if lock is None else lock.folder
        self._needs = all_needs(callbacks)
        self._steps_per_execution = self._most_steps()

    def run(self, train_data: Any, share: bool, eval_data: Any) -> None:
        """Trains. A run that was saved is put back in this order:

        1. Variables are made, and replicas get seeds of their own: a checkpoint has those of each replica.
        2. What layers are trained, then the optimizers for these, then which of their variables began when: the steps
           that are traced next depend on it.
        3. The mode is that of the run, and the steps are traced, which shows the variables that only they know of.
        4. All variables get their values, once; then random numbers, sums of logs, and the place in the data.
        5. Callbacks get their states when they have begun, as `on_fit_begin` makes what these go into.

        Args:
            train_data: the data, or a worker's part of it if `share`.
            share: see above.
            eval_data: as `Trainer.fit` takes it.
        """
        self._open(train_data, share, eval_data)
        with contextlib.ExitStack() as held:
            if self._lock is not None:
                self._session.devices.workers.by_chief(lambda: held.enter_context(self._lock))
                held.enter_context(telling_of_files(self._lock.folder))
            self._run()

    def _run(self) -> None:
        self._read()
        modes = self._modes()
        execute = modes.begin(self._settled_mode())
        self._compile(execute, strict=self._session.options.strict)
        if self._workdir is not None:
            self._workdir.write_config(self._config)  # not before: a step that cannot be compiled leaves no run behind
        log_names, callback_logs = self._names(execute)
        self._apply(modes)
        self._session.sources.check_length(self._feed, self._options, self._position.progress.step)
        with self._session.devices.workers.watching("choosing how to run the steps"):
            execute, choice = self._in_mode(modes)
        if self._workdir is not None:
            self._feed.warn_if_not_saved()  # when the feed knows whether it is read in stacks
        run = self._make_run(log_names, callback_logs, choice)
        if choice is not None:
            self._tell(choice)
        self._train(self._loop(execute, run), run)

    # Opening

    def _open(self, train_data: Any, share: bool, eval_data: Any) -> None:
        """Opens the data, and makes variables; all that can be wrong is looked at first."""
        session, position, options = self._session, self._position, self._options
        session.pipeline.set_skipping("skip_nonfinite" in self._needs)
        self._feed = session.sources.training(train_data, options, share, position)
        spec, parts = self._feed.source.element_spec, self._feed.source.parts
        session.building.make_variables(spec, position.saved)
        self._wanted = Wanted.of(options.class_weight, "input_wait" in self._needs, session.components.model, spec)
        session.building.look(spec, parts, position.saved)
        self._evaluation = session.sources.for_fit(self._feed, train_data, eval_data, options)
        self._both = "raw_evaluation" in self._needs
        if self._both and (session.components.average is None or self._evaluation is None):
            raise InputError("EmaEvaluation compares averaged weights: give the Trainer ema= and fit eval_data=.")
        session.check_trainable()
        self._config = self._described()
        session.devices.workers.check_same(lambda: self._config | self._decided_by())

    def _most_steps(self) -> int | str:
        most = self._session.options.steps_per_execution
        if self._options.prefetch is None:
            return most
        if most not in ("auto", 1):
            raise InputError(
                f"prefetch=0 runs one step at a time, and steps_per_execution={most}: leave one of them out."
            )
        return 1

    def _described(self) -> dict[str, Any]:
        own, options, devices = self._session.options, self._options, self._session.devices
        mine = ("precision", "accumulate", "clip_norm", "clip_value", "ema", "seed", "deterministic")
        chosen = {name: getattr(own, name) for name in mine}
        chosen["execution"] = own.execution
        chosen["replicas"] = devices.replicas
        chosen["steps_per_epoch"], chosen["class_weight"] = options.steps_per_epoch, options.class_weight
        if options.overfit is not None:
            chosen["overfit"] = options.overfit
        data = self._feed.source.describe()
        if self._feed.source.is_share:  # they may have other numbers of examples
            data = json.loads(devices.workers.texts(json.dumps(data, default=str))[0])
        return as_json(
            {
                "recipe": self._session.hooks.name,
                "config": describe(self._recipes_config),
                **self._session.components.described,
                "options": chosen,
                "data": data,
            }
        )

    def _decided_by(self) -> dict[str, Any]:
        """The settings that decide, besides the configuration, where executions end: the same on all workers."""
        sets = {} if self._evaluation is None else self._evaluation.sets
        sources = {name: evaluator.source for name, evaluator in sets.items()}
        data = {name: "a share" if source.is_share else as_json(source.describe()) for name, source in sources.items()}
        called = [f"{type(callback).__name__} {callback.every or ''}".strip() for callback in self._callbacks]
        return {"evaluation data": data, "callbacks": called}

    # What was saved

    def _read(self) -> None:
        """Opens the workdir, reads what is saved there if this is to go on with it, and puts what is trained to that.

        No variable is given a value, but for those of `resume="weights"`.
        """
        position, options, workers = self._position, self._options, self._session.devices.workers
        self._workdir = None if self._workdir_path is None else Workdir(self._workdir_path, workers)
        if self._workdir is None or (position.progress.step and position.waiting is None):
            return
        weights_from = take_over(self._workdir, self._config, options.resume, workers)
        if position.progress.step:
            return
        if options.resume in ("auto", True):
            saved = read_latest(self._workdir.checkpoints, lambda progress: progress.reached(options), workers)
            if saved is not None:
                self._check_mode(saved.items["progress"].get("mode"))
                self._session.building.enter(saved)
                saved.check(self._session.components.state(), partly=True)
                position.take(saved)
                position.history.load(self._workdir.path / METRICS_FILE, *position.numbers[:2])
        elif weights_from is not None:
            load_weights(weights_from, State(self._session.components.layers(), self._session.devices.strategy))
            if self._session.components.average is not None:
                self._session.components.average.reset()

    def _check_mode(self, ran: str | None) -> None:
        """Raises `InputError` if the workdir's run is to go on in another mode: it would not end with the same bits."""
        asked = self._session.options.execution
        if ran is not None and asked not in ("auto", ran):
            raise InputError(
                f"the workdir {self._workdir.path} holds a run with execution={ran!r}, and execution={asked!r} draws "
                "other numbers: leave it out, or give another workdir; or resume='weights' to start anew from "
                "its weights, resume=False to start anew (its files are kept in previous/)."
            )

    def _apply(self, modes: Modes) -> None:
        """Gives what was saved its place: values of all variables, those that only the traced steps know of, too; then
        random numbers, sums of logs, and the data. Callbacks get theirs when they have begun: see `Position.enter`."""
        session, position = self._session, self._position
        self._state = session.components.state(session.steps.captured)
        modes.put_back_to(self._state)
        target = self._options.steps or self._options.epochs
        if position.waiting is None or target > (position.progress.ended_before or target):
            # an early stop holds for the same command started again, not for a longer one
            position.progress.end(None, self._options)
        if position.saved is not None:
            position.saved.apply(self._state)
        if position.waiting is not None and "random" in position.waiting.items:
            session.devices.random.restore(position.waiting.items["random"])
        position.place()
        position.aim(self._last_step())
        self._look_at_schedules()
        if self._workdir is not None:
            self._workdir.set_aside_after(position.progress.step)

    def _look_at_schedules(self) -> None:
        """Warns of learning rates that have stopped falling long before this ends."""
        last = self._last_step()
        if last is None or last <= self._position.progress.step or self._session.hooks.own_train_step is not None:
            return  # nobody can tell how many updates there will be
        for optimizer in self._session.components.optimizers().values():
            if said := ends_early(optimizer, last):
                warn(said)

    def _take(self) -> Pending:
        """Takes the state of this moment for a checkpoint."""
        path = self._workdir.checkpoints / checkpoint.name_of(self._position.progress.step)
        devices = self._session.devices
        items = self._position.items(devices.random)
        return take(path, self._state, items, self._feed.saved_iterator, devices.workers)

    # Steps, and the mode that they run in

    def _compile(self, execute: programs.Execution, strict: bool = False) -> None:
        self._session.steps.compile(execute, self._feed.source, self._evaluation, strict)
        self._numbers = Numbers(self._session.hooks.attribute, execute.numbers)
        self._switches = Switches(self._session.components.layers())

    def _compile_anew(self, access: Access) -> programs.Execution:
        """Makes the steps for what is trained now."""
        session, source = self._session, self._feed.source
        session.building.make_optimizer(announced=True)
        session.building.look(source.element_spec, source.parts, announced=True)
        modes = self._modes()
        execute = modes.begin(self._settled_mode())
        self._compile(execute)
        self._state = session.components.state(session.steps.captured)
        modes.put_back_to(self._state)
        execute, _ = self._in_mode(modes)
        access.renew(self._state)
        return execute

    def _modes(self) -> Modes:
        """The ways to run the training steps."""
        session, feed = self._session, self._feed
        replicas, most = session.devices.replicas, session.options.steps_per_execution
        # several replicas slice the batch, each to its own device
        device = "GPU:0" if replicas == 1 and tf.config.list_logical_devices("GPU") else None
        feed.give(None, device)
        own_step = session.building.own_step.reason if session.hooks.own_train_step else None
        log_steps = self._options.log_every.steps
        return Modes(
            make=functools.partial(session.steps.training, self._wanted, feed.source),
            feed=feed,
            replicas=replicas,
            own_step=own_step,
            from_chief=session.devices.workers.from_chief,
            step=self._position.progress.step,
            between=min(filter(None, (log_steps, None if most == "auto" else most)), default=None),
            device=device,
        )

    def _settled_mode(self) -> str | None:
        """The mode of the run if it is known without comparing them: asked for, or that which it began with."""
        asked, progress = self._session.options.execution, self._position.progress
        if asked != "auto":
            return asked
        if self._options.prefetch == 0:
            return "graph"  # to compare, the others would read ahead
        begun = None if progress.mode == "eager" else progress.mode  # what was run for debugging goes on compiled
        if self._session.options.deterministic:
            return begun or "graph"  # a clock may choose otherwise the next time
        return None if progress.mode_was_for_less(self._last_step()) else begun

    def _in_mode(self, modes: Modes) -> tuple[programs.Execution, autotune.Choice | None]:
        """The training steps in the mode of the run, or of mode "graph" where XLA cannot do it.

        Also returns how the mode was chosen, if it was chosen now.
        """
        progress, choice = self._position.progress, None
        self._compiled_modes = modes
        progress.set_mode(self._settled_mode())
        if progress.mode == "eager":
            return modes.enter("graph"), None  # which is not compiled then
        if progress.mode is None:
            last = self._last_step()
            left = None if last is None else last - progress.step
            alone = self._session.devices.workers.size == 1
            choice = autotune.choose(modes, left, self._options.max_time, alone)
            progress.choose_mode(choice.mode, None if choice.compared else last)
            self._session.executions.keep(choice.mode)
        reason = modes.why_not(progress.mode)
        if reason is None:
            return modes.enter(progress.mode), choice
        self._say_refused(reason)
        return modes.enter("graph"), choice

    def _fall_back(self, error: tf.errors.OpError) -> programs.Execution | None:
        """The steps to go on with if the run's first one failed in XLA; None if that was not XLA's fault."""
        if is_of_collectives(error) or programs.is_own_check(error):  # another worker is gone, or the data is wrong
            return None
        self._say_refused(self._compiled_modes.refuse(self._position.progress.mode, error))
        return self._compiled_modes.enter("graph")

    def _say_refused(self, reason: str) -> None:
        """Warns, once for a trainer."""
        if reason not in self._position.refusals:
            self._position.refusals.add(reason)
            message = f"execution={self._position.progress.mode!r}: {reason}; training goes on with 'graph'."
            warn(message)

    def _tell(self, choice: autotune.Choice) -> None:
        if choice.compared and self._session.devices.workers.is_chief:
            say(f"looper: {choice}")
        if self._workdir is not None:
            self._workdir.write_execution(dataclasses.asdict(choice))

    def _last_step(self) -> int | None:
        """The step at which this will end, or None if it depends on data of unknown length.

        The epochs that are done may have had another length.
        """
        options, progress = self._options, self._position.progress
        steps_per_epoch = options.steps_per_epoch or self._feed.source.length
        if options.steps is not None or steps_per_epoch is None:
            return options.steps
        begun_at = progress.step - progress.epoch_step
        return begun_at + (options.epochs - progress.epoch) * steps_per_epoch

    # What callbacks see, and the loop

    def _names(self, execute: programs.Execution) -> tuple[frozenset[str], frozenset[str]]:
        """The names of what will be logged, none in eager mode, and those of what callbacks declare to log."""
        reader = self._session.components.reader

        def logs_of(evaluator: Evaluator) -> set[str]:
            logs = {*evaluator.execute.names, *reader.results(), "examples"} - evaluator.left_out
            return logs | {f"raw_{name}" for name in logs} if self._both else logs

        evaluated = set() if self._evaluation is None else self._evaluation.named(logs_of)
        logged = {f"eval/{name}" for name in evaluated} | {*execute.names, *reader.training_names, *RATES}
        of_callbacks = frozenset(name for callback in self._callbacks for name in callback.logs or ())
        if of_callbacks & logged:
            raise InputError(f"a callback declares the log {min(of_callbacks & logged)!r}, which training logs itself.")
        return frozenset(logged) | of_callbacks if execute.names else frozenset(), of_callbacks

    def _make_run(
        self, log_names: frozenset[str], callback_logs: frozenset[str], choice: autotune.Choice | None
    ) -> Run:
        session, progress, options = self._session, self._position.progress, self._options
        components, workers = session.components, session.devices.workers
        steps_per_epoch = options.steps_per_epoch or self._feed.source.length
        now = Now(progress.step, progress.epoch)
        return Run(
            model=components.model,
            optimizer=components.optimizer,
            loss=components.loss,
            metrics=components.output_metrics.by_name(),
            compiled_metrics=components.output_metrics.given,
            models=components.models(),
            optimizers=components.named_optimizers(),
            workdir=self._workdir_path,
            events=self._events(),
            config=self._config,
            last_step=self._last_step(),
            epochs=options.epochs,
            steps_per_epoch=steps_per_epoch,
            log_names=log_names,
            callback_logs=callback_logs,
            needs=self._needs,
            audit=session.steps.report,
            choice=choice,
            averaged=components.average is not None,
            workers=workers.size,
            is_chief=workers.is_chief,
            trainer=session,
            now=now,
            access=Access(components, self._position.window, self._state),
            predict=self._predict,
            compute_loss=session.loss_alone,
            begin_at_epoch=functools.partial(self._begin_at_epoch, now, steps_per_epoch),
            ledger=self.ledger,
            input_wait=(lambda: self.ledger.seconds["input"]) if self._wanted.timed else None,
        )

    def _begin_at_epoch(self, now: Now, steps_per_epoch: int | None, epoch: int) -> None:
        if steps_per_epoch is None:
            raise InputError(f"cannot begin at epoch {epoch} of data of unknown length: give fit steps_per_epoch=.")
        progress = self._position.progress
        progress.move_to(epoch, steps_per_epoch)
        now.begin_at(progress.step, epoch)
        self._position.window.reset()
        if steps_per_epoch == self._feed.source.length:  # otherwise the data goes on from where it is
            self._feed.restore({"number": epoch, "batch": 0}, None)

    def _events(self) -> Events | None:
        if self._workdir_path is None:
            return None
        chief = self._session.devices.workers.is_chief
        return Events(self._workdir_path if chief else None, self._position.progress.step)

    def _look_at_replicas(self) -> Callable[[], None] | None:
        """What compares this process's replicas, if there are several."""
        session = self._session
        if session.devices.workers.replicas == 1:
            return None
        return Alike(session.devices.strategy, session.components, session.steps.tree).check

    def _loop(self, execute: programs.Execution, run: Run) -> Loop:
        options, workers = self._options, self._session.devices.workers
        clock, evaluation = workers.clock(), self._evaluation
        plan = Plan(
            epochs=options.epochs,
            steps=options.steps,
            steps_per_epoch=options.steps_per_epoch,
            steps_per_execution=self._steps_per_execution,
            log=Ticker(options.log_every, clock),
            evaluation=Ticker(options.eval_every or Every(epochs=1), clock),
            saving=Ticker(options.save_every, clock),
            max_time=options.max_time,
            evaluate=None if evaluation is None else evaluation.run_both if self._both else evaluation.run,
            take=None if self._workdir is None else self._take,
            saver=self._saver,
            compile=functools.partial(self._compile_anew, run.access),
            changed=lambda: self._switches.changed(),  # those of the steps that there are then
            look=self._look_at_replicas(),
            look_at_numbers=lambda: self._numbers.check(),
            max_skipped=None if self._session.components.loss_scale is None else self._session.options.max_skipped,
            fall_back=self._fall_back,
        )
        reader = self._session.components.reader
        return Loop(plan, self._position, execute, reader, self._callbacks, run, workers, clock)

    def _why_input(self, first_step: int, read: tuple[int, float], device_seconds: float) -> str | None:
        """How fast the data comes and the steps would be, and what to change; None if that was not measured.

        Args:
            first_step: where this fit began.
            read: batches, and seconds, before it.
            device_seconds: that its steps took.
        """
        steps = self._position.progress.step - first_step
        batches, seconds = (now - then for now, then in zip(self._feed.read_so_far, read, strict=True))
        if not (steps and device_seconds and batches and seconds):
            return None
        paces = f"the data comes at {batches / seconds:,.0f} batches/s, and the steps would take "
        remedies = "; ".join(self._feed.source.remedies()) or REMEDIES["input"]
        return f"{paces}{steps / device_seconds:,.0f}. {remedies[0].upper()}{remedies[1:]}"

    def _train(self, loop: Loop, run: Run) -> None:
        begun: list[Callback] = []
        position, workers = self._position, self._session.devices.workers
        status = "failed"
        about: dict[str, Any] = {}
        if self._workdir is not None and workers.is_chief:
            about = provenance() | {"devices": [device.name for device in tf.config.list_logical_devices()]}
            about["packages"] = about["packages"] | {"tensorflow": tf.__version__, "keras": keras.__version__}

        def note(status: str) -> None:
            if self._workdir is not None:
                self._workdir.write_run(status, position.progress.step, about)

        note("running")
        try:
            for callback in run.each(self._callbacks):
                callback.begin(run)
                begun.append(callback)
            position.enter(self._callbacks)
            why = functools.partial(self._why_input, position.progress.step, self._feed.read_so_far)
            self.ledger.explain_input(why)
            with run.ledger.section("other"), workers.watching("training"):
                loop.run()
            status = "interrupted" if run.interrupted else "finished"
            if not run.interrupted:
                self._session.building.finish_optimizers()
            for callback in run.each(self._callbacks):
                callback.on_fit_end()
            loop.give_logged(position.progress.epoch if position.progress.epoch_step == 0 else None)
        except BaseException as error:
            status = "interrupted" if isinstance(error, KeyboardInterrupt | SystemExit) else status
            for callback in run.each(begun):
                callback.on_exception(error)
            raise
        finally:
            if run.events is not None:
                run.events.close()
            note(status)
            self._feed.rest()
            self._saver.close(given_up=status == "failed")
            if self._workdir is not None:
                self._workdir.sweep()
            run.ledger.end()
