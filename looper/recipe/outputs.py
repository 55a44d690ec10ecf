"""Which loss, metric, target and weight belongs to which output of a model, by the rules of Keras' `compile`.

A model returns a tensor, or several in a dict, a list or a nest of them. Losses, metrics, targets and weights are
given for all outputs at once, in the outputs' structure, as a flat list in their order, or as a dict by their names.
"""

import numbers
from collections.abc import Mapping, Sequence
from typing import Any

import keras
import tensorflow as tf

from looper.base.errors import InputError, nearest
from looper.recipe import losses


def named(outputs: Any, names: Sequence[str] | None = None) -> dict[str, Any]:
    """A model's outputs by name, in order; one output alone is called "".

    Args:
        outputs: what the model returned.
        names: what a functional model calls its outputs (`model.output_names`), or None.

    Example:
        >>> list(named({"box": 1.0, "scores": [2.0, 3.0]})), list(named([1.0, 2.0], ["a", "b"]))
        (['box', 'scores/0', 'scores/1'], ['a', 'b'])
    """
    if not _is_nest(outputs):
        return {"": outputs}
    flat = _flat(outputs)
    if isinstance(outputs, list | tuple) and not any(_is_nest(x) for x in outputs):
        called = names if names is not None and len(names) == len(flat) else [f"output_{i}" for i in range(len(flat))]
        return dict(zip(called, flat.values(), strict=True))
    return flat


def by_output(what: str, given: Any, names: Sequence[str], *, shared: bool = False) -> list[Any]:
    """One entry for each output: None where nothing is given for it.

    Args:
        what: what to call it in an error.
        given: a dict by (some of) the names, a list in their order, the outputs' structure, or one thing.
        names: the outputs' names.
        shared: whether one thing alone is meant for every output.

    Raises:
        InputError: if it does not fit the outputs.

    Example:
        >>> by_output("loss", {"b": "mse"}, ["a", "b"])
        [None, 'mse']
        >>> by_output("loss", "mse", ["a", "b"], shared=True)
        ['mse', 'mse']
    """
    count = len(names)
    if given is None:
        return [None] * count
    listed = f"one of each output {', '.join(map(repr, names))}" if count > 1 else "one, for the model's only output"
    if isinstance(given, Mapping):
        entries = _flat(given, until=names)
        if names == [""] and len(entries) == 1:
            return list(entries.values())
        unknown = [name for name in entries if name not in names]
        if unknown:
            raise InputError(
                f"{what} has the name {unknown[0]!r}, which no output has: {nearest(unknown[0], filter(None, names))}."
                if count > 1
                else f"{what} has the names {', '.join(map(repr, entries))}; expected {listed}."
            )
        return [entries.get(name) for name in names]
    if isinstance(given, list | tuple):
        if len(given) == count:
            return list(given)
        leaves = list(_flat(given).values())
        if len(leaves) == count:
            return leaves
        raise InputError(f"{what} has {len(given)} entries; expected {listed}.")
    if shared or count == 1:
        return [given] * count
    raise InputError(f"{what} is one thing; expected {listed}.")


def total_loss(
    loss: Any, loss_weights: Any, y: Any, outputs: dict[str, Any], sample_weight: Any, examples: tf.Tensor
) -> losses.Loss:
    """The sum over the outputs of their losses, each times its `loss_weights`.

    Args:
        loss: Keras losses by output, as `losses.resolve` returns them; several for an output are added up.
        loss_weights: factors in the losses' structure, or None.
        y: targets by output.
        outputs: as `named` returns them.
        sample_weight: weights by output, one for all, or None.
        examples: int scalar, the number of examples of this replica's batch.

    Returns:
        A loss whose `logs` hold the single ones as `NAME_loss`, without their weights, if there are several.

    Raises:
        InputError: if something does not fit the outputs, or an output with a loss has no targets.
    """
    names = list(outputs)
    for factor in _leaves(loss_weights):
        if not isinstance(factor, numbers.Real | tf.Tensor | tf.Variable):
            raise InputError(f"loss_weights has {factor!r}; expected numbers.")
    per_output = _lists("loss", loss, names)
    factors = _lists("loss_weights", loss_weights, names)
    targets = _targets(y, names, [bool(found) for found in per_output])
    weights = by_output("sample_weight", sample_weight, names, shared=True)
    several = sum(map(len, per_output)) > 1
    total: losses.Loss | None = None
    logs: dict[str, losses.Loss] = {}
    for name, found, scales, target, weight in zip(names, per_output, factors, targets, weights, strict=True):
        if len(scales) not in (0, 1, len(found)):
            raise InputError(f"loss_weights has {len(scales)} entries for {len(found)} losses: give one for each.")
        scales = scales * len(found) if len(scales) == 1 else scales or [None] * len(found)
        for one, scale in zip(found, scales, strict=True):
            one = losses.for_shapes(one, target, outputs[name])
            term = losses.keras_term(one, target, outputs[name], weight, examples)
            alone = losses.Loss((term,), examples)
            key = "_".join(filter(None, [name, one.name if len(found) > 1 else "", "loss"]))
            if several:
                logs[key] = alone
            scaled = alone if scale is None else alone * scale
            total = scaled if total is None else total + scaled
    total = losses.Loss((), examples) if total is None else total
    return losses.Loss(total.terms, examples, logs, partial=not all(per_output))


def _targets(y: Any, names: Sequence[str], wanted: Sequence[bool]) -> list[Any]:
    """The targets of each output; a flat list may leave out the outputs without a loss."""
    if names == [""]:
        return [y]  # whatever the loss takes
    if not _is_nest(y) and sum(wanted) == 1:
        y = [y]
    if isinstance(y, list | tuple) and len(y) == sum(wanted) != len(names):
        given = iter(y)
        y = [next(given) if want else None for want in wanted]
    targets = by_output("y", y, names)
    for name, target, want in zip(names, targets, wanted, strict=True):
        if want and target is None:
            raise InputError(f"the output {name!r} has a loss but no targets: give y an entry for it.")
    return targets


def _lists(what: str, given: Any, names: Sequence[str]) -> list[list[Any]]:
    """For each output a list, from one thing, a list or None for each; several for an only output are its own."""
    if len(names) == 1 and isinstance(given, list | tuple):
        entries = [given]
    else:
        entries = by_output(what, given, names, shared=what != "metrics")
    return [[x for x in (e if isinstance(e, list | tuple) else [e]) if x is not None] for e in entries]


class OutputMetrics:
    """Keras metrics by output, named as `compile` names them: with the output's name before them, if it has one.

    Attributes:
        metrics: all of them.
        given: `metrics` and `weighted_metrics` by these names, as they were given.

    Args:
        metrics: metric objects; for several outputs in a dict or a list with one entry (or list of them) for each.
        weighted: the same, for metrics that take the sample weights.
    """

    def __init__(self, metrics: Any, weighted: Any) -> None:
        self.given = {"metrics": metrics, "weighted_metrics": weighted}
        self.metrics = [m for given in self.given.values() for m in _leaves(given)]
        self._names: dict[int, str] = {}

    def update(self, y: Any, outputs: dict[str, Any], sample_weight: Any) -> None:
        """Takes a batch into account. Arguments as for `total_loss`.

        Raises:
            InputError: if metrics, targets or weights do not fit the outputs.
        """
        if not self.metrics:
            return
        names = list(outputs)
        per_output = {what: _lists_of_metrics(what, given, names) for what, given in self.given.items()}
        wanted = [any(found[i] for found in per_output.values()) for i in range(len(names))]
        targets = _targets(y, names, wanted)
        weights = by_output("sample_weight", sample_weight, names, shared=True)
        self._names = {}
        for what, found in per_output.items():
            for name, metrics, target, weight in zip(names, found, targets, weights, strict=True):
                target, predicted, weight = losses.flat_ragged(target, outputs[name], weight)
                for metric in metrics:
                    self._name(metric, name, what)
                    metric.update_state(target, predicted, weight if what == "weighted_metrics" else None)

    def by_name(self) -> dict[str, keras.Metric]:
        """The metrics by the names of their results."""
        return {self.name(metric): metric for metric in self.metrics}

    def name(self, metric: keras.Metric) -> str:
        """The names that a metric's result is logged under; its own name before the first update."""
        return self._names.get(id(metric), metric.name)

    def _name(self, metric: keras.Metric, output: str, what: str) -> None:
        prefix = f"{output}_" if output else ""
        name, number = prefix + metric.name, 0
        if name in self._names.values() and what == "weighted_metrics":
            name = f"{prefix}weighted_{metric.name}"
        base = name
        while name in self._names.values():
            number += 1
            name = f"{base}_{number}"
        self._names[id(metric)] = name


def resolve_metrics(given: Any, y: Any = None, outputs: dict[str, Any] | None = None) -> Any:
    """Metrics with Keras' names and functions replaced by metric objects; the structure stays.

    Args:
        given: metric objects, names, functions `f(y_true, y_pred)`; alone, or in lists and dicts.
        y: the targets' specs by output, for "accuracy", which depends on their shapes.
        outputs: the outputs' specs, as `named` returns them.

    Raises:
        InputError: if something in it is none of these.

    Example:
        >>> [metric.name for metric in resolve_metrics(["mae", keras.metrics.AUC(name="auc")])]
        ['mae', 'auc']
    """
    if isinstance(given, Mapping):
        ys = y if isinstance(y, Mapping) else dict.fromkeys(given, y)
        return {key: resolve_metrics(item, ys.get(key), _only(outputs, key)) for key, item in given.items()}
    if isinstance(given, list | tuple):
        several = outputs is not None and len(outputs) > 1 and len(given) == len(outputs)
        if several:
            triples = zip(given, by_output("y", y, list(outputs)), outputs, strict=True)
            return [resolve_metrics(item, target, _only(outputs, key)) for item, target, key in triples]
        return [resolve_metrics(item, y, outputs) for item in given]
    if given is None or isinstance(given, keras.Metric):
        return given
    return _metric(given, y, None if outputs is None else next(iter(outputs.values()), None))


def needs_shapes(given: Any) -> bool:
    """Whether `resolve_metrics` needs the specs: "accuracy" is another metric for each kind of target."""
    return any(isinstance(leaf, str) and leaf.lower() in ("accuracy", "acc") for leaf in _leaves(given))


def _metric(given: Any, y: Any, output: Any) -> keras.Metric:
    expected = "expected Keras metrics, such as keras.metrics.SparseCategoricalAccuracy('accuracy')"
    if isinstance(given, str) and given.lower() in ("accuracy", "acc"):
        if y is None or output is None:
            raise InputError(f"metrics: {given!r} needs batches (x, y) and a Keras model to look at: {expected}.")
        return getattr(keras.metrics, losses.kind_of_targets(y, output) + "Accuracy")(name=given)
    try:
        found = keras.metrics.get(given)
    except (ValueError, TypeError):
        found = None
    if isinstance(found, type) or not (isinstance(found, keras.Metric) or callable(found)):
        raise InputError(f"metrics: {given!r} is {type(given).__name__}; {expected}.")
    if not isinstance(found, keras.Metric):
        found = keras.metrics.MeanMetricWrapper(found, name=getattr(found, "__name__", "metric"))
    if isinstance(given, str):
        found.name = given
    return found


def _lists_of_metrics(what: str, given: Any, names: Sequence[str]) -> list[list[keras.Metric]]:
    if len(names) == 1:
        return [_leaves(given)]
    return [_leaves(entry) for entry in by_output(what, given or None, names)]


def _only(outputs: dict[str, Any] | None, name: str) -> dict[str, Any] | None:
    return None if outputs is None or name not in outputs else {name: outputs[name]}


def _leaves(given: Any) -> list[Any]:
    return [leaf for leaf in _flat(given).values() if leaf is not None]


def _is_nest(thing: Any) -> bool:
    return isinstance(thing, Mapping | list | tuple)


def _flat(thing: Any, prefix: str = "", until: Sequence[str] = ()) -> dict[str, Any]:
    """Leaves by path, "/" between keys; what is called by one of `until` is left whole."""
    if not _is_nest(thing) or (prefix in until and prefix):
        return {prefix: thing}
    items = thing.items() if isinstance(thing, Mapping) else enumerate(thing)
    found: dict[str, Any] = {}
    for key, item in items:
        found |= _flat(item, f"{prefix}/{key}" if prefix else str(key), until)
    return found
