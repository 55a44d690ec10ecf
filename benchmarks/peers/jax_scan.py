"""JAX by hand: many steps in one compiled call, with `lax.scan` over a stack of batches."""

import functools
import itertools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from benchmarks.peers import jax_models
from benchmarks.peers.line import Line, Settings, settings
from benchmarks.problems import Weights


class State(NamedTuple):
    """All that a step changes; the sums of losses and accuracies among it."""

    layers: Any
    moving: Any
    optimizer: Any
    key: jax.Array
    loss: jax.Array
    accuracy: jax.Array


class Training:
    """A compiled loop, its state and its data.

    Args:
        given: what to train.
    """

    def __init__(self, given: Settings) -> None:
        self.given = given
        make, self.apply = jax_models.NETWORKS[given.problem.network]
        self.optimizer = jax_models.optimizer(given.problem)
        layers, moving = jax.tree.map(jnp.asarray, make(given.problem, Weights()))
        sums = jnp.zeros(()), jnp.zeros(())
        self.state = State(layers, moving, self.optimizer.init(layers), jax.random.key(0), *sums)
        x, y = given.problem.data()
        every = given.steps_per_call
        starts = range(0, given.problem.batches - every + 1, every)
        self.stacks = itertools.cycle([(x[start : start + every], y[start : start + every]) for start in starts])

    def computed(self, array: jax.Array) -> jax.Array:
        """What a step computes with: floats in bfloat16, if they are to be."""
        floats = jnp.issubdtype(array.dtype, jnp.floating)
        return array.astype(jnp.bfloat16) if floats and self.given.mixed else array

    def step(self, state: State, batch: tuple[jax.Array, jax.Array]) -> tuple[State, None]:
        x, y = batch
        key, drawn = jax.random.split(state.key)

        def mean_loss(layers: Any) -> tuple[jax.Array, Any]:
            layers, inputs = jax.tree.map(self.computed, (layers, x))
            outputs, moving = self.apply(layers, state.moving, inputs, drawn, self.given.dropout)
            outputs = outputs.astype(jnp.float32)
            return optax.softmax_cross_entropy_with_integer_labels(outputs, y).mean(), (outputs, moving)

        (loss, (outputs, moving)), gradients = jax.value_and_grad(mean_loss, has_aux=True)(state.layers)
        updates, optimizer = self.optimizer.update(gradients, state.optimizer, state.layers)
        layers = optax.apply_updates(state.layers, updates)
        accuracy = (outputs.argmax(-1) == y).mean()
        return State(layers, moving, optimizer, key, state.loss + loss, state.accuracy + accuracy), None

    @functools.partial(jax.jit, static_argnums=0, donate_argnums=1)
    def steps(self, state: State, stack: tuple[jax.Array, jax.Array]) -> State:
        return jax.lax.scan(self.step, state, stack)[0]

    def train(self) -> None:
        """The steps of a burst."""
        for _ in range(self.given.calls):
            self.state = self.steps(self.state, next(self.stacks))

    def burst(self) -> float:
        """Trains a burst: its mean loss."""
        self.train()
        loss = float(self.state.loss) / self.given.steps_per_burst
        self.state = self.state._replace(loss=jnp.zeros(()), accuracy=jnp.zeros(()))
        return loss


def serve(kind: type[Training]) -> None:
    """Trains bursts for as long as it is asked to."""
    given = settings()
    line = Line({"jax": jax.__version__, "optax": optax.__version__}, jax.default_backend().upper())
    training = kind(given)
    while line.burst_done(training.burst()):
        pass
    line.close()


if __name__ == "__main__":
    serve(Training)
