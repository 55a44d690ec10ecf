"""The result of an audit, as a table, as JSON and as Markdown."""

import dataclasses
import itertools
import json
from collections.abc import Mapping, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from looper.audit.facts import SEVERITIES, Finding, flag
from looper.audit.record import UNSPECIFIED, Call
from looper.audit.sensitivity import sensitivity


@dataclasses.dataclass(frozen=True)
class Row:
    """One layer, as the table and the JSON show it.

    Attributes:
        path: its place among the trainer's attributes.
        kind: its class.
        depth: how deep it was called.
        training, evaluation: the `training` values that it received, one for each different call: (value, source); the
            source is "passed on", "context", "default", "hard-coded", "leaked" or "frozen"; empty if it was not called.
        sensitive: what of it depends on `training`, or None.
        trainable: whether it, or what it holds, has variables to train; None if it has no weights.
        in_training, in_evaluation: what it did.
    """

    path: str
    kind: str
    depth: int
    training: tuple[tuple[bool | str | None, str], ...]
    evaluation: tuple[tuple[bool | str | None, str], ...]
    sensitive: str | None
    trainable: bool | None
    in_training: str
    in_evaluation: str

    @property
    def pattern(self) -> tuple:
        """Equal for rows that are alike, apart from their names and numbers."""
        words = ["".join(c for c in text if not c.isdigit()) for text in (self.in_training, self.in_evaluation)]
        return self.kind, self.depth, self.training, self.evaluation, self.trainable, *words


@dataclasses.dataclass(frozen=True, repr=False)
class Report:
    """The result of `Trainer.audit`.

    Attributes:
        rows: the layers in the order of their first call.
        findings: what to look at, the severest first.

    Example:
        >>> report = Report((), ())
        >>> report.ok, str(report)
        (True, 'No findings.')
    """

    rows: tuple[Row, ...]
    findings: tuple[Finding, ...]

    @property
    def ok(self) -> bool:
        """Whether there is no finding of severity "error"."""
        return not any(finding.severity == "error" for finding in self.findings)

    def __repr__(self) -> str:
        return str(self)

    def __str__(self) -> str:
        return "\n\n".join(filter(None, [self.table(), listed(self.findings) or "No findings."]))

    def table(self, fold: bool = True) -> str:
        """The layers, aligned; `fold` shows blocks that repeat once."""
        if not self.rows:
            return ""
        lines: list[tuple[str, ...]] = [HEADINGS]
        for row, note in folded(self.rows) if fold else [(row, "") for row in self.rows]:
            lines.append(("  " * row.depth + note, "", "", "", "", "", "") if note else _cells(row))
        widths = [max(len(line[i]) for line in lines if line[1]) for i in range(len(HEADINGS))]  # notes run over
        return "\n".join(
            "  ".join(cell.ljust(w) for cell, w in zip(line, widths, strict=True)).rstrip() for line in lines
        )

    def json(self) -> str:
        """Everything, as a JSON document."""
        content = {
            "versions": {"tensorflow": tf.__version__, "keras": keras.__version__},
            "findings": [dataclasses.asdict(finding) for finding in self.findings],
            "layers": [dataclasses.asdict(row) for row in self.rows],
        }
        return json.dumps(content, indent=1)

    def markdown(self) -> str:
        """The findings and the table in Markdown, for TensorBoard's text."""
        indented = "\n".join("    " + line for line in self.table().splitlines())
        return f"{_bullets(self.findings)}\n\n{indented}"


Effect = tuple[str, float | None]
"""The effect of a call: a verb, and the share of the elements that it was done to, if that was measured."""

HEADINGS = ("layer", "class", "training", "evaluation", "trainable", "did in training", "did in evaluation")


def listed(findings: Sequence[Finding]) -> str:
    """Findings as lines for a terminal, the remedy under each."""
    lines = []
    for finding in findings:
        more = f" and {len(finding.also)} more" if finding.also else ""
        lines.append(f"{finding.severity:<8}{finding.path}{more} [{finding.kind}]")
        lines.append(f"        {finding.meaning}")
        lines.append(f"        -> {finding.remedy}")
    return "\n".join(lines)


def _bullets(findings: Sequence[Finding]) -> str:
    if not findings:
        return "No findings."
    return "\n".join(f"- **{f.severity}** `{f.path}` ({f.kind}): {f.meaning} {f.remedy}" for f in findings)


def counted(findings: Sequence[Finding]) -> str:
    """How many findings there are, in words.

    Example:
        >>> counted([Finding("error", "rate-1", "model/dropout", "", "")])
        '1 error'
    """
    counts = [(sum(f.severity == severity for f in findings), severity) for severity in SEVERITIES]
    return ", ".join(f"{count} {severity}{'s' if count > 1 else ''}" for count, severity in counts if count)


def _cells(row: Row) -> tuple[str, ...]:
    name = row.path.rpartition("/")[2] if row.depth else row.path
    trainable = {True: "yes", False: "no", None: ""}[row.trainable]
    values = [_values(row.training), _values(row.evaluation)]
    return "  " * row.depth + name, row.kind, *values, trainable, row.in_training, row.in_evaluation


def _values(values: Sequence[tuple[Any, str]]) -> str:
    return ", ".join(f"{value} ({source})" for value, source in values) or "not called"


def folded(rows: Sequence[Row]) -> list[tuple[Row, str]]:
    """Rows with a note in place of blocks that repeat the one before: (row, ""), or (first row left out, note)."""
    result: list[tuple[Row, str]] = []
    i = 0
    while i < len(rows):
        period, repeats = _repetition(rows, i)
        if not repeats:
            result.append((rows[i], ""))
            i += 1
            continue
        result += [(row, "") for row in rows[i : i + period]]
        first = rows[i + period]
        last = rows[i + period * (repeats + 1) - 1]
        names = f"{_name(first)} to {_name(last)}" if first is not last else _name(first)
        what = f"the same {period} layers" if period > 1 else "the same"
        times = "once" if repeats == 1 else f"{repeats} times"
        result.append((first, f"... {what} {times} more: {names}"))
        i += period * (repeats + 1)
    return result


def _name(row: Row) -> str:
    return row.path.rpartition("/")[2]


def _repetition(rows: Sequence[Row], start: int, longest: int = 60) -> tuple[int, int]:
    """The length of the block at `start` that repeats, and how often it does after itself, where that saves most."""
    best = (0, 0)
    patterns = [row.pattern for row in rows[start:]]
    for period in range(1, min(longest, len(patterns) // 2) + 1):
        if min(row.depth for row in rows[start : start + period]) < rows[start].depth:
            break  # a block does not end inside what surrounds it
        repeats = 0
        while patterns[:period] == patterns[period * (repeats + 1) : period * (repeats + 2)]:
            repeats += 1
        if period * repeats > max(1, best[0] * best[1]):
            best = (period, repeats)
    return best


def rows_of(training: Sequence[Call], evaluation: Sequence[Call], done: Mapping[int, Effect]) -> tuple[Row, ...]:
    """A row for each layer that was called.

    Args:
        training, evaluation: the calls of both steps.
        done: what was measured of a call, by its `id`; what was recorded is used for others.
    """
    by_path: dict[str, tuple[list[Call], list[Call]]] = {}
    for i, calls in enumerate((training, evaluation)):
        for call in calls:
            by_path.setdefault(call.path, ([], []))[i].append(call)
    twins = itertools.chain(*(zip(trained, evaluated, strict=False) for trained, evaluated in by_path.values()))
    fixed = {id(call) for pair in twins if _hard_coded(*pair) for call in pair}
    rows = []
    for path, (trained, evaluated) in by_path.items():
        call = (trained or evaluated)[0]
        rows.append(
            Row(
                path=path,
                kind=type(call.layer).__name__,
                depth=len(list(call.outside)),
                training=_sources(trained, fixed),
                evaluation=_sources(evaluated, fixed),
                sensitive=sensitivity(call.layer),
                trainable=_trainable(call.layer),
                in_training=_effects(trained, done),
                in_evaluation=_effects(evaluated, done),
            )
        )
    return tuple(rows)


def _trainable(layer: Any) -> bool | None:
    if layer.trainable_variables:
        return True
    weights = layer.weights if isinstance(layer, keras.Layer) else layer.variables
    return False if weights else None


def _hard_coded(one: Call, other: Call) -> bool:
    """Whether the caller gives a call of training and its twin in evaluation the same flag, though its own differs."""
    given = one.given is not UNSPECIFIED and other.given is not UNSPECIFIED
    given = given and None not in (flag(one.expected), flag(other.expected))
    return given and flag(one.given) == flag(other.given) and flag(one.expected) != flag(other.expected)


def _sources(calls: Sequence[Call], fixed: set[int]) -> tuple[tuple[bool | str | None, str], ...]:
    found = []
    for call in calls:
        value = flag(call.value)
        differs = value != flag(call.expected) and not (flag(call.expected) is None and not value)
        if id(call) in fixed or (call.origin == "caller" and differs):
            source = "hard-coded"
        elif call.origin == "frozen":
            source = "frozen"
        elif call.origin == "caller":
            source = "passed on" if call.parent is not None else "the step"
        elif call.origin == "context":
            source = "leaked" if differs and call.setter is not None else "context"
        else:
            source = "default"
        found.append((value, source))
    return tuple(dict.fromkeys(found))


def _effects(calls: Sequence[Call], done: Mapping[int, Effect]) -> str:
    shares: dict[str, list[float]] = {}
    for call in calls:
        verb, share = done.get(id(call)) or (recorded(call), None)
        shares.setdefault(verb, []).extend([] if share is None else [share])
    texts = [f"{verb} {np.mean(found):.0%}" if found else verb for verb, found in shares.items()]
    return "; ".join(filter(None, texts))


def recorded(call: Call) -> str:
    """The effect of a call, as far as its trace shows: which of the layer's variables it assigns to."""
    names = [v.name.split(":")[0].split("/")[-1] for v in call.assigned]
    drew = any(name.startswith("seed_generator_state") for name in names)
    names = [name for name in dict.fromkeys(names) if not name.startswith("seed_generator_state")]
    verbs = ["draws"] if drew else []
    if names and all(name.startswith("moving_") for name in names):
        verbs.append("moves statistics")
    elif names:
        verbs.append(f"assigns {', '.join(names)}")
    if not verbs and sensitivity(call.layer) == "batch statistics":
        verbs.append("keeps statistics")
    return ", ".join(verbs)
