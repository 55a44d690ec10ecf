"""The checks of what steps do beside the flag: variables, gradients, random draws, number formats."""

from collections.abc import Iterator
from typing import Any

import keras

from looper.audit.facts import Facts, Finding, Severity, flag, is_frozen
from looper.audit.flag_checks import around_the_tape
from looper.audit.record import Call
from looper.audit.sensitivity import drop_rate, sensitivity
from looper.base.names import as_tf
from looper.recipe.freezing import drops_though_frozen


def against_the_flag(facts: Facts) -> Iterator[Finding]:
    """Dropout layers, such as subclasses of Keras', that do not do what their flag says."""
    for call in facts.calls:
        if id(call) not in facts.dropped:
            continue
        share, elements = facts.dropped[id(call)]
        told = flag(call.value) is True
        # with 20 elements to drop on average, none at all has a chance of e**-20
        if (told and not share and elements * call.layer.rate > 20) or (not told and share):
            yield Finding(
                "error",
                "against-the-flag",
                call.path,
                f"it received {flag(call.value)} in {call.phase}, and dropped {share:.0%}.",
                "Look at how its `call` uses `training`.",
            )


def frozen_but_moving(facts: Facts) -> Iterator[Finding]:
    """Batch normalization whose weights are fixed, and whose statistics move."""
    trained, missing = facts.training.trained, {id(as_tf(v)) for v in facts.training.missing}
    if not trained:
        return
    for call in facts.training.calls:
        layer = call.layer
        if not isinstance(layer, keras.layers.BatchNormalization) or flag(call.value) is not True or is_frozen(layer):
            continue
        weights = [v for v in (layer.gamma, layer.beta) if v is not None]
        if missing.intersection(id(as_tf(v)) for v in weights):
            continue  # to be trained, but for a fault that is told of by itself
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


def frozen_dropout(facts: Facts) -> Iterator[Finding]:
    """Frozen layers whose dropout is on."""
    for call in facts.training.calls:
        masking = drop_rate(call.layer) or sensitivity(call.layer) in ("dropout", "noise")
        if masking and is_frozen(call.layer) and flag(call.value) is True and not drops_though_frozen(call.layer):
            yield Finding(
                "warning",
                "frozen-dropout",
                call.path,
                "it is frozen (trainable=False), and its dropout is still active in training, as Keras has it.",
                "looper.freeze(layer) turns it off; looper.freeze(layer, dropout=True) says that it is meant.",
            )


def _makes_half_softmax(call: Call) -> bool:
    activation = getattr(call.layer, "activation", None)
    own = activation is keras.activations.softmax and getattr(call.layer, "compute_dtype", "") == "float16"
    return own or not {("float16", "Softmax"), ("float16", "LogSoftmax")}.isdisjoint(call.outputs)


def changed_by_evaluation(facts: Facts) -> Iterator[Finding]:
    """Variables that an evaluation step assigns to."""
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


def varies(facts: Facts) -> Iterator[Finding]:
    """Evaluations that give other results the second time; what was found before is not said again."""
    told = {id(c.layer) for c in (facts.evaluation.calls if facts.evaluation else []) if flag(c.value) is True}
    drawing = [
        c
        for c in (facts.evaluation.calls if facts.evaluation else [])
        # Keras' recurrent layers draw masks in evaluation that they do not use
        if any(_is_seed(v) for v in c.assigned) and not type(c.layer).__module__.startswith("keras.")
    ]
    path = None
    changed = [finding.path for finding in changed_by_evaluation(facts) if finding.severity == "error"]
    if isinstance(facts.varying, Call) and any(name.startswith(f"{facts.varying.path}/") for name in changed):
        return  # the weights are others the second time
    if isinstance(facts.varying, Call):
        path = None if id(facts.varying.layer) in told else facts.varying.path
    elif facts.varying is not None:
        path = facts.varying
    elif drawing:
        path = next((c.path for c in drawing if id(c.layer) not in told), None)
    if path is not None:
        measured = (
            "two evaluations of one batch differed here" if facts.varying else "it draws random numbers in evaluation"
        )
        yield Finding(
            "warning",
            "evaluation-varies",
            path,
            f"{measured}, so the numbers of an evaluation are partly chance.",
            "Draw under `if training:`, or with a fixed seed, unless it is meant.",
        )


def gradients(facts: Facts) -> Iterator[Finding]:
    """Trainable variables without a gradient, or with one of zeros."""
    outside = {finding.path for finding in around_the_tape(facts)}
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
        name = facts.tree.name(as_tf(variable)) or variable.name
        kernel = _with_a_gradient_beside(variable, name, facts)
        severity: Severity = "warning"
        meaning = "its gradient is exactly zero on this batch."
        remedy = "Look for a dead activation, a zero factor after it, or tf.stop_gradient."
        if kernel is not None:
            severity = "note"
            meaning = (
                f"its gradient is exactly zero on this batch, and that of {kernel} is not: what it adds to all outputs "
                "alike cancels in the loss, as that of the last layer of a critic does."
            )
            remedy = "Nothing is wrong if that is meant; use_bias=False leaves it out."
        yield Finding(severity, "zero-gradient", name, meaning, remedy)


def _with_a_gradient_beside(variable: Any, name: str, facts: Facts) -> str | None:
    """Of a bias: a variable of more axes in the same layer that has a gradient, or None."""
    zero = {id(v) for v in facts.zero}
    owner, _, own = name.rpartition("/")
    if not own.endswith(("bias", "beta")):
        return None
    for other in facts.trainable:
        if id(other) in zero or id(as_tf(other)) not in facts.training.trained:
            continue
        beside = facts.tree.name(as_tf(other)) or other.name
        if beside.rpartition("/")[0] == owner and len(other.shape) > len(variable.shape):
            return beside
    return None


def unowned(facts: Facts) -> Iterator[Finding]:
    """Trainable variables that the training step does not update."""
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


def rates(facts: Facts) -> Iterator[Finding]:
    """Dropout that does nothing, or lets nothing through."""
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


def single_examples(facts: Facts) -> Iterator[Finding]:
    """Batch normalization over one example."""
    if facts.replica_batch != 1:
        return
    for call in facts.training.calls:
        layer = call.layer
        if not isinstance(layer, keras.layers.BatchNormalization) or flag(call.value) is not True or is_frozen(layer):
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


def half_precision(facts: Facts) -> Iterator[Finding]:
    """Softmax and losses in float16."""
    making = [call for call in facts.training.calls if _makes_half_softmax(call)]
    around = {id(outer) for call in making for outer in call.outside}  # which have the same output
    for call in making:
        inside_keras = call.parent is not None and type(call.parent.layer).__module__.startswith("keras.src.layers")
        if id(call) not in around and not inside_keras:
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


def idle_metrics(facts: Facts) -> Iterator[Finding]:
    """Metrics that the steps of training, of evaluation, or of both do not update."""
    in_training, in_evaluation = (facts.idle_metrics.get(phase, ()) for phase in ("training", "evaluation"))
    for metric in dict.fromkeys([*in_training, *in_evaluation]):
        idle = [metric in in_training, metric in in_evaluation]
        yield Finding(
            "warning" if all(idle) else "note",
            "metric-not-updated",
            metric.name,
            f"no step of {'training' if idle[0] else 'evaluation'}{' or evaluation' if all(idle) else ''} updates this "
            "metric, so that it is left out of their logs.",
            f"Call its update_state() in {' or '.join(sorted(facts.own))}.",
        )


def undriven(facts: Facts) -> Iterator[Finding]:
    """Random operations of a training step whose state is in no variable, and so in no checkpoint."""
    for line in facts.training.draws:
        yield Finding(
            "warning",
            "undriven-random",
            line,
            "it draws random numbers that no variable drives, so that a continued run draws those of its beginning "
            "again.",
            "Set self.noise = keras.random.SeedGenerator(0) in build, and draw with keras.random, such as "
            "keras.random.normal(shape, seed=self.noise).",
        )


def constant(facts: Facts) -> Iterator[Finding]:
    """Draws of a training step that are the same in each step."""
    for line in facts.training.constants:
        yield Finding(
            "note",
            "constant-random",
            line,
            "it draws with a number as the seed, which gives the same numbers in each step, on each replica.",
            "Unless that is meant, set self.noise = keras.random.SeedGenerator(0) in build, and draw with "
            "seed=self.noise.",
        )


def without_evaluation(facts: Facts) -> Iterator[Finding]:
    """Says that an evaluation step could not be looked at."""
    if facts.not_evaluated:
        yield Finding(
            "note",
            "not-evaluated",
            "eval_step",
            f"training alone was looked at: a training batch cannot be evaluated ({facts.not_evaluated.rstrip('.')}).",
            "Override eval_step(self, batch), and eval_data() where it takes other batches.",
        )


def unused(facts: Facts) -> Iterator[Finding]:
    """Mode-sensitive layers that no step calls."""
    called = {id(call.layer) for call in facts.calls}
    for place in facts.tree.places.values():
        inside_keras = place.parent is not None and type(place.parent).__module__.startswith("keras.src.layers")
        if id(place.thing) not in called and sensitivity(place.thing) and not inside_keras:
            yield Finding(
                "note",
                "never-called",
                place.path,
                "it depends on `training`, and no step was seen to call it.",
                "Leave it out; or it is called in a tf.function of its own, which hides it.",
            )


CHECKS = (
    against_the_flag, frozen_but_moving, frozen_dropout, changed_by_evaluation, varies, gradients, unowned, rates,
    single_examples, half_precision, idle_metrics, undriven, constant, without_evaluation, unused,
)  # fmt: skip
"""In the order in which findings of one severity are told."""
