"""Keras' optimizers under looper: gradients that are already reduced, settings that Keras cannot do on replicas."""

import contextlib
import re
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import keras
import tensorflow as tf

from looper.base.conditions import run_if
from looper.base.errors import InputError
from looper.base.names import as_tf, path_of
from looper.base.put_back import instead


def inner(optimizer: Any) -> Any:
    """The optimizer inside a `LossScaleOptimizer` (the pipeline scales the loss), or the optimizer itself."""
    return optimizer.inner_optimizer if isinstance(optimizer, keras.optimizers.LossScaleOptimizer) else optimizer


def members(optimizer: Any) -> list[Any]:
    """The optimizers that a `MultiOptimizer` hands its variables to, or the optimizer itself; never the wrappers."""
    optimizer = inner(optimizer)
    return list(optimizer.optimizers) if isinstance(optimizer, keras.optimizers.MultiOptimizer) else [optimizer]


def learning_rates(optimizer: Any) -> dict[str, Any]:
    """The current learning rate by the name it is logged under; of a `MultiOptimizer` one for each member.

    Example:
        >>> {name: float(rate) for name, rate in learning_rates(keras.optimizers.SGD(0.5)).items()}
        {'learning_rate': 0.5}
    """
    found = members(optimizer)
    if len(found) == 1:
        return {"learning_rate": found[0].learning_rate}
    return {f"learning_rate/{member.name}": member.learning_rate for member in found}


def check_optimizer(optimizer: Any, *, replicas: int, clip_norm: float | None, clip_value: float | None) -> None:
    """Raises `InputError` for what is no Keras optimizer, and for settings that contradict the trainer's."""
    if not isinstance(optimizer, keras.optimizers.Optimizer):
        raise InputError(f"optimizer={optimizer!r}: expected a Keras optimizer, such as keras.optimizers.Adam(1e-3).")
    for name in ("clipnorm", "global_clipnorm", "clipvalue"):
        for member in members(optimizer):
            if getattr(member, name) and (clip_norm or clip_value):
                ours = f"clip_norm={clip_norm}" if clip_norm else f"clip_value={clip_value}"
                raise InputError(f"the Trainer has {ours} and the optimizer {name}={getattr(member, name)}: keep one.")
    if replicas > 1 and isinstance(inner(optimizer), keras.optimizers.MultiOptimizer):
        for member in members(optimizer):
            for name in ("gradient_accumulation_steps", "ema_overwrite_frequency"):
                if getattr(member, name):
                    raise InputError(
                        f"an optimizer inside a MultiOptimizer has {name}={getattr(member, name)}, which Keras cannot "
                        f"do on {replicas} replicas: leave it None (the Trainer has accumulate= and ema=)."
                    )


def apply_reduced(optimizer: Any, apply: Callable[[], Any], together: bool) -> None:
    """Runs `apply`, which calls `inner(optimizer).apply` with reduced and unscaled gradients on each replica.

    Call it in replica context, or for all replicas of a MirroredStrategy `together` in cross-replica context. Keras
    decides about gradient accumulation and EMA overwriting in a `tf.cond` around a `merge_call`, which a
    MirroredStrategy refuses; there the decision is taken out of the replicas here. The numbers are the same.
    """
    optimizer = inner(optimizer)
    with _as_they_are(optimizer):
        if not together or not (optimizer.gradient_accumulation_steps or optimizer.ema_overwrite_frequency):
            apply()
            return
        every, overwriting = optimizer.gradient_accumulation_steps, optimizer.ema_overwrite_frequency
        overwrite = overwriting and tf.equal((optimizer.iterations + 1) % overwriting, 0)

        def branch(updating: bool) -> Callable[[], tf.Tensor]:
            def run() -> tf.Tensor:
                with _decided(optimizer, updating):
                    apply()
                return tf.constant(0)

            return run

        if every:
            # the optimizer's first variable counts the calls; `iterations` counts the updates
            count = optimizer.variables[0].value
            tf.cond(tf.equal((count + 1) % every, 0), branch(True), branch(False))
        else:
            branch(True)()
        if overwriting:
            trained = optimizer._trainable_variables  # see _decided

            def average() -> None:
                optimizer.finalize_variable_values(trained)
                for variable in trained:  # `apply` has done so before: Keras overwrites in between
                    if getattr(variable, "constraint", None) is not None:
                        variable.assign(variable.constraint(variable))

            run_if(overwrite, average)


@contextlib.contextmanager
def telling(found: Sequence[Any], tell: Callable[[str], None]) -> Iterator[None]:
    """Inside it `tell` is called with an optimizer's name whenever somebody else than `apply_reduced` applies it.

    The objects are changed, and not their classes: other optimizers go on as they are.

    Args:
        found: optimizers; of a wrapper or a `MultiOptimizer`, those inside it as well.
        tell: is called before the update.
    """
    changed = list({id(one): one for optimizer in found for one in (optimizer, *members(optimizer))}.values())
    with contextlib.ExitStack() as stack:
        for optimizer in changed:
            stack.enter_context(instead(optimizer, "apply", _told(optimizer, optimizer.apply, tell)))
        yield


def _told(optimizer: Any, apply: Callable[..., Any], tell: Callable[[str], None]) -> Callable[..., Any]:
    def told(*args: Any, **kwargs: Any) -> Any:
        if "_all_reduce_sum_gradients" not in vars(members(optimizer)[0]):  # see _as_they_are
            tell(type(optimizer).__name__)
        return apply(*args, **kwargs)

    return told


def updated(optimizer: Any) -> tf.Tensor | None:
    """Whether the last `apply` updated the variables, bool scalar; None if each does.

    Those of a `MultiOptimizer`, which may accumulate differently, count as updated at each.
    """
    every = inner(optimizer).gradient_accumulation_steps
    return tf.equal(inner(optimizer).variables[0].value % every, 0) if every else None


@contextlib.contextmanager
def _as_they_are(optimizer: Any) -> Iterator[None]:
    """Keeps `optimizer.apply` from summing gradients over the replicas a second time, and from unscaling them again.

    Keras 3.15 has no public way: `apply` in replica context always reduces, in cross-replica context it raises
    AttributeError, and `update_step` alone leaves out weight decay, EMA and constraints.
    tests/test_private_names.py fails if the name changes.
    """
    factor, optimizer.loss_scale_factor = optimizer.loss_scale_factor, None  # a property of `MultiOptimizer`
    with contextlib.ExitStack() as stack:
        stack.callback(setattr, optimizer, "loss_scale_factor", factor)
        for member in members(optimizer):
            stack.enter_context(instead(member, "_all_reduce_sum_gradients", lambda grads_and_vars: grads_and_vars))
        yield


@contextlib.contextmanager
def _decided(optimizer: Any, updating: bool) -> Iterator[None]:
    """Makes `optimizer.apply` accumulate, or update, without a condition of its own.

    What Keras 3.15 does in `BaseOptimizer._backend_apply_gradients`, whose conditions cannot be reached from outside;
    tests/step/test_what_people_bring_on_replicas.py compares it with Keras' own on one replica, and
    tests/test_private_names.py fails if the names change.
    """

    def apply_gradients(gradients: Sequence[Any], variables: Sequence[Any]) -> None:
        every = optimizer.gradient_accumulation_steps
        sums = []
        if every:
            sums = [optimizer._accumulated_gradients[optimizer._get_variable_index(v)] for v in variables]
        if updating:
            if every:
                gradients = [(g + s) / every for g, s in zip(gradients, sums, strict=True)]
            gradients = optimizer._clip_gradients(gradients)
            optimizer._apply_weight_decay(variables)
            optimizer._backend_update_step(gradients, variables, optimizer.learning_rate)
            if every:
                optimizer._backend_reset_gradient_accumulators()
        else:
            optimizer._backend_increment_gradient_accumulators(gradients, sums)
        if optimizer.use_ema:
            optimizer._update_model_variables_moving_average(optimizer._trainable_variables)

    with instead(optimizer, "_backend_apply_gradients", apply_gradients):
        yield


def finalize(optimizer: Any) -> None:
    """Puts the optimizer's moving averages into the variables, as Keras' `fit` does at its end under `use_ema`.

    Another `fit` of the same process goes on from them, as in Keras; one that is continued in a new process goes on
    from the weights as they were trained, as one that was never stopped.
    """
    for member in members(optimizer):
        if not (member.use_ema and member.built):
            continue
        if int(keras.ops.convert_to_numpy(member.iterations)) > 0:  # Keras' averages begin at 0
            member.finalize_variable_values(member._trainable_variables)  # all of them, in the order of `build`


def trained_by(optimizer: Any) -> list[Any]:
    """The variables that an optimizer was built for, none before; Keras 3.15 does not tell them publicly."""
    return [v for member in members(optimizer) if member.built for v in member._trainable_variables]


def others(variables: Sequence[Any], known: Sequence[Any]) -> list[Any]:
    """Those variables that are not among the known ones.

    Example:
        >>> a, b = keras.Variable(0.0), keras.Variable(1.0)
        >>> others([a, b], [a]) == [b]
        True
    """
    ids = {id(as_tf(variable)) for variable in known}
    return [variable for variable in variables if id(as_tf(variable)) not in ids]


def rebuild(optimizer: Any, variables: Sequence[Any]) -> tuple[int, int]:
    """Builds an optimizer again for other variables; what it has for those that stay, stays. Call it in the scope.

    Returns:
        The numbers of the optimizer's own variables that kept their values, and of those that are new.
    """
    optimizer = inner(optimizer)
    values: dict[tuple[str, int | None], tf.Tensor] = {}
    for member in [optimizer, *(m for m in members(optimizer) if m is not optimizer)]:
        if not member.built:
            continue
        staying = {id(v) for v in (member.variables[0], getattr(member, "_learning_rate", None))}
        for key, slot in _slots(member):
            if id(slot) in staying:
                continue
            values[key] = slot.value.read_value()
            # Keras 3.15 refuses new variables after `build` and says to make another optimizer, which would lose
            # its state; tests/test_private_names.py fails if these names change.
            member._untrack_variable(slot)
        member._trainable_variables_indices = {}
        member.built = False
    optimizer.build(list(variables))
    reused = fresh = 0
    for member in members(optimizer):
        if member.use_ema and member.built:
            for average, variable in zip(
                member._model_variables_moving_average, member._trainable_variables, strict=True
            ):
                average.assign(variable)  # for the new ones: Keras lets an average begin anew at the first update only
        for key, slot in _slots(member):
            if key in values and values[key].shape == slot.shape:
                slot.assign(values[key])
                reused += 1
            elif len(slot.shape) > 0:  # the others, such as the learning rate, were never taken away
                fresh += 1
    return reused, fresh


def _slots(optimizer: Any) -> list[tuple[tuple[str, int | None], Any]]:
    """An optimizer's variables, each by a name and the id of the variable that it is for.

    Keras 3.15 keeps them in lists in the variables' order, or as an attribute, as Nadam's product of momentums. Others
    are named after the variable's path, which two layers of the same name share: of those it makes them in the
    variables' order.
    """
    listed: dict[int, tuple[str, int | None]] = {}
    for name, slots in vars(optimizer).items():
        if isinstance(slots, keras.Variable):
            listed[id(slots)] = (name, None)
        of_each = isinstance(slots, list) and len(slots) == len(optimizer._trainable_variables)
        if of_each and name not in ("_variables", "_trainable_variables"):
            pairs = zip(slots, optimizer._trainable_variables, strict=True)
            listed |= {id(slot): (name, id(variable)) for slot, variable in pairs}
    trained: dict[str, list[int]] = defaultdict(list)
    for variable in optimizer._trainable_variables:
        trained[re.sub("[/:]", "_", path_of(variable)) + "_"].append(id(variable))
    seen: dict[str, int] = defaultdict(int)
    found = []
    for slot in optimizer._variables:
        owners = trained[max((path for path in trained if slot.name.startswith(path)), key=len, default="")]
        number = seen[slot.path]
        seen[slot.path] += 1
        found.append((listed.get(id(slot), (slot.path, owners[number] if number < len(owners) else None)), slot))
    return found
