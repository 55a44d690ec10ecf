"""The weights that a trainer evaluates and exports: of all replicas and, with `ema`, averaged over time."""

import contextlib
from collections.abc import Iterator

from looper.recipe.metrics import set_aside
from looper.run.components import Components
from looper.run.devices import Devices
from looper.saved.variables import averaged_statistics


class EvaluationWeights:
    """Puts a trainer's weights to those for evaluation, prediction and export, for a while.

    Args:
        devices: whose replicas hold them.
        components: whose weights they are.
    """

    def __init__(self, devices: Devices, components: Components) -> None:
        self._devices, self._components = devices, components

    @contextlib.contextmanager
    def evaluating(self, averaged: bool = True) -> Iterator[None]:
        """Inside it the weights are those to evaluate, and metrics are empty; after it, metrics hold what they held."""
        with set_aside(self._components.metrics(), self._devices.strategy), self.entered(averaged):
            yield

    @contextlib.contextmanager
    def entered(self, averaged: bool = True) -> Iterator[None]:
        """Inside it the statistics are the replicas' mean and, with `ema` and if they shall, the weights averages."""
        strategy, workers, average = self._devices.strategy, self._devices.workers, self._components.average
        own = contextlib.nullcontext() if average is None or not averaged else average.swapped_in(strategy)
        together = averaged_statistics(self._components.attributes(), strategy, workers.mean_over_replicas)
        with workers.watching("evaluation or prediction"), together, own:
            yield
