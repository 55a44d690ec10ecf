"""The checks of the flag: where it became another one than it should be, and what that does."""

import inspect
from collections.abc import Iterator, Sequence
from typing import Any

import keras

from looper.audit.facts import Facts, Finding, Severity, flag, is_frozen, listed_paths
from looper.audit.record import Call, Recorder
from looper.audit.sensitivity import sensitivity
from looper.base.names import as_tf


def tensor_flags(facts: Facts) -> Iterator[Finding]:
    """Calls that were given a tensor."""
    yield from _tensor_flags_of(facts.calls)


def tensor_flag(recorder: Recorder) -> Finding | None:
    """The call with a tensor for a flag that stopped a trace, if that was what stopped it."""
    return next(_tensor_flags_of(recorder.calls), None)


def _tensor_flags_of(calls: Sequence[Call]) -> Iterator[Finding]:
    for call in calls:
        if flag(call.given) == "tensor" and flag(call.expected) != "tensor":
            yield Finding(
                "error",
                "tensor-flag",
                call.path,
                f"{_where(call)} gives it training= as a {type(call.given).__name__}: a compiled step cannot "
                "decide on it.",
                "Give it a Python bool: training=True, training=False, or the `training` that looper passes.",
            )


def around_the_tape(facts: Facts) -> Iterator[Finding]:
    """Models that are trained, and called where no tape records."""
    trained = [c for c in facts.training.calls if c.parent is None]
    for call in trained:
        variables = [id(as_tf(v)) for v in getattr(call.layer, "trainable_variables", ())]
        wanted = facts.training.trained | {id(as_tf(v)) for v in facts.training.missing}
        same = [c for c in trained if c.layer is call.layer]
        if wanted.intersection(variables) and not any(c.taped for c in same):
            yield Finding(
                "error",
                "outside-tape",
                call.path,
                "the training step calls it outside the GradientTape, so no gradient reaches its variables.",
                "Call it inside `with tf.GradientTape() as tape:`.",
            )


def wrong_in_training(facts: Facts) -> Iterator[Finding]:
    """Mode-sensitive layers that ought to get True in training, and where it was lost."""
    never = _never_true(facts)
    any_true = any(sensitivity(c.layer) and flag(c.value) is True for c in facts.training.calls)
    for call in _deviations(facts.training.calls):
        affected = [c for c in _affected(facts, call) if id(c.layer) in never]
        if flag(call.value) is False:
            # inference mode is what freezing means
            affected = [c for c in affected if not (_is_fixed(facts, c.layer) or _is_fixed(facts, call.layer))]
        what = _work_left_out(call, affected)
        severity: Severity = "error"
        if call.given is None:
            severity, kind = "error" if affected else "warning", "explicit-none"
            meaning = (
                f"it is called with training=None in {_where(call)}, which is not unspecified: it and what is called "
                f"after it get None in place of {flag(call.expected)}{what and '; ' + what}."
            )
            remedy = "Pass training=training on, or leave it out."
        elif not affected:
            continue
        elif call.origin == "caller":
            severity, kind = "warning" if any_true else "error", "hard-coded"
            meaning = (
                f"{_where(call)} calls it with training={call.given!r} in training, whatever the flag outside: {what}."
            )
            remedy = (
                "Pass training=training on; if fixed statistics and no dropout are meant, freeze it: "
                "looper.freeze(layer)."
            )
        elif call.parent is None:
            kind = "no-flag"
            meaning = f"the training step calls it without training=, which Keras takes for inference: {what}."
            remedy = "Call it with training=True, or training=training in compute_loss."
        elif call.setter is not None:
            yield _leak(call, what)
            continue
        else:
            kind = "never-trained"
            meaning = f"it received training={call.value!r} in training: {what}."
            remedy = "Pass training=training on to it."
        yield Finding(severity, kind, call.path, meaning, remedy)


def _leak(call: Call, what: str) -> Finding:
    return Finding(
        "error",
        "leaked-flag",
        call.path,
        f"it is called without training=, and got {call.value!r} from the call of {call.setter.path} before: {what}.",
        f"Pass training=training on to it in {_where(call)}.",
    )


def wrong_in_evaluation(facts: Facts) -> Iterator[Finding]:
    """Mode-sensitive layers that ought to get False in evaluation."""
    calls = facts.evaluation.calls if facts.evaluation else []
    told = {call.path for call in _deviations(facts.training.calls) if flag(call.value) is None}
    for call in _deviations(calls):
        affected = _affected(facts, call)
        paths = listed_paths([_name(c, call) for c in affected])
        if flag(call.value) is None:
            if affected and call.path not in told and (call.given is None or call.parent is None):
                given = "with training=None" if call.given is None else "without training="
                yield Finding(
                    "warning",
                    "explicit-none" if call.given is None else "no-flag",
                    call.path,
                    f"{_where(call)} calls it {given} in evaluation, so {paths} received None, which is False to "
                    "Keras' own layers only.",
                    "Pass training=training on (in eval_step: training=False).",
                )
            continue
        if flag(call.value) is not True or not affected:
            continue
        statistics = [
            c for c in affected if isinstance(c.layer, keras.layers.BatchNormalization) and not is_frozen(c.layer)
        ]
        if call.setter is not None:
            yield _leak(call, f"{paths} {'acts' if len(affected) == 1 else 'act'} as in training")
            continue
        how = {
            "caller": f"{_where(call)} calls it with training={call.given!r}",
            "default": "the default of its `call` is training=True, and it is called without the flag",
        }.get(call.origin, "it received True")
        yield Finding(
            "error" if statistics or call.origin != "caller" else "warning",
            "trains-in-evaluation",
            call.path,
            f"{how} in evaluation, so {paths} {'acts' if len(affected) == 1 else 'act'} as in training.",
            "Pass training=training on (in eval_step: training=False)"
            + (", unless the draws are meant, as in Monte Carlo dropout." if not statistics else "."),
        )


def against_the_outer_flag(facts: Facts) -> Iterator[Finding]:
    """Functional models that were built with `layer(x, training=False)`."""
    for call in facts.calls:
        written = _written(call)
        if written is None or written == flag(call.value) or flag(call.value) is None:
            continue
        active = [c for c in _affected(facts, call) if flag(c.value) is True]
        moving = [c for c in active if isinstance(c.layer, keras.layers.BatchNormalization) and not is_frozen(c.layer)]
        active = [c for c in active if c in moving or not is_frozen(c.layer)]  # frozen dropout is told of by itself
        severity: Severity
        if written is True and call.phase == "evaluation":  # made inactive; nothing trains
            severity, effect = "warning", "nothing in it acts as in training"
        elif not active:
            severity, effect = "note", "nothing in it depends on the flag now"
        else:
            paths = listed_paths([_name(c, call) for c in active])
            severity = "error" if moving else "warning"
            effect = f"{paths} {'acts' if len(active) == 1 else 'act'} as in training"
        if call.phase == "evaluation" and written is False:
            continue
        yield Finding(
            severity,
            "overridden",
            call.path,
            f"the Functional model {_where(call)!r} was built with training={written} for it, which Keras "
            f"{keras.__version__} overrides by the flag outside, {flag(call.value)} in {call.phase}: {effect}.",
            "looper.freeze(layer) fixes its weights and statistics and turns its dropout off."
            if written is False
            else "Call it in a subclass's `call`, where a flag of its own holds.",
        )


def _written(call: Call) -> bool | None:
    """The flag that a Functional model was built with for this layer, or None."""
    if call.parent is None or not hasattr(call.parent.layer, "operations"):
        return None
    # Keras 3.15 has no public way but `get_config`, which fails for layers that cannot be saved.
    # tests/test_private_names.py fails if the names change.
    nodes = [n for n in getattr(call.layer, "_inbound_nodes", ()) if n.arguments.kwargs.get("training") is not None]
    if not nodes:
        return None
    inside = {id(node) for nodes in call.parent.layer._nodes_by_depth.values() for node in nodes}
    nodes = [node for node in nodes if id(node) in inside]
    # Keras writes a default of the signature into the node too, so it cannot be told from a flag that was given
    default = getattr(inspect.signature(call.layer.call).parameters.get("training"), "default", None)
    found = {node.arguments.kwargs.get("training") for node in nodes} - {None, default}
    return bool(found.pop()) if len(found) == 1 else None


def _deviations(calls: Sequence[Call]) -> Iterator[Call]:
    """The calls at which the flag became another one than outside. Where there was none, a default is no change."""
    for call in calls:
        value, expected = flag(call.value), flag(call.expected)
        if (
            call.origin != "frozen"
            and value != expected
            and "tensor" not in (value, expected)
            and not (expected is None and not value)
        ):
            yield call


def _affected(facts: Facts, call: Call) -> list[Call]:
    """The calls of mode-sensitive layers that ran under this call's flag, itself among them."""
    recorder = facts.training if call.phase == "training" else facts.evaluation
    trains = flag(call.value) is True
    return [
        other
        for other in recorder.calls
        if sensitivity(other.layer) and (flag(other.value) is True) == trains and call in (other, *other.outside)
    ]


def _is_fixed(facts: Facts, layer: Any) -> bool:
    """Whether a layer is frozen, or a module that the step does not train."""
    if isinstance(layer, keras.Layer):
        return is_frozen(layer)
    variables = [id(as_tf(variable)) for variable in layer.trainable_variables]
    return bool(variables) and facts.training.trained.isdisjoint(variables)


def _never_true(facts: Facts) -> set[int]:
    """The ids of mode-sensitive layers that were called in training, and never with True, though not frozen."""
    reached: dict[int, bool] = {}
    for call in facts.training.calls:
        if sensitivity(call.layer):
            reached[id(call.layer)] = reached.get(id(call.layer), False) or flag(call.value) is True
    return {key for key, true in reached.items() if not true}


def _where(call: Call) -> str:
    return "the step" if call.parent is None else call.parent.path


def _work_left_out(call: Call, calls: Sequence[Call]) -> str:
    """Says in words which work of training the calls at and under a call leave out."""
    kinds: dict[str, list[str]] = {}
    for other in calls:
        kinds.setdefault(sensitivity(other.layer), []).append(_name(other, call))
    words = {
        "batch statistics": "no batch statistics in",
        "dropout": "no dropout in",
        "noise": "no noise in",
        "augmentation": "no augmentation in",
    }
    phrases = [f"{words.get(kind, 'inference in')} {listed_paths(paths)}" for kind, paths in kinds.items()]
    return ", ".join(phrases)


def _name(call: Call, outer: Call) -> str:
    return "it" if call is outer else call.path


CHECKS = (tensor_flags, around_the_tape, wrong_in_training, wrong_in_evaluation, against_the_outer_flag)
"""In the order in which findings of one severity are told."""
