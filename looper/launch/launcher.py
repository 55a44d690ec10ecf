"""`looper run RECIPE --workers N`: trains with N processes of this machine, and restarts them when one fails.

Each worker is `looper run RECIPE` with the same options and, for more than one, a `TF_CONFIG` that names free ports of
this machine. TensorFlow is not imported here. What happens, in order:

    start all workers, on new ports
    pass their output on, line by line; pass signals on to them
    the first failure: wait until the others have ended by themselves, then kill them
    name the cause; start all of them again, from the last checkpoint

The first worker to end need not be the cause: one that fails takes the others' collectives with it. The cause is the
first that ended otherwise than by losing a peer, among those that ended by themselves. They have `GRACE_SECONDS` for it
from a failure of their own on, and `PEER_LOSS_SECONDS` where so far only losses of peers are known. Only then SIGKILL:
SIGTERM would ask for a checkpoint, which nobody can write when a worker is gone.

The logs are in the workdir. Where `--workdir` does not name it, the workers tell it (`looper.launch.launched`), as
only they import the recipe; what they write before that waits.

Every worker leads a session. When it ends, what it started there is killed. If the launcher itself is killed, the
kernel ends the workers (on Linux), and a guard what they started, and elsewhere the workers too.
"""

import argparse
import contextlib
import math
import os
import secrets
import select
import signal
import time
from collections.abc import Sequence
from pathlib import Path

from looper.base.errors import InputError
from looper.base.provenance import COMMAND, command
from looper.launch.failure import INTERRUPTED, REQUEUE, WRONG_INPUT, End, root_cause
from looper.launch.guard import Guard
from looper.launch.options import LaunchOptions
from looper.launch.output import Log, Screen
from looper.launch.signals import PASSED_ON, STOPS, Signals
from looper.launch.worker import Worker
from looper.workers.cluster import local_cluster

GRACE_SECONDS = 3.0
"""How long the others may take to end by themselves after a worker failed."""
PEER_LOSS_SECONDS = 10.0
"""The same after a worker that lost a peer: the one that failed may take long to end, or hang."""
KILLING_INTERRUPT = 3
"""The first Ctrl-C asks the workers to save and stop, the second to stop at once, and this one kills them."""


def launch(spec: str, options: Sequence[str], launch_options: LaunchOptions) -> int:
    """Trains a recipe with several processes. Must be called from the main thread.

    Args:
        spec: the recipe, as on the command line.
        options: of the workers.
        launch_options: how many, and how often they are restarted.

    Returns:
        The exit code: 0 if all workers ended with it, 75 after SIGTERM, 130 after Ctrl-C, 2 for wrong input; otherwise
        that of the worker that failed, 128 + the signal if it was killed.

    Raises:
        InputError: if a worker cannot be started.
    """
    count, most = launch_options.workers, launch_options.max_restarts
    screen, began = Screen(), time.time()
    given, _ = _take(options, "--workdir")
    workdir = None if given in (None, "None", "none") else Path(given)
    with Signals() as signals, Guard() as guard:
        for attempt in range(1, most + 2):
            if attempt > 1:
                options, source = _continued(options, workdir, began)
                workers_ = "the worker" if count == 1 else f"all {count} workers"
                screen.say(f"looper: restarting {workers_} {source} (restart {attempt - 1} of {most})")
            if signals.stop is not None:
                return _code_of_stop(signals.stop)
            head = f"attempt {attempt} of {most + 1}: looper run {spec}"
            workers = _run(count, ["run", spec, *options], head, workdir, screen, signals, guard)
            workdir = next((worker.workdir for worker in workers if worker.workdir), workdir)
            ends = [worker.end for worker in workers]
            code, cause = _judge(ends, signals.stop)
            _show_held(workers, screen)
            if code == WRONG_INPUT and not any(worker.held for worker in workers):
                screen.say(f"looper: worker {cause.rank} ended with code {code}, for wrong input: it would again")
            if cause is None or code == WRONG_INPUT:
                return code
            screen.say(str(cause))
            silent = [str(end.rank) for end in ends if end.stopped]
            if silent and cause.lost_a_peer:
                screen.say(f"looper: worker {', '.join(silent)} still ran, but did not answer: killed")
            if workdir is not None:
                screen.say(f"looper: all of its output is in {Log.path_of(workdir, cause.rank)}")
            if signals.stop is not None:
                return code
    if most:
        screen.say(f"looper: giving up after {most} restart{'s' if most > 1 else ''}")
    else:
        screen.say("looper: --max-restarts N would start again from the last checkpoint, up to N times")
    return code


def run_once(count: int, words: Sequence[str]) -> list[End]:
    """Runs a command of looper's as so many workers. Must be called from the main thread.

    Args:
        count: how many workers.
        words: what follows `looper`.

    Returns:
        How each of them ended.

    Raises:
        InputError: if a worker cannot be started.
        KeyboardInterrupt: after a signal that asked to stop.
    """
    screen = Screen()
    with Signals() as signals, Guard() as guard:
        workers = _run(count, words, f"looper {words[0]}", None, screen, signals, guard)
        if signals.stop is not None:
            raise KeyboardInterrupt
        _show_held(workers, screen)
    return [worker.end for worker in workers]


def _run(
    count: int, words: Sequence[str], head: str, workdir: Path | None, screen: Screen, signals: Signals, guard: Guard
) -> list[Worker]:
    """Starts so many workers, and returns when all have ended; whatever goes wrong here, none runs on."""
    shared = {**os.environ, "PYTHONUNBUFFERED": "1", "LOOPER_LOCAL_WORKERS": str(count)}
    shared.setdefault("LOOPER_TOKEN", secrets.token_hex(16))  # who does not know it is no worker: see the rendezvous
    shared[COMMAND] = command() or ""
    shared.setdefault("PYTHONFAULTHANDLER", "1")  # a segmentation fault has a traceback then
    shared.pop("TF_CONFIG", None)
    configs = local_cluster(count)
    workers: list[Worker] = []
    with contextlib.ExitStack() as stack:
        for rank in range(count):
            environment = {**shared, "LOOPER_LOCAL_RANK": str(rank)}
            if count > 1:
                environment["TF_CONFIG"] = configs[rank]
            log = Log(rank, head, screen)
            if workdir is not None:
                log.open(workdir)
            try:
                workers.append(Worker(rank, words, environment, log, screen, guard))
            except OSError as error:
                raise InputError(f"worker {rank} of {count} cannot be started: {error.strerror}.") from error
            stack.callback(workers[rank].destroy)
        _supervise(workers, signals)
    return workers


def _supervise(workers: Sequence[Worker], signals: Signals) -> None:
    """Returns when all workers have ended and everything that they wrote is shown."""
    while any(worker.end is None for worker in workers):
        deadline = min((_patience(worker.end, signals.stop) for worker in workers if worker.end), default=math.inf)
        if any(worker.draining for worker in workers):
            deadline = min(deadline, time.monotonic() + 0.1)
        _read(workers, signals, None if deadline == math.inf else max(0.0, deadline - time.monotonic()))
        for number in signals.take():
            for worker in workers:
                if number in STOPS or number in PASSED_ON:
                    worker.pass_on(number)
                elif number == signal.SIGWINCH:
                    worker.fit_terminal()
        for worker in workers:
            worker.poll()
        ends = [worker.end for worker in workers if worker.end]
        over = any(time.monotonic() >= _patience(end, signals.stop) for end in ends)
        if over or signals.interrupts >= KILLING_INTERRUPT:
            for worker in workers:
                worker.kill()


def _patience(end: End, stop: int | None) -> float:
    """Until when the others may run on after this end."""
    if not end.failed(stop):
        return math.inf
    return end.at + (PEER_LOSS_SECONDS if end.lost_a_peer else GRACE_SECONDS)


def _read(workers: Sequence[Worker], signals: Signals, seconds: float | None) -> None:
    """Waits for output, a signal or an end, and reads what there is of the workers."""
    owners = {file: worker for worker in workers for file in worker.files}
    poll = select.poll()
    poll.register(signals, select.POLLIN)
    for file in owners:
        poll.register(file, select.POLLIN)
    for file, _ in poll.poll(None if seconds is None else math.ceil(seconds * 1000)):
        if file in owners:
            owners[file].read(file)


def _judge(ends: Sequence[End], stop: int | None) -> tuple[int, End | None]:
    """The exit code, and the end that was the cause if something failed."""
    codes = {end.code for end in ends}
    if codes == {0}:
        return 0, None
    if stop == signal.SIGINT:
        return INTERRUPTED, None
    failures = [end for end in ends if end.failed(stop)]
    wrong = [end for end in failures if end.code == WRONG_INPUT]
    if wrong:
        return WRONG_INPUT, root_cause(wrong)
    if all(end.lost_a_peer for end in failures):  # of one that stopped in good order
        if stop is not None:
            return _code_of_stop(stop), None
        if codes & {REQUEUE, INTERRUPTED}:
            return (REQUEUE if REQUEUE in codes else INTERRUPTED), None
    cause = root_cause(failures)
    return cause.exit_code, cause


def _code_of_stop(stop: int) -> int:
    codes: dict[int, int] = {signal.SIGTERM: REQUEUE, signal.SIGINT: INTERRUPTED}
    return codes.get(stop, 128 + stop)


def _show_held(workers: Sequence[Worker], screen: Screen) -> None:
    """Shows what the workers say of wrong input: once if all say the same, with the rank otherwise."""
    shown: set[bytes] = set()
    for worker in workers:
        for line in worker.held:
            prefix = b"" if all(line in other.held for other in workers) else f"[{worker.rank}] ".encode()
            if line not in shown:
                screen.line(Screen.ERR, prefix + line)
            shown.add(line)


def _continued(options: Sequence[str], workdir: Path | None, began: float) -> tuple[Sequence[str], str]:
    """The options of a restart, and where it starts from, in words.

    A run that began anew, by `--resume`, is continued once it has a checkpoint of its own. Before that, `False` begins
    anew again, and `weights` ends with its own error if the old run's checkpoints have been set aside by then.
    """
    resume, others = _take(options, "--resume")
    saved = [] if workdir is None else [path.stat().st_mtime for path in (workdir / "checkpoints").glob("step_*")]
    own = any(when >= began for when in saved)
    if own:  # also where a file of options says how to begin
        options = [*others, "--resume", "auto"]
    if own or (saved and resume in (None, "auto", "True", "true")):
        return options, "from the last checkpoint"
    return options, "from the beginning, as no checkpoint has been saved yet"


def _take(options: Sequence[str], flag: str) -> tuple[str | None, list[str]]:
    """The value of an option, and the other words."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument(flag, dest="value", nargs="?")
    given, rest = parser.parse_known_args(list(options))
    return given.value, rest
