"""The checks of a worker of `looper doctor`, in the order in which a job needs what they try.

All workers try the same, together. What each finds by itself is gathered, so that all come to the same verdicts. The
first fault that makes the rest impossible ends the list: the workers do not meet, or one of them is lost.
"""

import contextlib
import json
import os
import platform
import shutil
import statistics
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from looper.base.errors import InputError, StepError, first_line
from looper.base.schedule import Every
from looper.callbacks import Callback, LambdaCallback
from looper.commands.doctor.checks import Check, DoctorOptions
from looper.saved.workdir import check_shared, check_writable
from looper.trainer import Trainer
from looper.workers.cluster import Cluster, in_cluster, read_cluster
from looper.workers.exchange import Workers
from looper.workers.rendezvous import package_versions
from looper.workers.strategies import cluster_of, resolve

SLOW = 1.5
"""A worker whose step takes this many times the median's is pointed out: all wait for it in every step."""

STEPS = 150
"""Of the tiny job; a third of them before the clock starts."""

SINGLE_STEPS = 200
"""In one call, of a step that a worker does alone."""

TURNS = 5
"""How often a time is taken: the median of them counts."""

SUMS = 50
"""In one call, of a number over all replicas."""

HIDDEN = ("", "-1")
"""Values of CUDA_VISIBLE_DEVICES where somebody wants no GPU."""


def examine(options: DoctorOptions) -> tuple[int, bool, list[Check]]:
    """Tries everything, as one worker, until something fails that all the rest needs.

    Returns:
        The worker's rank, whether all workers have the same list of checks, and the list.
    """
    checks: list[Check] = []
    rank, own, tried = 0, _facts(), "cluster"
    try:
        cluster = read_cluster() if in_cluster(options.strategy) else None
        rank = 0 if cluster is None else cluster.rank
        tried, began = "workers", time.monotonic()
        strategy = resolve(options.strategy, options.devices)
        seconds = time.monotonic() - began
        tried = "collectives"
        workers = Workers(strategy, cluster_of(strategy))
        own["devices"] = 1 if strategy.num_replicas_in_sync == 1 else len(strategy.extended.worker_devices)
        facts = _gathered(workers, own)
        checks += [_versions(facts), _devices(facts), _met(cluster, seconds), _collectives(strategy, workers)]
        tried = "step clock"
        tiny = _Tiny(strategy)
        checks.append(_step_clock(tiny, workers))
        tried = "workdir"
        with _folder(options.workdir, workers, checks) as folder:
            checks.append(_resuming(tiny, folder, workers))
        tried = "replicas"
        checks.append(_one_equals_many(tiny))
        return rank, True, checks
    except InputError as error:
        failed = Check.of(tried, error)
    except (StepError, tf.errors.OpError) as error:
        failed = Check(tried, "FAIL", first_line(error), "see what each worker wrote")
    if tried in ("cluster", "workers"):
        checks = [_versions([own]), _devices([own])]
    return rank, False, [*checks, failed]


def _facts() -> dict[str, Any]:
    """Facts that this worker knows by itself, before TensorFlow starts."""
    return {
        "versions": {"python": platform.python_version(), **package_versions()},
        "gpus": len(tf.config.list_physical_devices("GPU")),
        "driver": _gpus_of_driver(),
        "hidden": os.environ.get("CUDA_VISIBLE_DEVICES") in HIDDEN,
    }


def _gpus_of_driver() -> int:
    """How many GPUs NVIDIA's own program lists; 0 without it."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return 0
    try:
        listed = subprocess.run([program, "-L"], capture_output=True, text=True, timeout=30, check=False).stdout
    except (OSError, subprocess.TimeoutExpired):
        return 0
    return sum(line.startswith("GPU ") for line in listed.splitlines())


def _gathered(workers: Workers, facts: dict[str, Any]) -> list[dict[str, Any]]:
    return [json.loads(text) for text in workers.texts(json.dumps(facts))]


def _versions(facts: Sequence[dict[str, Any]]) -> Check:
    """The chief's; workers with others do not meet."""
    return Check("versions", "ok", ", ".join(f"{name} {v}" for name, v in facts[0]["versions"].items()))


def _devices(facts: Sequence[dict[str, Any]]) -> Check:
    blind = [i for i, fact in enumerate(facts) if fact["driver"] and not fact["gpus"] and not fact["hidden"]]
    if blind:
        return Check(
            "devices",
            "FAIL",
            f"worker {blind[0]}: nvidia-smi lists {facts[blind[0]]['driver']} GPU(s), TensorFlow sees none",
            "pip install 'looper-tf[cuda]', and see that the driver is new enough for it",
        )
    counts = [fact["devices"] for fact in facts if "devices" in fact]
    if len(set(counts)) > 1:
        return Check(
            "devices",
            "FAIL",
            f"the workers have different numbers of devices: {', '.join(map(str, counts))}",
            "give each the same, such as with --devices 1, and start no more workers than there are GPUs",
        )
    kind = "GPU" if any(fact["gpus"] for fact in facts) else "CPU"
    if not counts:
        return Check("devices", "ok", f"{facts[0]['gpus'] or 1} {kind}(s)")
    each = " each" if len(facts) > 1 else ""
    return Check("devices", "ok", f"{len(facts)} worker(s), {counts[0]} {kind} device(s){each}")


def _met(cluster: Cluster | None, seconds: float) -> Check:
    if cluster is None:
        return Check("workers", "ok", "one process: TF_CONFIG and SLURM tell of no others")
    names = ", ".join(cluster.addresses)
    seen = f"all {cluster.size} of {cluster.source} met within {seconds:.1f} s, and reach each other: {names}"
    return Check("workers", "ok", seen)


def _collectives(strategy: tf.distribute.Strategy, workers: Workers) -> Check:
    replicas = strategy.num_replicas_in_sync
    if replicas == 1:
        return Check("collectives", "ok", "one replica needs none")

    def on_replica() -> tf.Tensor:
        context = tf.distribute.get_replica_context()
        number = tf.cast(context.replica_id_in_sync_group + 1, tf.float32)
        return context.all_reduce(tf.distribute.ReduceOp.SUM, number)

    @tf.function(autograph=False)
    def sums() -> tf.Tensor:
        def once(i: tf.Tensor, _: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
            return i + 1, strategy.experimental_local_results(strategy.run(on_replica))[0]

        return tf.while_loop(lambda i, _: i < SUMS, once, (0, 0.0), parallel_iterations=1)[1]

    right = sum(range(1, replicas + 1))
    got = workers.gather([sums().numpy()])[:, 0]
    wrong = np.flatnonzero(got != right)
    if wrong.size:
        seen = f"a sum of 1 to {replicas} over the replicas gives {got[wrong[0]]:g} on worker {wrong[0]}, not {right}"
        return Check("collectives", "FAIL", seen, "look for other versions of drivers or of NCCL on that worker")
    micros = _median_micros(lambda: sums().numpy(), SUMS)
    return Check("collectives", "ok", f"a sum over {replicas} replicas is right, and takes {micros:,.0f} us")


def _median_micros(function: Any, steps: int) -> float:
    """Microseconds per step of a call that does so many: the median of some calls."""
    times = []
    for _ in range(TURNS):
        began = time.perf_counter()
        function()
        times.append(time.perf_counter() - began)
    return statistics.median(times) / steps * 1e6


class _Tiny:
    """A job that takes a second: data, and trainers for it."""

    def __init__(self, strategy: tf.distribute.Strategy) -> None:
        self.strategy = strategy
        random = np.random.default_rng(0)
        self.x = random.normal(size=(16 * strategy.num_replicas_in_sync, 8)).astype("float32")
        self.y = self.x.sum(1, keepdims=True)

    def trainer(self, workdir: Path | None = None) -> Trainer:
        def model() -> keras.Model:
            layers = [keras.layers.Dense(16, "relu"), keras.layers.Dropout(0.5), keras.layers.Dense(1)]
            return keras.Sequential([keras.Input((8,)), *layers])

        return Trainer(
            model=model,
            optimizer=lambda: keras.optimizers.SGD(0.01, momentum=0.9),
            loss="mse",
            strategy=self.strategy,
            workdir=workdir,
            execution="graph",
            deterministic=bool(tf.config.list_logical_devices("GPU")),  # same bits need it there
        )

    def fit(self, trainer: Trainer, steps: int, callbacks: Sequence[Callback] = ()) -> Trainer:
        size = 8 * self.strategy.num_replicas_in_sync
        trainer.fit((self.x, self.y), batch_size=size, steps=steps, callbacks=callbacks, progress=False)
        return trainer


def _step_clock(tiny: _Tiny, workers: Workers) -> Check:
    """How long a step takes: one that each worker does alone, all of them at the same time, and one of the job."""
    steps = _single_steps()
    steps()
    workers.wait()
    alone = workers.gather([_median_micros(steps, SINGLE_STEPS)])[:, 0]
    times: list[float] = []
    watch = LambdaCallback(every=Every(steps=STEPS // 3), on_step=lambda step, logs: times.append(time.perf_counter()))
    tiny.fit(tiny.trainer(), STEPS, [watch])
    together = (times[-1] - times[0]) / (STEPS - STEPS // 3) * 1e6
    return clock_check(alone.tolist(), together)


def clock_check(alone: Sequence[float], together: float) -> Check:
    """Points out a slow worker.

    Args:
        alone: microseconds of a step on each worker alone.
        together: of a step of the job.

    Example:
        >>> print(clock_check([20.0, 50.0, 21.0], 900.0).fix)
        worker 1 is 2.4 times slower, and all wait for it: see what else runs there
    """
    if len(alone) == 1:
        return Check("step clock", "ok", f"a tiny step takes {together:,.0f} us")
    each = ", ".join(f"{micros:,.0f}" for micros in alone)
    seen = f"a tiny step of the job takes {together:,.0f} us; another one that each worker does alone: {each} us"
    times = max(alone) / statistics.median_low(alone)
    if times <= SLOW:
        return Check("step clock", "ok", seen)
    fix = f"worker {alone.index(max(alone))} is {times:.1f} times slower, and all wait for it: see what else runs there"
    return Check("step clock", "warn", seen, fix)


def _single_steps() -> Any:
    """Some training steps of a small matrix, on this worker's first device, without the others."""
    weights = tf.Variable(tf.fill([128, 128], 0.01))
    x = tf.ones([32, 128])

    def step(i: tf.Tensor) -> tf.Tensor:
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean(tf.square(x @ weights))
        with tf.control_dependencies([weights.assign_sub(1e-3 * tape.gradient(loss, weights))]):
            return i + 1

    @tf.function(autograph=False)
    def steps() -> tf.Tensor:
        return tf.while_loop(lambda i: i < SINGLE_STEPS, step, (0,))[0]

    return lambda: steps().numpy()


@contextlib.contextmanager
def _folder(workdir: Path | None, workers: Workers, checks: list[Check]) -> Iterator[Path | None]:
    """Checks the workdir. Gives a directory that all workers share and that is removed afterwards, or None."""
    path = workdir
    if workdir is None:
        path = Path(workers.texts(tempfile.mkdtemp(prefix="looper-doctor-") if workers.is_chief else "")[0])
    shared = _check_workdir(path, workdir is not None, workers, checks)
    folder = path / f".looper-doctor-{workers.job}"
    try:
        yield folder if shared else None
    finally:
        if workers.is_chief:
            shutil.rmtree(path if workdir is None else folder, ignore_errors=True)


def _check_workdir(path: Path, given: bool, workers: Workers, checks: list[Check]) -> bool:
    where = f"{workers.size} workers see" if workers.size > 1 else "one process sees"
    if not given:
        if workers.gather([path.is_dir()]).all():
            seen = f"not given: a temporary directory, which {where} here"
            checks.append(Check("workdir", "skip", seen, "--workdir DIR to try the one of the job"))
            return True
        checks.append(Check("workdir", "skip", "not given", "--workdir DIR, on storage that all workers share"))
        return False
    try:
        error = None
        check_writable(path)
    except InputError as found:
        error = found
    for rank, text in enumerate(workers.texts("" if error is None else str(error))):
        if text:
            seen = f"{workers.describe(rank)}: {text.rstrip('.')}" if workers.size > 1 else text.rstrip(".")
            checks.append(Check("workdir", "FAIL", seen, "give a directory that every worker may write to"))
            return False
    if workers.size > 1:
        try:
            check_shared(path, workers)
        except InputError as found:
            checks.append(Check.of("workdir", found))
            return False
    checks.append(Check("workdir", "ok", f"{path}: {where} and may write to it"))
    return True


def _resuming(tiny: _Tiny, folder: Path | None, workers: Workers) -> Check:
    """Trains to the end, and in two runs with a checkpoint between; both have to end with the same bits."""
    if folder is None:
        return Check("resume", "skip", "not tried: it needs a workdir that all workers share")
    whole = tiny.fit(tiny.trainer(), STEPS)
    tiny.fit(tiny.trainer(folder), STEPS // 2)
    continued = tiny.fit(tiny.trainer(folder), STEPS)
    if workers.gather([_bits(whole) == _bits(continued)]).all():
        return Check("resume", "ok", f"stopped after {STEPS // 2} of {STEPS} steps and continued: the same bits")
    fix = "on GPUs train with deterministic=True; otherwise report it"
    return Check("resume", "FAIL", f"continued after {STEPS // 2} of {STEPS} steps, it ends with other bits", fix)


def _bits(trainer: Trainer) -> list[bytes]:
    variables = [*trainer.model.trainable_variables, *trainer.optimizer.variables]
    return [variable.numpy().tobytes() for variable in variables]


def _one_equals_many(tiny: _Tiny) -> Check:
    if tiny.strategy.num_replicas_in_sync == 1:
        return Check("replicas", "ok", "one")
    report = tiny.trainer().check_replicas((tiny.x, tiny.y))
    compared = report.rest or report  # with dropout off: each replica's own
    apart = f"the gradients differ by {compared.differences[0].relative:.0e} at most"
    if report.ok:
        return Check("replicas", "ok", f"{report.replicas} update as one does: {apart}")
    return Check("replicas", "FAIL", f"{report.replicas} do not update as one does: {apart}", "report it")
