"""JAX by hand, one step in a compiled call."""

import functools
import itertools

import jax

from benchmarks.peers.jax_scan import State, Training, serve
from benchmarks.peers.line import Settings


class StepByStep(Training):
    """A loop in Python over compiled steps.

    Args:
        given: what to train.
    """

    def __init__(self, given: Settings) -> None:
        super().__init__(given)
        self.batches = itertools.cycle(list(zip(*given.problem.data(), strict=True)))

    @functools.partial(jax.jit, static_argnums=0, donate_argnums=1)
    def one(self, state: State, batch: tuple[jax.Array, jax.Array]) -> State:
        return self.step(state, batch)[0]

    def train(self) -> None:
        for _ in range(self.given.steps_per_burst):
            self.state = self.one(self.state, next(self.batches))


if __name__ == "__main__":
    serve(StepByStep)
