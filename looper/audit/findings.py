"""What is wrong, or may be, in what was recorded: one function for each kind of finding."""

import dataclasses
import inspect
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal

import keras
import tensorflow as tf

from looper.audit.record import UNSPECIFIED, Call, Recorder
from looper.audit.sensitivity import drop_rate, sensitivity
from looper.audit.tree import Tree
from looper.freezing import is_lively
from looper.gradients import as_tf

Severity = Literal["error", "warning", "note"]
SEVERITIES: tuple[Severity, ...] = ("error", "warning", "note")


@dataclasses.dataclass(frozen=True)
class Finding:
    """Something to look at.

    Attributes:
        severity: "error": training or evaluation is not what it is written to be; "warning": likely a mistake, right in
            some recipes; "note": good to know.
        kind: which check found it, such as "never-trained".
        path: the layer, variable or method.
        meaning: what is the case, one sentence.
        remedy: what to do, one sentence.
        also: other paths with the same finding.
    """

    severity: Severity
    kind: str
    path: str
    meaning: str
    remedy: str
    also: tuple[str, ...] = ()

    def __str__(self) -> str:
        more = f" (and {len(self.also)} more: {_listed(self.also)})" if self.also else ""
        return f"{self.severity}: {self.path}{more}: {self.meaning} {self.remedy}"


@dataclasses.dataclass
class Facts:
    """What the checks look at.

    Attributes:
        tree: the recipe's layers.
        training: what was recorded of a training step.
        evaluation: the same of an evaluation step, or None if there was none.
        own: the methods that the recipe overrides: "compute_loss", "train_step", "eval_step".
        trainable: the variables that the trainer counts as trainable.
        captured: all variables that the training step uses.
        replica_batch: examples per replica and micro-batch, or None if unknown.
        zero: trainable variables whose gradient was exactly zero on the batch.
        varying: the call whose outputs were the first to differ between two evaluations of one batch, "eval_step" if
            it is not known, or None if they were equal.
        stopped: whether a trace was stopped by a flag given as a tensor.
    """

    tree: Tree
    training: Recorder
    evaluation: Recorder | None
    own: frozenset[str]
    trainable: Sequence[Any]
    captured: Sequence[tf.Variable]
    replica_batch: int | None = None
    zero: Sequence[Any] = ()
    varying: "Call | str | None" = None
    stopped: bool = False

    @property
    def calls(self) -> list[Call]:
        return [*self.training.calls, *(self.evaluation.calls if self.evaluation else [])]


def find(facts: Facts) -> list[Finding]:
    """All findings, the severest first; those of one kind that say the same are put together."""
    found: dict[tuple, list[Finding]] = {}
    for check in CHECKS[:1] if facts.stopped else CHECKS:
        for finding in check(facts):
            found.setdefault((finding.severity, finding.kind, finding.meaning, finding.remedy), []).append(finding)
    merged = []
    for same in found.values():
        paths = list(dict.fromkeys(finding.path for finding in same))
        merged.append(dataclasses.replace(same[0], path=paths[0], also=tuple(paths[1:])))
    return sorted(merged, key=lambda finding: SEVERITIES.index(finding.severity))


def flag(value: Any) -> bool | str | None:
    """A `training` value as True, False, None or "tensor"; numbers count as Python counts them."""
    if value is None or value is UNSPECIFIED:
        return None
    return "tensor" if isinstance(value, tf.Tensor | tf.Variable | keras.Variable) else bool(value)


def _frozen(layer: Any) -> bool:
    return isinstance(layer, keras.Layer) and not layer.trainable


def _affected(facts: Facts, call: Call) -> list[Call]:
    """The calls of mode-sensitive layers that ran under this call's flag, itself among them."""
    recorder = facts.training if call.phase == "training" else facts.evaluation
    trains = flag(call.value) is True
    return [
        other
        for other in recorder.calls
        if sensitivity(other.layer) and (flag(other.value) is True) == trains and _under(other, call)
    ]


def _under(call: Call | None, outer: Call) -> bool:
    while call is not None and call is not outer:
        call = call.parent
    return call is outer


def _never_true(facts: Facts) -> set[int]:
    """The ids of mode-sensitive layers that were called in training, and never with True, though not frozen."""
    reached: dict[int, bool] = {}
    for call in facts.training.calls:
        if sensitivity(call.layer):
            reached[id(call.layer)] = reached.get(id(call.layer), False) or flag(call.value) is True
    return {key for key, true in reached.items() if not true}


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


def _where(call: Call) -> str:
    return "the step" if call.parent is None else call.parent.path


def _wrong_in_training(facts: Facts) -> Iterator[Finding]:
    never = _never_true(facts)
    any_true = any(sensitivity(c.layer) and flag(c.value) is True for c in facts.training.calls)
    for call in _deviations(facts.training.calls):
        affected = [c for c in _affected(facts, call) if id(c.layer) in never]
        if flag(call.value) is False:
            affected = [c for c in affected if not _frozen(c.layer)]  # inference mode is what freezing means
        what = _effect(call, affected)
        if call.given is None:
            yield Finding(
                "error" if affected else "warning",
                "explicit-none",
                call.path,
                f"it is called with training=None in {_where(call)}, which is not unspecified: it and what is called "
                f"after it get None in place of {flag(call.expected)}{what and '; ' + what}.",
                "Pass training=training on, or leave it out.",
            )
        elif not affected:
            continue
        elif call.origin == "caller":
            yield Finding(
                "warning" if any_true else "error",
                "hard-coded",
                call.path,
                f"{_where(call)} calls it with training={call.given!r} in training, whatever the flag outside: {what}.",
                "Pass training=training on; if fixed statistics and no dropout are meant, freeze it: "
                "looper.freeze(layer).",
            )
        elif call.parent is None:
            yield Finding(
                "error",
                "no-flag",
                call.path,
                f"the training step calls it without training=, which Keras takes for inference: {what}.",
                "Call it with training=True, or training=training in compute_loss.",
            )
        elif call.setter is not None:
            yield _leak(call, what)
        else:
            yield Finding(
                "error",
                "never-trained",
                call.path,
                f"it received training={call.value!r} in training: {what}.",
                "Pass training=training on to it.",
            )


def _leak(call: Call, what: str) -> Finding:
    return Finding(
        "error",
        "leaked-flag",
        call.path,
        f"it is called without training=, and got {call.value!r} from the call of {call.setter.path} before: {what}.",
        f"Pass training=training on to it in {_where(call)}.",
    )


def _effect(call: Call, calls: Sequence[Call]) -> str:
    """What calls at and under a call do not do in training, in words."""
    kinds: dict[str, list[str]] = {}
    for other in calls:
        kinds.setdefault(sensitivity(other.layer), []).append(_name(other, call))
    words = {
        "batch statistics": "no batch statistics in",
        "dropout": "no dropout in",
        "noise": "no noise in",
        "augmentation": "no augmentation in",
    }
    parts = [f"{words.get(kind, 'inference in')} {_listed(paths)}" for kind, paths in kinds.items()]
    return ", ".join(parts)


def _name(call: Call, outer: Call) -> str:
    return "it" if call is outer else call.path


def _wrong_in_evaluation(facts: Facts) -> Iterator[Finding]:
    calls = facts.evaluation.calls if facts.evaluation else []
    told = {call.path for call in _deviations(facts.training.calls) if flag(call.value) is None}
    for call in _deviations(calls):
        affected = _affected(facts, call)
        paths = _listed([_name(c, call) for c in affected])
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
            c for c in affected if isinstance(c.layer, keras.layers.BatchNormalization) and not _frozen(c.layer)
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


def _tensor_flags(facts: Facts) -> Iterator[Finding]:
    yield from _tensor_flags_of(facts.calls)


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


def tensor_flag(recorder: Recorder) -> Finding | None:
    """The call with a tensor for a flag that stopped a trace, if that was what stopped it."""
    return next(_tensor_flags_of(recorder.calls), None)


def _against_the_outer_flag(facts: Facts) -> Iterator[Finding]:
    """Functional models that were built with `layer(x, training=False)`."""
    for call in facts.calls:
        written = _written(call)
        if written is None or written == flag(call.value) or flag(call.value) is None:
            continue
        active = [c for c in _affected(facts, call) if flag(c.value) is True]
        moving = [c for c in active if isinstance(c.layer, keras.layers.BatchNormalization) and not _frozen(c.layer)]
        active = [c for c in active if c in moving or not isinstance(c.layer, keras.layers.BatchNormalization)]
        if written is True and call.phase == "evaluation":  # made inactive; nothing trains
            severity, effect = "warning", "nothing in it acts as in training"
        elif not active:
            severity, effect = "note", "nothing in it depends on the flag now"
        else:
            paths = _listed([_name(c, call) for c in active])
            severity = "error" if moving else "warning"
            effect = f"{paths} {'acts' if len(active) == 1 else 'act'} as in training"
        if call.phase == "evaluation" and written is False:
            continue
        yield Finding(
            severity,
            "overridden",
            call.path,
            f"the Functional model {_where(call)} was built with training={written} for it, which Keras "
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
    inside = {id(node) for nodes in call.parent.layer._nodes_by_depth.values() for node in nodes}
    nodes = [node for node in getattr(call.layer, "_inbound_nodes", ()) if id(node) in inside]
    # Keras writes a default of the signature into the node too, so it cannot be told from a flag that was given
    default = getattr(inspect.signature(call.layer.call).parameters.get("training"), "default", None)
    found = {node.arguments.kwargs.get("training") for node in nodes} - {None, default}
    return bool(found.pop()) if len(found) == 1 else None


def _around_the_tape(facts: Facts) -> Iterator[Finding]:
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


def _frozen_but_moving(facts: Facts) -> Iterator[Finding]:
    """Batch normalization whose weights are fixed, and whose statistics move."""
    trained = facts.training.trained
    if not trained:
        return
    for call in facts.training.calls:
        layer = call.layer
        if not isinstance(layer, keras.layers.BatchNormalization) or flag(call.value) is not True or _frozen(layer):
            continue
        weights = [v for v in (layer.gamma, layer.beta) if v is not None]
        around = weights or [
            v for v in getattr(call.parent and call.parent.layer, "weights", ()) if "moving_" not in v.name
        ]
        if around and not any(id(as_tf(v)) in trained for v in around):
            yield Finding(
                "error",
                "frozen-statistics-move",
                call.path,
                "its weights are not trained, but its statistics move: it is called with training=True and its own "
                "`trainable` is True.",
                "looper.freeze(layer), or layer.trainable = False, keeps them; `trainable` of its variables does not.",
            )


def _frozen_dropout(facts: Facts) -> Iterator[Finding]:
    for call in facts.training.calls:
        masking = drop_rate(call.layer) or sensitivity(call.layer) in ("dropout", "noise")
        if masking and _frozen(call.layer) and flag(call.value) is True and not is_lively(call.layer):
            yield Finding(
                "warning",
                "frozen-dropout",
                call.path,
                "it is frozen (trainable=False), and its dropout is still active in training, as Keras has it.",
                "looper.freeze(layer) turns it off; looper.freeze(layer, dropout=True) says that it is meant.",
            )


def _rates(facts: Facts) -> Iterator[Finding]:
    for place in facts.tree.places.values():
        rate = drop_rate(place.thing)
        if rate == 0:
            yield Finding(
                "note", "rate-0", place.path, "its rate is 0, so it does nothing.", "Leave it out, or set one."
            )
        elif rate == 1 and not isinstance(place.thing, keras.layers.GaussianNoise):
            yield Finding(
                "error", "rate-1", place.path, "its rate is 1, so nothing gets through it in training.", "Lower it."
            )


def _single_examples(facts: Facts) -> Iterator[Finding]:
    if facts.replica_batch != 1:
        return
    for call in facts.training.calls:
        layer = call.layer
        if not isinstance(layer, keras.layers.BatchNormalization) or flag(call.value) is not True or _frozen(layer):
            continue
        sizes = [] if call.shape is None or call.shape.rank is None else list(call.shape)
        axis = layer.axis if layer.axis >= 0 else layer.axis + len(sizes)
        others = [size for i, size in enumerate(sizes) if i not in (0, axis)]
        alone = bool(sizes) and all(size == 1 for size in others)
        synchronized = " (over the replicas, if synchronized)" if layer.synchronized else ""
        yield Finding(
            "error" if alone and not layer.synchronized else "warning",
            "statistics-of-one",
            call.path,
            f"a replica's batch has one example{synchronized}"
            + (", whose normalized value is always 0." if alone else ": its statistics are that example's own."),
            "Take a larger batch, fewer replicas or micro-batches, or another normalization (Layer, Group).",
        )


def _half_precision(facts: Facts) -> Iterator[Finding]:
    for call in facts.training.calls:
        makes = ("float16", "Softmax") in call.outputs or ("float16", "LogSoftmax") in call.outputs
        inside_keras = call.parent is not None and type(call.parent.layer).__module__.startswith("keras.src.layers")
        activation = getattr(call.layer, "activation", None)
        if activation is keras.activations.softmax and getattr(call.layer, "compute_dtype", "") == "float16":
            makes = True
        if makes and not inside_keras:
            yield Finding(
                "warning",
                "float16-softmax",
                call.path,
                "it computes a softmax in float16, which loses small probabilities.",
                'Give the layer dtype="float32", or take the loss from_logits=True.',
            )
    if "float16" in facts.training.loss_dtypes:
        yield Finding(
            "error",
            "float16-loss",
            "train_step" if "train_step" in facts.own else "compute_loss",
            "the loss is computed in float16, whose largest number is 65,504.",
            'Cast to float32 before the loss, and give loss objects no dtype="float16".',
        )


def _changed_by_evaluation(facts: Facts) -> Iterator[Finding]:
    if facts.evaluation is None:
        return
    for call in facts.evaluation.calls:
        if isinstance(call.layer, keras.layers.BatchNormalization) and flag(call.value) is True:
            continue  # already said
        for variable in call.assigned:
            yield from _changed(facts, variable, call.path)
    for variable in facts.evaluation.assigned:
        yield from _changed(facts, variable, "eval_step")


def _changed(facts: Facts, variable: Any, by: str) -> Iterator[Finding]:
    name = facts.tree.name(variable)
    if name is None or _is_seed(variable) or isinstance(facts.tree.owner(variable), keras.Metric):
        return
    trains = getattr(variable, "trainable", False)
    yield Finding(
        "error" if trains else "warning",
        "changed-by-evaluation",
        name,
        f"evaluation assigns to it (in {by}), so that a run depends on when it was evaluated.",
        "Assign under `if training:`." if by != "eval_step" else "Leave that to train_step.",
    )


def _is_seed(variable: Any) -> bool:
    return variable.name.split(":")[0].split("/")[-1].startswith("seed_generator_state")


def _varies(facts: Facts) -> Iterator[Finding]:
    """Evaluations that give other results the second time; what was found before is not said again."""
    told = {id(c.layer) for c in (facts.evaluation.calls if facts.evaluation else []) if flag(c.value) is True}
    drawing = [
        c
        for c in (facts.evaluation.calls if facts.evaluation else [])
        # Keras' recurrent layers draw masks in evaluation that they do not use
        if any(_is_seed(v) for v in c.assigned) and not type(c.layer).__module__.startswith("keras.")
    ]
    path = None
    if isinstance(facts.varying, Call):
        path = None if id(facts.varying.layer) in told else facts.varying.path
    elif facts.varying is not None:
        path = facts.varying
    elif drawing:
        path = next((c.path for c in drawing if id(c.layer) not in told), None)
    if path is not None:
        measured = "two evaluations of one batch differed" if facts.varying else "it draws random numbers in evaluation"
        yield Finding(
            "warning",
            "evaluation-varies",
            path,
            f"{measured}; a comparison of two evaluations compares the draws too.",
            "Draw under `if training:`, or with a fixed seed, unless it is meant.",
        )


def _gradients(facts: Facts) -> Iterator[Finding]:
    outside = {finding.path for finding in _around_the_tape(facts)}
    for variable in facts.training.missing:
        name = facts.tree.name(as_tf(variable)) or variable.name
        if not any(name.startswith(f"{path}/") for path in outside):
            yield Finding(
                "error",
                "no-gradient",
                name,
                "it is trainable, and the loss does not depend on it.",
                "Set layer.trainable = False, or use it, or give minimize(variables=...) what it trains.",
            )
    for variable in facts.zero:
        yield Finding(
            "warning",
            "zero-gradient",
            facts.tree.name(as_tf(variable)) or variable.name,
            "its gradient is exactly zero on this batch.",
            "Look for a dead activation, a zero factor after it, or tf.stop_gradient.",
        )


def _unowned(facts: Facts) -> Iterator[Finding]:
    updated = facts.training.trained | {id(v) for v in facts.training.assigned}
    updated |= {id(as_tf(v)) for v in facts.training.missing}
    names = {facts.tree.name(v) for v in facts.training.assigned} - {None}
    for variable in facts.trainable:
        name = facts.tree.name(as_tf(variable)) or variable.name
        if id(as_tf(variable)) not in updated and name not in names:
            yield Finding(
                "warning",
                "no-optimizer",
                name,
                "it is trainable, and the training step does not update it.",
                "Give it to minimize(variables=...), or set layer.trainable = False.",
            )
    for variable in facts.captured:
        if id(variable) in facts.tree.untracked and variable.trainable:
            yield Finding(
                "error",
                "no-optimizer",
                facts.tree.name(variable),
                f"it is a tf.Variable in a Keras layer, which Keras {keras.__version__} does not track: it is neither "
                "trained nor saved.",
                "Make it with self.add_weight(...).",
            )


def _unused(facts: Facts) -> Iterator[Finding]:
    called = {id(call.layer) for call in facts.calls}
    for place in facts.tree.places.values():
        if id(place.thing) not in called and sensitivity(place.thing):
            yield Finding(
                "note",
                "never-called",
                place.path,
                "it depends on `training`, and no step was seen to call it.",
                "Leave it out; or it is called in a tf.function of its own, which hides it.",
            )


def _listed(paths: Sequence[str]) -> str:
    paths = list(dict.fromkeys(paths))
    shown = ", ".join(paths[:3])
    return f"{shown} and {len(paths) - 3} more" if len(paths) > 3 else shown


CHECKS: tuple[Callable[[Facts], Iterator[Finding]], ...] = (
    _tensor_flags,
    _around_the_tape,
    _wrong_in_training,
    _wrong_in_evaluation,
    _against_the_outer_flag,
    _frozen_but_moving,
    _frozen_dropout,
    _changed_by_evaluation,
    _varies,
    _gradients,
    _unowned,
    _rates,
    _single_examples,
    _half_precision,
    _unused,
)
