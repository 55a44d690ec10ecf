"""Training over `tf.data`: how near is a step to the fastest that the dataset, or the device, can give?

    python -m benchmarks.datasets
    python -m benchmarks.datasets --turns 10 --steps 5000 --out try.json

The first model of `benchmarks/hot_step.py` over slices -> shuffle -> repeat -> batch -> prefetch, and the same in
passes, without `repeat` and with a last batch that is smaller. Beside looper's `fit`, taken in turns in one process:

- the dataset alone, read in stacks of 250 batches: as it is given, without its last `prefetch`, and without that and
  tf.data's tuning;
- the XLA loop by hand over one stack that stays in memory: the step alone;
- the loop in the graph by hand over the dataset as it is given.

And slow data, of which a batch takes 20 ms: how long until the first step is done, beside the first batch alone.
"""

import argparse
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

import looper
from benchmarks.monitoring import Turn
from benchmarks.peers import keras_models
from benchmarks.peers.hand_loop import HandLoop
from benchmarks.peers.hand_written import HandWritten
from benchmarks.peers.line import Settings
from benchmarks.peers.looper import looper_trainer
from benchmarks.problems import PROBLEMS
from benchmarks.saving import save
from looper import callbacks
from looper.base.xla import fast_random
from looper.commands.bench.statistics import median

RESULTS = Path(__file__).parent / "results"
PROBLEM = PROBLEMS["mlp"]
STACK, BUFFER = 250, 10_000
EXAMPLES = 20_000 - 16
"""625 batches, the last of which is half full."""

SLOW = 0.02
"""Seconds that a slow batch takes."""


def examples(count: int | None = None) -> tf.data.Dataset:
    """The problem's examples, shuffled."""
    x, y = keras_models.arrays(PROBLEM)
    return tf.data.Dataset.from_tensor_slices((x[:count], y[:count])).shuffle(BUFFER, seed=1)


def endless(*, prefetched: bool = True) -> tf.data.Dataset:
    dataset = examples().repeat().batch(PROBLEM.batch, drop_remainder=True)
    return dataset.prefetch(tf.data.AUTOTUNE) if prefetched else dataset


def in_passes() -> tf.data.Dataset:
    return examples(EXAMPLES).batch(PROBLEM.batch).prefetch(tf.data.AUTOTUNE)


def untuned(dataset: tf.data.Dataset) -> tf.data.Dataset:
    options = tf.data.Options()
    options.autotune.enabled = False
    return dataset.with_options(options)


class Resident(HandWritten):
    """The XLA loop by hand, over a stack that is there."""

    def __init__(self, given: Settings) -> None:
        super().__init__(given)
        self.stack = next(iter(endless().batch(STACK)))

    @tf.function(jit_compile=True)
    def steps(self, x: tf.Tensor, y: tf.Tensor) -> None:
        with fast_random():  # as the peers of `benchmarks/hot_step.py` do for their whole process
            for i in tf.range(len(x)):
                self.train(x[i], y[i])


class OverDataset(HandLoop):
    """The loop in the graph by hand, over the dataset as it is given."""

    def __init__(self, given: Settings) -> None:
        super().__init__(given)
        self.iterator = iter(endless())


def reading(dataset: tf.data.Dataset, steps: int) -> Callable[[], float]:
    """Reads so many batches of a dataset without end. Returns the seconds.

    By a new iterator each time, whose first stack does not count: an older one has read ahead between the turns.
    """

    def turn() -> float:
        stacks = iter(dataset)
        next(stacks)
        began = time.perf_counter()
        for _ in range(steps // STACK):
            next(stacks)
        return time.perf_counter() - began

    return turn


def reading_passes(passes: int) -> Callable[[], float]:
    """Reads so many passes in stacks, with a new iterator for each."""
    stacks = in_passes().padded_batch(STACK)

    def turn() -> float:
        began = time.perf_counter()
        for _ in range(passes):
            for _ in stacks:
                pass
        return time.perf_counter() - began

    return turn


def by_hand(peer: HandWritten, burst: Callable[[], Any]) -> Callable[[], float]:
    """Trains a burst, and waits for it."""

    def turn() -> float:
        began = time.perf_counter()
        burst()
        peer.read()
        return time.perf_counter() - began

    return turn


class Fits:
    """Fits of looper that train in turns, each in a thread of its own."""

    def __init__(self) -> None:
        self._turns: list[Turn] = []
        self._threads: list[threading.Thread] = []

    def begin(self, dataset: tf.data.Dataset, execution: str, in_a_turn: int, **fit: Any) -> Callable[[], float]:
        """Begins one, and waits until it has trained for a turn. Returns what trains another one."""
        turn, trainer = Turn(in_a_turn), looper_trainer(PROBLEM, execution=execution)
        given = {"log_every": looper.Every(steps=1000), "callbacks": [turn], "progress": False, **fit}
        self._turns.append(turn)
        self._threads.append(threading.Thread(target=lambda: trainer.fit(dataset, **given)))
        self._threads[-1].start()
        turn.wait()
        return turn.seconds

    def end(self) -> None:
        for turn, thread in zip(self._turns, self._threads, strict=True):
            turn.end()
            thread.join()


class FirstStep(callbacks.Callback):
    """Takes note of when the first execution of a fit was over."""

    at = 0.0

    def on_fit_begin(self, run: callbacks.Run) -> None:
        super().on_fit_begin(run)
        self.at = 0.0

    def on_execution(self, step: int) -> None:
        self.at = self.at or time.perf_counter()


def to_the_first_step(tries: int) -> dict[str, Any]:
    """Seconds to the end of a fit's first step over slow data: more than over fast data, and than the batch alone."""

    def slowed(seconds: float) -> tf.data.Dataset:
        def wait(x: tf.Tensor, y: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
            end = tf.timestamp() + seconds
            with tf.control_dependencies([tf.while_loop(lambda: tf.timestamp() < end, lambda: (), ())]):
                return tf.identity(x), y

        batched = examples().repeat().batch(PROBLEM.batch, drop_remainder=True)
        return batched.map(wait) if seconds else batched

    first, trainer = FirstStep(), looper_trainer(PROBLEM, execution="xla_loop")
    options = {"log_every": looper.Every(steps=1000), "callbacks": [first], "progress": False}
    trainer.fit(slowed(0.0), steps=1000, **options)  # compiles

    def first_step(seconds: float) -> float:
        dataset = slowed(seconds)
        began = time.perf_counter()
        next(iter(dataset))
        alone, began = time.perf_counter() - began, time.perf_counter()
        trainer.fit(dataset, steps=trainer.step + 20, **options)
        return first.at - began - alone

    return median([first_step(SLOW) - first_step(0.0) for _ in range(tries)])


def measure(turns: int, steps: int, passes: int) -> dict[str, Any]:
    """All sides in turns, and what comes of them."""
    settings = Settings(PROBLEM, steps, STACK, 0.5, "", 1, "float32", "", "dataset", 1)
    resident, over = Resident(settings), OverDataset(settings)
    plain = endless(prefetched=False)
    each, of_passes = steps, passes * -(-EXAMPLES // PROBLEM.batch)
    fits = Fits()
    sides: Mapping[str, tuple[Callable[[], float], int]] = {
        "dataset as given": (reading(endless().batch(STACK), steps), each),
        "without its prefetch": (reading(plain.batch(STACK), steps), each),
        "without tuning, too": (reading(untuned(plain.batch(STACK)), steps), each),
        "step over a resident stack": (
            by_hand(resident, lambda: [resident.steps(*resident.stack) for _ in range(steps // STACK)]),
            each,
        ),
        "graph by hand": (by_hand(over, over.burst), each),
        "passes alone": (reading_passes(passes), of_passes),
        "looper, xla_loop": (fits.begin(endless(), "xla_loop", steps, steps=10**9), each),
        "looper, graph": (fits.begin(endless(), "graph", steps, steps=10**9), each),
        "looper, passes": (fits.begin(in_passes(), "xla_loop", of_passes, epochs=10**6), of_passes),
    }
    times: dict[str, list[float]] = {side: [] for side in sides}
    draw = np.random.default_rng(0)
    for turn in range(turns + 1):
        for side in draw.permutation(list(sides)):
            seconds = sides[side][0]()
            if turn:  # the first one warms
                times[side].append(1e6 * seconds / sides[side][1])
    fits.end()
    found = {side: np.array(each) for side, each in times.items()}
    datasets = ("dataset as given", "without its prefetch", "without tuning, too")
    fastest = min(datasets, key=lambda side: float(np.median(found[side])))
    limit = np.maximum(found[fastest], found["step over a resident stack"])
    mine = found["looper, xla_loop"]
    return {
        "microseconds per step": {side: median(each) for side, each in found.items()},
        "fastest dataset": fastest,
        "xla_loop / max(fastest dataset, step)": median(mine / limit),
        "xla_loop / dataset as given": median(mine / found["dataset as given"]),
        "passes / passes alone": median(found["looper, passes"] / found["passes alone"]),
        "graph / graph by hand": median(found["looper, graph"] / found["graph by hand"]),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--turns", type=int, default=20, help="of each side")
    parser.add_argument("--steps", type=int, default=20_000, help="in a turn")
    parser.add_argument("--passes", type=int, default=20, help="in a turn")
    parser.add_argument("--out", type=Path, default=RESULTS / "datasets.json", help="the JSON file to write")
    given = parser.parse_args()
    whole = measure(given.turns, given.steps, given.passes)
    whole["more seconds to the first step of slow data than batch by batch"] = to_the_first_step(10)
    print(save(given.out, whole, "benchmarks.datasets"))


if __name__ == "__main__":
    main()
