"""The one loop: execute, log, evaluate, save, call back.

until the last step or epoch:
    before an epoch's first step: on_epoch_begin
    execute up to the next boundary                  on the device; the host reads nothing
    at a boundary, if due:
        log       fetch the steps' rows and the metrics once; callbacks' on_step, on_epoch_end
        evaluate  on_eval_begin, on_eval_end
        change    on_change; the step is compiled anew if one did
        on_boundary_end
        save      last, so that a checkpoint holds all that this boundary did; on_save
        saved     on_saved, when a thread has written it
"""

import contextlib
import dataclasses
import json
import math
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from looper.base.errors import InputError, Interrupted, NonFiniteLossError, SaveError
from looper.base.lines import warn
from looper.base.schedule import Ticker, steps_to_boundary, steps_to_cut
from looper.data.feed import Feed, data_ended
from looper.launch.failure import REQUEUE
from looper.recipe.metrics import FIXED, Reader
from looper.run.callback import Callback
from looper.run.callback_view import Run
from looper.run.position import Position
from looper.run.skipped import SkippedInARow
from looper.saved.progress import Progress
from looper.saved.resume import Pending
from looper.saved.saver import Saved, Saver
from looper.step.programs import Execution, explained, explaining
from looper.workers.exchange import Clock, Workers

EXECUTION_SECONDS = 0.25
"""Seconds that an execution should take: long enough to hide the call, short enough to answer a signal."""

FEWER_THAN_PROMISED = "the data ended before the number of batches that its cardinality promises."

RATES = ("steps_per_second", "examples_per_second")
"""Logs that the loop adds to those of the steps."""


@dataclasses.dataclass(frozen=True)
class Plan:
    """The things to do, and when.

    Attributes:
        epochs, steps: the total to train until; one of them is None.
        steps_per_epoch: length of an epoch in steps; None means one pass over the data.
        steps_per_execution: the most steps in one execution, or "auto".
        log, evaluation, saving: when each is due.
        max_time: seconds after which to stop, or None.
        evaluate: evaluates, or None.
        take: takes the state for a checkpoint, or None.
        saver: has it written.
        compile: makes the steps for what is trained now.
        changed: whether that is something else than what the steps were compiled for.
        look: looks whether replicas hold what they are to have alike, or None if there is one.
        look_at_numbers: looks whether Python numbers are those that the steps were compiled with.
        max_skipped: how many steps in a row may be skipped, or None for any number.
        fall_back: makes the steps to go on with when the first one failed in XLA, or None if that is not XLA's fault.
    """

    epochs: int | None
    steps: int | None
    steps_per_epoch: int | None
    steps_per_execution: int | str
    log: Ticker
    evaluation: Ticker
    saving: Ticker
    max_time: float | None
    evaluate: Callable[[], dict[str, float]] | None
    take: Callable[[], Pending] | None
    saver: Saver
    compile: Callable[[], Execution]
    changed: Callable[[], bool]
    fall_back: Callable[[tf.errors.OpError], Execution | None]
    look: Callable[[], None] | None = None
    look_at_numbers: Callable[[], None] = lambda: None
    max_skipped: int | None = None

    def done(self, progress: Progress) -> bool:
        return progress.reached(self)


class Loop:
    """Runs a `Plan`. Holds what changes while it does.

    Args:
        plan: what to do.
        position: where training stands, the data, and the sums since the last log; moved on in place.
        execute: the compiled steps.
        reader: names the metrics and settings that an execution reads.
        callbacks: called in this order.
        run: what the callbacks know.
        workers: this one and the others: what a clock, a signal or a callback of its own decides is the chief's.
        clock: the clock that they share; the plan's tickers go by it.
    """

    def __init__(
        self,
        plan: Plan,
        position: Position,
        execute: Execution,
        reader: Reader,
        callbacks: Sequence[Callback],
        run: Run,
        workers: Workers,
        clock: Clock,
    ) -> None:
        self._workers, self._clock = workers, clock
        self._signals = StopSignals(plan.take is not None)
        self._signal: int | None = None  # that all workers know of
        self._plan, self._execute_steps, self._reader = plan, execute, reader
        self._progress, self._window, self._history = position.progress, position.window, position.history
        self._feed: Feed = position.feed
        self._callbacks, self._run = callbacks, run
        self._pending: list[tuple[int, tf.Tensor]] = []
        self._tickers = [
            (callback, Ticker(callback.every, clock)) for callback in callbacks if callback.every is not None
        ]
        self._limit = 1 if plan.steps_per_execution == "auto" else int(plan.steps_per_execution)
        self._executions, self._first = 0, True
        self._rolled_on = False  # to another pass over a dataset, for `steps`
        self._compiled = (0, 0.0)  # steps of the window in whose call XLA compiled, and what that took
        self._last_save: int | None = None
        self._saved: list[Saved] = []  # in this fit, those that this worker knows of
        self._published = self._told = 0  # how many the chief had published when all agreed, and callbacks know of
        self._skipped = None if plan.max_skipped is None else SkippedInARow(plan.max_skipped)
        self._looked = plan.look is None
        self._last_row: dict[str, float] = {}
        self._ledger = run.ledger

    def run(self) -> None:
        """Trains until the end, a stop, or an error.

        Raises:
            KeyboardInterrupt: after Ctrl-C, when all is saved.
            SystemExit: after SIGTERM or SIGHUP, when all is saved, with the code REQUEUE.
            SaveError: if the last checkpoint cannot be written.
            NonFiniteLossError: at the boundary after the loss became NaN or infinite.
            InputError: if the data ends too early.
        """
        progress, plan = self._progress, self._plan
        self._run.now.stop(progress.ended)  # of a run that was continued after it had ended
        first_step = progress.step
        began = self._window_began = self._clock()
        self._waited = self._input_wait()
        with self._signals:
            while not (plan.done(progress) or progress.ended):
                if progress.epoch_step == 0:
                    self._window.begin_epoch()
                    for callback in self._each():
                        callback.on_epoch_begin(progress.epoch)
                with self._ledger.section("dispatch"):
                    ended = self._execute()
                if ended:
                    progress.end_epoch()
                self._boundary(ended)
                timed_out = plan.max_time is not None and self._clock() - began >= plan.max_time
                if self._run.stop_reason:
                    progress.end(self._run.stop_reason, plan)
                elif self._signal or timed_out:
                    if not plan.done(progress):
                        self._run.now.interrupt(f"max_time={plan.max_time} seconds are over" if timed_out else None)
                    break
            self._absorb()
            if progress.step > first_step:  # otherwise a checkpoint of this step may know more: see `Position.saved`
                self._save(last=True)
            self._finish_save(last=True)
            self._agree()  # when the chief has published it
            self._tell_saved()
        if self._signal == signal.SIGINT:
            then = "the same command continues there" if plan.take else "nothing was saved, for lack of a workdir"
            raise Interrupted(f"stopped after step {progress.step}; {then}")
        if self._signal is not None:
            raise SystemExit(REQUEUE)

    def _execute(self) -> bool:
        """Runs up to the next boundary. Returns whether an epoch ended."""
        plan, progress, feed = self._plan, self._progress, self._feed
        tickers = [plan.evaluation, plan.saving, *(ticker for _, ticker in self._tickers)]
        to_log = plan.log.steps_left(progress.epoch_step)  # windows begin with the epoch
        to_end = None if plan.steps is None else plan.steps - progress.step
        to_epoch_end = None if plan.steps_per_epoch is None else plan.steps_per_epoch - progress.epoch_step
        to_cut = [steps_to_cut(callback.one_by_one, progress.step) for callback in self._callbacks]
        compiles = self._execute_steps.awaits_xla
        if compiles:
            self._look_ahead()
        limit = 1 if compiles else self._limit
        limits = (limit, to_log, to_end, to_epoch_end, feed.left, feed.at_hand, *to_cut)
        steps = steps_to_boundary(progress.step, tickers, *limits)
        started = time.monotonic()
        # a window that holds nothing begins here: the metrics still hold the one before
        fresh = not (self._window.steps or self._pending)
        emptied_before = self._window.held is not None or not self._window.held_known
        if "epoch_metrics" in self._run.needs:  # a `fit` before may have emptied them within this epoch
            fresh = progress.epoch_step == 0 or (self._first and emptied_before)
        elif progress.epoch_step and not emptied_before:  # or not, and they hold the epoch so far
            fresh = False
        self._first = False
        rows, ran, self._values = self._call(steps, fresh)
        if not self._looked:
            self._look()
        with self._ledger.section("device"):
            ran = int(ran)  # a Python number already, unless the data is of unknown length
        seconds = time.monotonic() - started
        self._pending.append((progress.step, rows))
        progress.advance(ran)
        feed.advance(ran)
        for callback in self._each():
            callback.on_execution(progress.step)
        seconds = self._agree(seconds)
        if compiles:
            self._compiled = (ran, seconds)
        else:
            self._adapt_limit(ran, seconds)
        if ran < steps and not feed.fails_next and feed.ended_early:
            raise InputError(FEWER_THAN_PROMISED)
        return self._epoch_ended(pass_ended=(ran < steps and not feed.fails_next) or feed.left == 0)

    def _call(self, steps: int, fresh: bool) -> tuple[tf.Tensor, int | tf.Tensor, tf.Tensor]:
        """Calls the compiled steps; others in their place if XLA refuses these at their first step."""
        try:
            with self._ledger.section("input"):
                iterator = self._feed.iterator
            return self._execute_steps(iterator, steps, fresh, self._ledger)
        except tf.errors.OutOfRangeError as error:
            raise InputError(FEWER_THAN_PROMISED) from error
        except tf.errors.OpError as error:
            with self._ledger.section("startup"):
                others = self._plan.fall_back(error) if self._execute_steps.awaits_xla else None
            if others is None:
                raise explained(error, self._progress.step, self._feed.unread or steps) from error
        iterator = None  # closed, before another one is opened
        self._execute_steps = others
        self._feed.again()
        return self._call(steps, fresh)

    def _look_ahead(self) -> None:
        """Looks at the next batch, so that it can be given again."""
        with explaining(self._progress.step, 1), self._ledger.section("input"):
            self._feed.peek()

    def _agree(self, seconds: float = 0.0) -> float:
        """Makes all workers know what the chief's clock and callbacks say, and a signal that any of them got.

        `seconds` is a duration; returns the chief's.
        """
        run = self._run
        if self._workers.size == 1:
            self._signal, self._published = self._signals.received, len(self._saved)
            return seconds
        asked = [run.now.stop_reason is not None, run.now.save_asked]
        mine = [time.monotonic(), seconds, self._signals.received or 0, *asked, len(self._saved)]
        with self._ledger.section("device"):
            told = self._workers.gather(mine)
        self._clock.tell(told[0, 0])
        self._signal = int(told[:, 2].max()) or None
        run.now.stop((run.now.stop_reason or "worker 0 ended training") if told[0, 3] else None)
        run.now.ask_save(bool(told[0, 4]))
        self._published = int(told[:, 5].min())
        return float(told[0, 1])

    def _input_wait(self) -> float:
        """Seconds that steps have waited for data so far, by the chief; 0 if that is not measured."""
        waited = self._run.input_wait
        return self._workers.from_chief(waited()) if waited else 0.0

    def _epoch_ended(self, pass_ended: bool) -> bool:
        plan, progress, feed = self._plan, self._progress, self._feed
        if pass_ended and feed.batch == 0:
            raise InputError("the data is empty: it yielded 0 batches.")
        if plan.steps_per_epoch is None:
            ended, wanted = pass_ended, f"steps={plan.steps}"
            more = ended and plan.steps is not None and progress.step < plan.steps
            short = more and feed.source.once
            if more and not (short or feed.source.repeats or self._rolled_on):
                self._rolled_on = True
                warn(f"the data ends after step {progress.step}, before {wanted} is reached, and is read again.")
        else:
            ended = progress.epoch_step == plan.steps_per_epoch
            last = ended and plan.epochs is not None and progress.epoch + 1 >= plan.epochs
            short = pass_ended and not last and not feed.source.repeats and progress.step != plan.steps
            wanted = f"steps_per_epoch={plan.steps_per_epoch}"
        if short:
            raise InputError(data_ended(progress.step, wanted))
        if pass_ended:
            with self._ledger.section("input"):
                feed.next_pass()
        return ended

    def _boundary(self, epoch_ended: bool) -> None:
        """Does all that is due after the steps so far."""
        plan, progress, run = self._plan, self._progress, self._run
        step, epochs_done = progress.step, progress.epoch if epoch_ended else None
        last = plan.done(progress)
        evaluate = plan.evaluate is not None and (plan.evaluation.due(step, epochs_done) or last)
        log = plan.log.due(progress.epoch_step, epochs_done) or epoch_ended or last or evaluate
        save = plan.saving.due(step, epochs_done)
        own = [callback for callback, ticker in self._tickers if ticker.due(step, epochs_done)]
        called = [callback for callback in self._callbacks if callback in own or (log and callback.every is None)]
        if log or own or save:
            self._absorb()
        ran = self._window.steps > 0
        if (log or own) and ran:
            row = self._log_row(epochs_done, reset=log)
            if log:
                self._last_row = row
                self._history.add(row)
            for callback in run.each(called):
                callback.on_step(step, row)
        if epoch_ended:
            if not ran:  # since the last log, when nobody knew that the epoch had ended
                run.now.see(self._epoch_means(self._metrics()[0], self._window.held))
            row = self._epoch_row()
            self._history.end_epoch(self._stamp(epochs_done) | dict(run.epoch_logs))
            for callback in self._each():
                callback.on_epoch_end(progress.epoch - 1, row | self._stamp(epochs_done))
        if evaluate:
            self._evaluate(epochs_done)
        if log:
            self._plan.look_at_numbers()
        self.give_logged(epochs_done)
        changes = [callback.on_change(step) for callback in run.each(called)]
        # flags that were set otherwise count where the rows so far are read; after the last step they do not matter
        if any(changes) or ((log or own or save) and not last and self._plan.changed()):
            with self._ledger.section("startup"):
                self._execute_steps = self._plan.compile()
        if log or own or save:
            for callback in self._each():
                callback.on_boundary_end(step)
            self._agree()
        if save or run.now.save_asked:
            self._save()
            self._agree()
            self.give_logged(epochs_done)
        self._finish_save(wait=False)
        if self._workers.size == 1:
            self._published = len(self._saved)
        self._tell_saved()
        if log:
            self._compiled = (0, 0.0)
            self._window_began = self._clock()
            self._waited = self._input_wait()

    def give_logged(self, epochs_done: int | None = None) -> None:
        """Gives all callbacks what some of them have logged; on several workers what those of the chief have."""
        run = self._run
        logged = run.now.take_logged()
        if self._workers.size > 1 and run.callback_logs:
            logged = json.loads(self._workers.texts(json.dumps(logged))[0])
        if logged:
            clash = sorted(logged.keys() & self._last_row.keys())
            if clash:  # where the names are not known before the first step
                raise InputError(f"run.log({clash[0]!r}, ...): training logs that itself: give it another name.")
            row = self._stamp(epochs_done) | logged
            self._history.add(row)
            for callback in self._each():
                callback.on_log(self._progress.step, row)

    def _each(self) -> Iterator[Callback]:
        return self._run.each(self._callbacks)

    def _log_row(self, epochs_done: int | None, reset: bool) -> dict[str, float]:
        """Means over the steps since the last log; `reset` begins a new window."""
        window, seconds, timed = self._window, self._clock() - self._window_began, 1.0
        compiled_steps, compiling = self._compiled
        if compiled_steps < window.steps:  # speeds are those of the others
            seconds, timed = seconds - compiling, 1 - compiled_steps / window.steps
        seconds = max(seconds, 1e-9)
        metrics, held = self._metrics()
        row = self._stamp(epochs_done) | window.means(self._execute_steps.names) | metrics
        if epochs_done is None or (window.held is None and window.held_known):
            self._run.now.see(window.epoch_means(self._execute_steps.names) | metrics)
        else:
            self._run.now.see(self._epoch_means(metrics, window.with_held(held)))
        row["window"] = window.steps
        if "loss_scale" in row or "skip_nonfinite" in self._run.needs:
            row["skipped_steps"] = window.skipped
        if self._run.input_wait:
            row["input_wait"] = (self._input_wait() - self._waited) / seconds
        row |= dict(zip(RATES, (timed * window.steps / seconds, timed * window.examples / seconds), strict=True))
        if reset:
            window.reset()
            emptied = "epoch_metrics" not in self._run.needs
            if emptied and epochs_done is None:  # and the epoch goes on
                window.hold(held)
        return row

    def _epoch_row(self) -> dict[str, float]:
        """The means over the epoch that has ended, and what looper itself logs of its last window."""
        means = self._run.epoch_logs
        names = self._reader.metric_names - means.keys()  # of metrics whose means are not known
        return {name: value for name, value in self._last_row.items() if name not in names} | dict(means)

    def _metrics(self) -> tuple[dict[str, float], list[np.ndarray]]:
        """The metrics and settings after the last execution, and what the metrics hold."""
        with self._ledger.section("device"):
            values = self._values.numpy()
        return self._reader.logged(values[: len(self._reader.names)].tolist()), self._reader.held(values)

    def _epoch_means(self, metrics: Mapping[str, float], held: list[np.ndarray] | None) -> dict[str, float]:
        """The means over the epoch so far, and the settings; of metrics those that are known by what they `held`."""
        settings = {name: value for name, value in metrics.items() if name not in self._reader.metric_names}
        means = self._window.epoch_means(self._execute_steps.names) | settings
        return means if held is None else means | self._reader.over(held)

    def _evaluate(self, epochs_done: int | None) -> None:
        step = self._progress.step
        if not self._progress.note_evaluation():
            return
        for callback in self._each():
            callback.on_eval_begin(step)
        with self._ledger.section("evaluation"):
            found = self._plan.evaluate()
        row = self._stamp(epochs_done) | {f"eval/{name}": value for name, value in found.items()}
        self._history.add(row)
        for callback in self._each():
            callback.on_eval_end(step, row)

    def _save(self, last: bool = False) -> None:
        """Takes the state for a checkpoint, and has it written. The one before must be written by then.

        Raises:
            SaveError: see `_finish_save`.
        """
        self._run.now.ask_save(False)
        step = self._progress.step
        # the same step may be saved again: why training ended is not known before its last boundary
        if self._plan.take is None or (self._last_save == step and not self._progress.ended):
            return
        self._look()
        self._finish_save()
        pending = None
        try:
            with self._ledger.section("checkpoint"):
                pending = self._plan.take()
            for callback in self._each():
                callback.on_save(step, pending.path)
        except SaveError as error:
            if pending is not None:
                pending.discard()
            self._not_saved(error, last)
            return
        self._last_save = step
        with self._ledger.section("checkpoint"):
            self._plan.saver.submit(step, pending.write, here=last)

    def _finish_save(self, last: bool = False, wait: bool = True) -> None:
        """Takes note of the checkpoint that was being written.

        One that cannot be written is a warning, as there will be others, unless it is the last.

        Args:
            last: whether it is.
            wait: whether to wait until it is written.

        Raises:
            SaveError: see above.
        """
        try:
            with self._ledger.section("checkpoint"):
                saved = self._plan.saver.finish(wait)
        except SaveError as error:
            self._last_save = None
            self._not_saved(error, last)
        else:
            self._saved += [] if saved is None else [saved]

    def _not_saved(self, error: SaveError, last: bool) -> None:
        if last or self._workers.size > 1:
            raise SaveError(
                f"{error} See to it and start the same command again: it continues from the last checkpoint."
            ) from error
        warn(f"{error} Training goes on.")

    def _tell_saved(self) -> None:
        """Gives callbacks the checkpoints that all workers know of, once each."""
        told = self._told
        while self._told < self._published and self._told < len(self._saved):
            saved = self._saved[self._told]
            self._told += 1
            for callback in self._each():
                callback.on_saved(saved.step, saved.path)
        if self._told > told:
            self._agree()  # about what they ask for now

    def _look(self) -> None:
        self._looked = True
        if self._plan.look is not None:
            with self._ledger.section("device"):
                self._plan.look()

    def _stamp(self, epochs_done: int | None) -> dict[str, float]:
        epoch = self._progress.epoch if epochs_done is None else epochs_done - 1
        return {"step": self._progress.step, "epoch": epoch}

    def _absorb(self) -> None:
        """Fetches the rows of the executions since the last boundary. This is where the host waits for the device."""
        pending, self._pending = self._pending, []
        with self._ledger.section("device"):
            fetched = [(first, rows.numpy()) for first, rows in pending]
        self._ledger.settle()
        for first, values in fetched:
            empty = np.flatnonzero(values[:, 0] == 0)
            if empty.size:
                raise InputError(
                    f"a batch has no examples (step {first + int(empty[0]) + 1}): leave it out of the data."
                )
            error = nonfinite(values, self._execute_steps.names, first, "nonfinite_loss" in self._run.needs)
            if error is not None:
                undone = [callback.on_nonfinite(error) for callback in self._each()]
                if not any(undone):
                    raise error
                self._values = self._reader.everything()  # as they were put back
                return  # these steps were undone, and with them all that follow
            self._window.add(values)
            self._execute_steps.saw(values[:, 0])
            if self._skipped is not None:
                self._skipped.note(values[:, 1] > 0, first)

    def _adapt_limit(self, ran: int, seconds: float) -> None:
        """Sets how many steps fit into `EXECUTION_SECONDS`; the first execution is left out, it compiles."""
        self._executions += 1
        if self._plan.steps_per_execution == "auto" and self._executions > 1 and ran:
            fitting = int(ran * EXECUTION_SECONDS / max(seconds, 1e-6))
            self._limit = max(1, min(fitting, 8 * self._limit))


class StopSignals:
    """Turns Ctrl-C, SIGTERM and SIGHUP into a wish to stop, within a `with`. A second Ctrl-C interrupts at once.

    Only the main thread can; elsewhere nothing changes. A SIGHUP that is ignored, as under `nohup`, stays so.

    Args:
        saves: whether everything will be saved, for what a Ctrl-C is answered.
    """

    def __init__(self, saves: bool = False) -> None:
        self.received: int | None = None
        self._saves = saves
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "StopSignals":
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
                if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:
                    self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, _: object) -> None:
        if self.received == number == signal.SIGINT:
            raise KeyboardInterrupt
        self.received = number
        if number == signal.SIGINT:
            what = "saving after" if self._saves else "stopping after"
            with contextlib.suppress(OSError):  # not by a stream, which may be in the middle of something
                os.write(2, f"\nlooper: {what} this execution; Ctrl-C again stops at once\n".encode())


def nonfinite(
    rows: np.ndarray, names: Sequence[str], first: int, accept_loss: bool = False
) -> NonFiniteLossError | None:
    """The error for the first step whose loss or gradient is not finite, unless it was skipped; None if all are.

    With `accept_loss` there is none if that step's loss is not finite: somebody else sees it in the logs.
    """
    columns = [i for i, name in enumerate(names) if name == "loss" or name.startswith("gradient_norm")]
    totals = rows[:, [FIXED + 2 * i for i in columns]]
    bad = np.argwhere(~np.isfinite(totals) & (rows[:, 1:2] == 0))
    if not bad.size:
        return None
    step, column = bad[0].tolist()
    name, value = names[columns[column]], float(totals[step, column])
    if name == "loss" and accept_loss:
        return None
    what = "loss" if name == "loss" else "gradient"
    return NonFiniteLossError(
        f"the {what} became {'nan' if math.isnan(value) else value} at step {first + step + 1}. Look at the "
        "data of that step, or try a lower learning rate or clip_norm=1.0."
    )
