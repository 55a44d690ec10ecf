"""Keras' `fit` with bar and TensorBoard, and with whichever of a few `steps_per_execution` is fastest here."""

import time

import keras

from benchmarks.peers import keras_models
from benchmarks.peers.keras_fit import Bursts, compiled, fit
from benchmarks.peers.line import Line, Settings, settings

WARM_UP, TIMED = 1, 3
"""Epochs of each candidate, of one burst each."""


class Seconds(keras.callbacks.Callback):
    """Notes how long epochs take."""

    def __init__(self) -> None:
        super().__init__()
        self.ends: list[float] = []

    def on_epoch_end(self, epoch, logs=None):
        self.ends.append(time.perf_counter())


def seconds(given: Settings, steps_per_execution: int) -> float:
    """How long the timed epochs take."""
    noted = Seconds()
    fit(compiled(given, steps_per_execution), given, [noted], WARM_UP + TIMED)
    return noted.ends[-1] - noted.ends[WARM_UP - 1]


def best(given: Settings) -> int:
    """Of a tenth of a call of others, a call and a burst: what is fastest."""
    candidates = {max(1, given.steps_per_call // 10), given.steps_per_call, given.steps_per_burst}
    return min(sorted(candidates), key=lambda steps_per_execution: seconds(given, steps_per_execution))


def main() -> None:
    given = settings()
    line = Line(keras_models.versions(), keras_models.device())
    fit(compiled(given, best(given)), given, [Bursts(line)])
    line.close()


if __name__ == "__main__":
    main()
