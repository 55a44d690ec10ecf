"""Whether a recipe does on several replicas what it does on one: the same batch, spread over them and all on one.

"On one" is measured in the strategy that there is: every replica gets the whole batch, which counts on the first alone
(looper/step/idle.py). What is compared is how a step has changed the variables, whoever has changed them. Optimizers
subtract the gradients as they are meanwhile: an update such as Adam's hides how large a gradient is.
"""

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal

import keras
import numpy as np
import tensorflow as tf

from looper.audit.examine import Examined
from looper.audit.sensitivity import sensitivity
from looper.audit.tree import Tree
from looper.base import xla
from looper.base.batches import of_any_size
from looper.base.names import as_tf, named_objects
from looper.base.put_back import instead
from looper.recipe import optimizers
from looper.recipe.freezing import without_training
from looper.recipe.metrics import Window
from looper.saved.variables import State, variables_of
from looper.step.idle import gathers_alone

Step = Callable[[Any], tf.Tensor]

LIMITS = {"float64": 1e-9, "float32": 1e-4, "mixed_bfloat16": 5e-2, "mixed_float16": 1e-2}
"""The largest difference of a gradient that counts as rounding, as a fraction of its norm. Replicas round their sums
apart: by 2**-24 of float32, which long chains of layers multiply, 2**-9 of bfloat16 and 2**-11 of float16."""

LEAST = 1e-2
"""A gradient smaller than this fraction of all gradients is compared with the fraction: it may be nothing but rounding,
as that of a bias under batch normalization is."""

MOST_STEPS = 40
"""Until one updates: a dynamic loss scale may skip some, from 2**15 down; an optimizer may only add gradients up."""

ADVICE = {
    True: "  -> Look for what counts or averages over the examples of a replica: looper divides by all examples.",
    False: "  -> Each replica assigns a value of its own: gather or average it over the replicas before.",
}
"""What to do, by whether the variable that differs is trained."""

OFF = ("dropout", "noise", "augmentation")
"""Kinds of layers that draw random numbers only if `training`."""


@dataclasses.dataclass(frozen=True)
class Difference:
    """How far the updates of one variable are apart.

    Attributes:
        path: of the variable, as in an audit.
        update: the norm of what one replica subtracts: the gradient (clipped, if the recipe clips), and what the step
            assigns besides. Of a variable that is not trained, the norm of the value that it has after the step.
        difference: the norm of the difference from what several subtract, or have; the largest, if they do not agree.
        relative: `difference` as a fraction of `update`, or, of what is trained, of a hundredth of all updates where
            that is larger.
        trained: whether the variable is trained.
    """

    path: str
    update: float
    difference: float
    relative: float
    trained: bool = True


@dataclasses.dataclass(frozen=True)
class ReplicaReport:
    """The result of `Trainer.check_replicas`.

    Attributes:
        replicas: that the batch was spread over.
        examples: in the batch.
        limit: up to which `relative` counts as rounding.
        differences: of every trained variable, and of others that replicas are to have alike, the largest first.
        logs: by name what one replica and several logged.
        reasons: what is known to differ between replicas, by path.
        rest: with random layers off and batch statistics synchronized, the report on all else; None where nothing of
            that kind is there, or where the reasons are others.

    Example:
        >>> report = ReplicaReport(2, 16, 1e-4, (Difference("model/dense/kernel", 0.5, 0.5, 1.0),), {}, (), None)
        >>> report.verdict, report.ok
        ('different', False)
        >>> print(report)
        2 replicas do not update as one does (16 examples): 1 of 1 variables differs by more than 0.0001
          model/dense/kernel  by 1 of its gradient's norm 0.5
          -> Look for what counts or averages over the examples of a replica: looper divides by all examples.
    """

    replicas: int
    examples: int
    limit: float
    differences: tuple[Difference, ...]
    logs: Mapping[str, tuple[float, float]]
    reasons: tuple[str, ...]
    rest: "ReplicaReport | None"

    @property
    def differing(self) -> tuple[Difference, ...]:
        """The variables whose updates are further apart than rounding explains; NaN is further."""
        return tuple(d for d in self.differences if not d.relative <= self.limit)

    @property
    def largest(self) -> str:
        """How large the largest difference is, in words."""
        if not self.differences:
            return "nothing is trained"
        largest = self.differences[0]
        return f"the largest difference is {largest.relative:.1e} of {'a gradient' if largest.trained else 'a value'}"

    @property
    def verdict(self) -> Literal["equal", "expected", "unknown", "different"]:
        """ "expected": what differs is random or batch statistics, and all else is equal. "unknown": there are reasons
        to differ that cannot be taken away, so that nothing is known of all else."""
        if not self.differing:
            return "equal"
        if self.rest is not None:
            return "expected" if self.rest.verdict == "equal" else self.rest.verdict
        return "unknown" if self.reasons else "different"

    @property
    def ok(self) -> bool:
        """Whether nothing is wrong, as far as can be told."""
        return self.verdict in ("equal", "expected")

    def __str__(self) -> str:
        examples, many = f"({self.examples} examples)", f"{self.replicas} replicas"
        if self.verdict == "equal":
            lines = [f"{many} update as one does {examples}: {self.largest}"]
        elif self.verdict == "expected":
            lines = [
                f"{many} update as one does {examples}, but for what is each replica's own; without that, "
                f"{self.rest.largest}"
            ]
        elif self.verdict == "unknown":
            lines = [f"{many} and one cannot be compared {examples}: there is more that is each replica's own"]
        else:
            worst = self if self.rest is None else self.rest
            count = f"{len(worst.differing)} of {len(worst.differences)} variables"
            verb = "differs" if len(worst.differing) == 1 else "differ"
            lines = [f"{many} do not update as one does {examples}: {count} {verb} by more than {self.limit:g}"]
            lines += [
                f"  {d.path}  by {d.relative:.2g} of its {'gradient' if d.trained else 'value'}'s norm {d.update:.2g}"
                for d in worst.differing
            ]
            kinds = {d.trained for d in worst.differing}
            lines += [advice for trained, advice in ADVICE.items() if trained in kinds]
        return "\n".join([*lines, *(f"  {reason}" for reason in self.reasons)])


def compare(
    recipe: Examined,
    *,
    make_step: Callable[[bool, list[str]], Step],
    batch: Any,
    examples: int,
    alike: Sequence[Any],
    strategy: tf.distribute.Strategy,
    optimizers_of: Sequence[keras.optimizers.Optimizer],
    precision: str,
    synchronize: bool,
) -> ReplicaReport:
    """Runs one step of a batch spread over the replicas and one on the first alone. All state is put back.

    Args:
        recipe: whose step it is, and whose trained variables' updates are compared.
        make_step: from whether to spread the batch, and a list for the names of logs, to a training step.
        batch: a global batch.
        examples: in it.
        alike: the variables whose values to compare, see `kept_alike`.
        strategy: of several replicas.
        optimizers_of: the recipe's.
        precision: the trainer's.
        synchronize: whether batch statistics can be synchronized to compare all else.
    """

    def report(rest: ReplicaReport | None = None) -> ReplicaReport:
        with _plain_descent(optimizers_of):
            one, many = (_measured(recipe, make_step, spread, batch, alike, strategy) for spread in (False, True))
        logs = {name: (value, many.logs[name]) for name, value in one.logs.items() if name in many.logs}
        differences = _differences(one, many)
        return ReplicaReport(
            strategy.num_replicas_in_sync, examples, LIMITS[precision], differences, logs, many.reasons, rest
        )

    found = report()
    layers = [place.thing for place in recipe.tree.places.values() if isinstance(place.thing, keras.Layer)]
    own = [layer for layer in layers if sensitivity(layer) in OFF or (gathers_alone(layer) and synchronize)]
    if not (found.differing and found.reasons and own):
        return found
    with _alike(own):
        return dataclasses.replace(found, rest=report())


def kept_alike(attributes: Mapping[str, Any], trainable: Sequence[Any]) -> list[Any]:
    """The variables beside the trained ones that replicas are to have alike: a trainer's own ones and frozen weights.

    Each replica's own are metrics, seeds, what is added up when it is read, and what layers gather, of which an
    evaluation takes the mean.
    """
    known, found = {id(as_tf(v)) for v in trainable}, []
    for _, thing in named_objects(attributes):
        if isinstance(thing, keras.optimizers.Optimizer | keras.Metric):
            continue
        is_own = isinstance(thing, tf.Variable | keras.Variable)
        for variable in variables_of(thing):
            plain = as_tf(variable)
            summed = plain.aggregation == tf.VariableAggregation.SUM
            apart = summed or plain.synchronization == tf.VariableSynchronization.ON_READ
            if (is_own or plain.trainable) and plain.dtype != tf.string and not apart and id(plain) not in known:
                known.add(id(plain))
                found.append(variable)
    return found


@dataclasses.dataclass(frozen=True)
class _Measured:
    """One step: what each replica subtracted from the trained variables, the values of others, the logs, and why
    replicas may differ."""

    updates: dict[str, list[np.ndarray]]
    values: dict[str, list[np.ndarray]]
    logs: dict[str, float]
    reasons: tuple[str, ...]


def _measured(
    recipe: Examined,
    make_step: Callable[[bool, list[str]], Step],
    spread: bool,
    batch: Any,
    alike: Sequence[Any],
    strategy: tf.distribute.Strategy,
) -> _Measured:
    names: list[str] = []
    tree, trainable = recipe.tree, recipe.trainable
    step, used, drawn = make_step(spread, names), [], []
    if recipe.compiled:
        step = tf.function(step, autograph=False).get_concrete_function(
            tf.nest.map_structure(of_any_size, tf.nest.map_structure(tf.type_spec_from_value, batch))
        )
        used = list(step.graph.variables)
        drawn = sorted(xla.operations(step.graph).keys() & xla.UNSEEDED)
    state = recipe.make_state(used)
    snapshot = state.snapshot()

    def values(variables: Sequence[Any]) -> dict[str, list[np.ndarray]]:
        copies = {id(v): strategy.experimental_local_results(as_tf(v)) for v in variables}
        found = {tree.name(v) or as_tf(v).name: [c.numpy() for c in copies[id(v)]] for v in variables}
        return found if spread else {name: of_all[:1] for name, of_all in found.items()}

    try:
        before = values(trainable)
        for _ in range(MOST_STEPS):
            row, after = step(batch).numpy(), values(trainable)
            if any(not np.array_equal(a, b) for n in before for a, b in zip(after[n], before[n], strict=True)):
                break
        reasons = [f"{op} draws other numbers on each replica: draw with keras.random and a seed" for op in drawn]
        reasons += _reasons(tree, strategy, state, snapshot) if spread else []
        others = values(alike)
    finally:
        state.restore(snapshot)
    updates = {n: [b - a for b, a in zip(before[n], after[n], strict=True)] for n in before}
    window = Window()
    window.add(row[None])
    return _Measured(updates, others, window.means(names), tuple(reasons))


def _reasons(
    tree: Tree, strategy: tf.distribute.Strategy, state: State, snapshot: Mapping[str, tf.Tensor]
) -> list[str]:
    """The variables that a step has shown to be each replica's own: seeds that moved, statistics that differ."""
    moved = {id(v) for name, v in state.variables.items() if not np.array_equal(v.numpy(), snapshot[name].numpy())}
    found: dict[str, None] = {}
    known: set[int] = set()
    for place in tree.places.values():
        for variable in variables_of(place.thing) if hasattr(place.thing, "variables") else ():
            copies = strategy.experimental_local_results(as_tf(variable))
            known.update(map(id, copies))
            if id(copies[0]) not in moved or as_tf(variable).trainable:
                continue
            path = tree.path(tree.owner(variable)) or place.path
            if variable.name.split(":")[0].endswith("seed_generator_state"):
                found[f"{path} draws random numbers, other ones on each replica: this is right"] = None
            elif copies[0].dtype.is_floating and any(
                not np.allclose(copy.numpy(), copies[0].numpy(), equal_nan=True) for copy in copies
            ):
                remedy = "; synchronized=True makes it do as on one" if gathers_alone(tree.owner(variable)) else ""
                found[f"{path} gathers statistics of each replica's examples alone{remedy}"] = None
    for name, variable in state.variables.items():
        if id(variable) in moved - known and "seed" in variable.name:
            found[f"{name.rpartition('/')[2]} (keras.random without a seed) draws random numbers: this is right"] = None
    return list(found)


def _differences(one: _Measured, many: _Measured) -> tuple[Difference, ...]:
    least = LEAST * float(np.linalg.norm([np.linalg.norm(update) for [update] in one.updates.values()]))

    def difference(name: str, expected: np.ndarray, found: list[np.ndarray], trained: bool) -> Difference:
        apart = max((float(np.linalg.norm(f.astype("float64") - expected)) for f in found), key=_or_infinite)
        norm = float(np.linalg.norm(expected))
        size = max(norm, least) if trained else norm
        return Difference(name, norm, apart, apart / size if size else (np.inf if apart else 0.0), trained)

    differences = [difference(name, update, many.updates[name], True) for name, [update] in one.updates.items()]
    differences += [difference(name, value, many.values[name], False) for name, [value] in one.values.items()]
    return tuple(sorted(differences, key=lambda d: -_or_infinite(d.relative)))


def _or_infinite(number: float) -> float:
    return number if np.isfinite(number) else np.inf


@contextlib.contextmanager
def _plain_descent(optimizers_of: Sequence[keras.optimizers.Optimizer]) -> Iterator[None]:
    """Inside it an update subtracts the gradient: Keras documents `update_step` as what an optimizer overrides."""
    changed = [member for optimizer in optimizers_of for member in optimizers.members(optimizer)]
    with contextlib.ExitStack() as stack:
        for member in changed:
            stack.enter_context(instead(member, "update_step", functools.partial(_descend, member)))
        yield


def _descend(optimizer: Any, gradient: Any, variable: Any, _: Any) -> None:
    optimizer.assign_sub(variable, gradient)


@contextlib.contextmanager
def _alike(layers: Sequence[keras.Layer]) -> Iterator[None]:
    """Inside it random layers are called with `training=False`, and batch statistics are those of all replicas."""
    with contextlib.ExitStack() as stack:
        for layer in layers:
            if gathers_alone(layer):
                layer.synchronized = True
                stack.callback(setattr, layer, "synchronized", False)
            else:
                stack.enter_context(instead(layer, "call", without_training(layer.call)))
        yield
