"""What Keras' update of the weights costs in a small step, and what other ways to write it would.

    python -m benchmarks.fused_update
    python -m benchmarks.fused_update --model resnet50 --rounds 5

Hand-written loops in the graph take turns over the same batches, from equal weights. They differ in the update alone:
Keras' Adam, which has some operations for each variable; TensorFlow's fused operation for each (`ResourceApplyAdam`, on
Keras' own slots); one update of all gradients in one flat vector, whose slots are flat, too, or are Keras' own; and
none, the least that a step can take. The weights after a turn say whether the bits are Keras'. looper keeps Keras'
update.
"""

import argparse
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from benchmarks.peers import keras_models
from benchmarks.problems import PROBLEMS, Problem
from benchmarks.saving import save
from looper.commands.bench.statistics import median

RESULTS = Path(__file__).parent / "results"

# Private in Keras 3.15: an Adam's slots by variable (`_momentums`, `_velocities`, `_get_variable_index`); the public
# `optimizer.variables` has them by position alone.

Update = Callable[[Sequence[tf.Tensor], Sequence[Any]], None]


def by_keras(optimizer: Any) -> Update:
    """`optimizer.apply`."""
    return optimizer.apply


def fused(optimizer: Any) -> Update:
    """One operation for each variable, on Keras' slots."""

    def update(gradients: Sequence[tf.Tensor], variables: Sequence[Any]) -> None:
        optimizer.iterations.assign_add(1)
        step = tf.cast(optimizer.iterations, tf.float32)
        powers = [tf.pow(beta, step) for beta in (optimizer.beta_1, optimizer.beta_2)]
        for gradient, variable in zip(gradients, variables, strict=True):
            place = optimizer._get_variable_index(variable)
            slots = [slot[place].value.handle for slot in (optimizer._momentums, optimizer._velocities)]
            tf.raw_ops.ResourceApplyAdam(
                var=variable.value.handle,
                m=slots[0],
                v=slots[1],
                beta1_power=powers[0],
                beta2_power=powers[1],
                lr=optimizer.learning_rate,
                beta1=optimizer.beta_1,
                beta2=optimizer.beta_2,
                epsilon=optimizer.epsilon,
                grad=gradient,
            )

    return update


def flat(optimizer: Any) -> Update:
    """All gradients in one vector, with slots of its own."""
    sizes = [int(np.prod(v.shape)) for v in optimizer._trainable_variables]
    m, v = (tf.Variable(tf.zeros([sum(sizes)])) for _ in range(2))

    def update(gradients: Sequence[tf.Tensor], variables: Sequence[Any]) -> None:
        first, second, change = adam(optimizer, gradients, m, v)
        m.assign(first)
        v.assign(second)
        for variable, part in zip(variables, tf.split(change, sizes), strict=True):
            variable.value.assign_sub(tf.reshape(part, variable.shape))

    return update


def flat_on_slots(optimizer: Any) -> Update:
    """The same, with Keras' slots: they are joined before, and their parts put back."""
    sizes = [int(np.prod(v.shape)) for v in optimizer._trainable_variables]

    def update(gradients: Sequence[tf.Tensor], variables: Sequence[Any]) -> None:
        slots = [optimizer._momentums, optimizer._velocities]
        first, second, change = adam(optimizer, gradients, *(joined([s.value for s in slot]) for slot in slots))
        for slot, new in zip(slots, (first, second), strict=True):
            for variable, part in zip(slot, tf.split(new, sizes), strict=True):
                variable.value.assign(tf.reshape(part, variable.shape))
        for variable, part in zip(variables, tf.split(change, sizes), strict=True):
            variable.value.assign_sub(tf.reshape(part, variable.shape))

    return update


def joined(tensors: Sequence[Any]) -> tf.Tensor:
    """All in one vector."""
    return tf.concat([tf.reshape(each, [-1]) for each in tensors], 0)


def adam(optimizer: Any, gradients: Sequence[tf.Tensor], m: Any, v: Any) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """The slots after a step, and what to subtract from the weights, as Keras' Adam computes them."""
    optimizer.iterations.assign_add(1)
    step = tf.cast(optimizer.iterations, tf.float32)
    beta_1, beta_2 = optimizer.beta_1, optimizer.beta_2
    gradient = joined(gradients)
    alpha = optimizer.learning_rate * tf.sqrt(1 - tf.pow(beta_2, step)) / (1 - tf.pow(beta_1, step))
    first = m + (gradient - m) * (1 - beta_1)
    second = v + (tf.square(gradient) - v) * (1 - beta_2)
    return first, second, first * alpha / (tf.sqrt(second) + optimizer.epsilon)


def no_update(optimizer: Any) -> Update:
    """The gradients are computed, and one number of each is kept, so that TensorFlow does not leave them out."""
    kept = tf.Variable(0.0)

    def update(gradients: Sequence[tf.Tensor], variables: Sequence[Any]) -> None:
        kept.assign(tf.add_n([tf.reshape(each, [-1])[0] for each in gradients]))

    return update


WAYS = {
    "Keras' update": by_keras,
    "ResourceApplyAdam": fused,
    "flat": flat,
    "flat on Keras' slots": flat_on_slots,
    "no update": no_update,
}


class Side:
    """A loop in the graph with one of the updates.

    Args:
        problem: what to train.
        way: of `WAYS`.
    """

    def __init__(self, problem: Problem, way: Callable[[Any], Update]) -> None:
        self._problem = problem
        self.model = keras_models.model(problem, 0.0)
        variables, loss = self.model.trainable_variables, keras_models.loss()
        optimizer = keras_models.optimizer(problem)
        optimizer.build(variables)
        update = way(optimizer)
        self._iterator = iter(keras_models.dataset(problem).prefetch(tf.data.AUTOTUNE))

        @tf.function
        def steps(iterator: Any, count: tf.Tensor) -> None:
            for _ in tf.range(count):
                x, y = next(iterator)
                with tf.GradientTape() as tape:
                    value = loss(y, self.model(x, training=True))
                # dense, as the flat vector needs them
                update([tf.convert_to_tensor(g) for g in tape.gradient(value, variables)], variables)

        self._steps = steps

    def turn(self) -> float:
        """Trains a burst. Returns microseconds per step."""
        problem = self._problem
        calls = problem.steps_per_burst // problem.steps_per_call
        began = time.perf_counter()
        for _ in range(calls):
            self._steps(self._iterator, tf.constant(problem.steps_per_call))
        np.asarray(self.model.trainable_variables[0])
        return (time.perf_counter() - began) / (calls * problem.steps_per_call) * 1e6


def main() -> None:
    adam = [name for name in PROBLEMS if type(keras_models.optimizer(PROBLEMS[name])).__name__ == "Adam"]
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", choices=adam, default="deep_mlp")
    parser.add_argument("--rounds", type=int, default=21, help="turns of each side")
    parser.add_argument("--out", type=Path, default=RESULTS / "fused_update.json", help="the JSON file to write")
    arguments = parser.parse_args()
    sides = {name: Side(PROBLEMS[arguments.model], way) for name, way in WAYS.items()}
    first = {name: side.turn() for name, side in sides.items()}
    weights = {name: [w.numpy() for w in side.model.weights] for name, side in sides.items()}
    times: dict[str, list[float]] = {name: [] for name in first}
    order = np.random.default_rng(0)
    for _ in range(arguments.rounds):
        for name in order.permutation(list(sides)):
            times[name].append(sides[name].turn())
    kept = weights["Keras' update"]
    result = {
        "microseconds per step": {name: median(found) for name, found in times.items()},
        "ratios to Keras' update": {
            name: median(np.divide(found, times["Keras' update"])) for name, found in times.items()
        },
        "the same bits after a turn": {
            name: all(np.array_equal(a, b) for a, b in zip(weights[name], kept, strict=True))
            for name in sides
            if name != "no update"
        },
        "model": arguments.model,
        "turns": arguments.rounds,
    }
    print(save(arguments.out, result, "benchmarks.fused_update"))


if __name__ == "__main__":
    main()
