"""All findings of an audit: what each check says, put together and sorted."""

import dataclasses
from collections.abc import Callable, Iterator

from looper.audit.facts import SEVERITIES, Facts, Finding
from looper.audit.flag_checks import (
    against_the_outer_flag,
    around_the_tape,
    tensor_flags,
    wrong_in_evaluation,
    wrong_in_training,
)
from looper.audit.step_checks import (
    against_the_flag,
    changed_by_evaluation,
    constant,
    frozen_but_moving,
    frozen_dropout,
    gradients,
    half_precision,
    idle_metrics,
    rates,
    single_examples,
    undriven,
    unowned,
    unused,
    varies,
    without_evaluation,
)

CHECKS: tuple[Callable[[Facts], Iterator[Finding]], ...] = (
    tensor_flags,
    around_the_tape,
    wrong_in_training,
    wrong_in_evaluation,
    against_the_outer_flag,
    against_the_flag,
    frozen_but_moving,
    frozen_dropout,
    changed_by_evaluation,
    varies,
    gradients,
    unowned,
    rates,
    single_examples,
    half_precision,
    idle_metrics,
    undriven,
    constant,
    without_evaluation,
    unused,
)


def find(facts: Facts) -> list[Finding]:
    """All findings, the severest first; those of one kind that say the same are put together."""
    found: dict[tuple, list[Finding]] = {}
    for check in (tensor_flags,) if facts.stopped else CHECKS:
        for finding in check(facts):
            found.setdefault((finding.severity, finding.kind, finding.meaning, finding.remedy), []).append(finding)
    merged = []
    for same in found.values():
        paths = list(dict.fromkeys(finding.path for finding in same))
        merged.append(dataclasses.replace(same[0], path=paths[0], also=tuple(paths[1:])))
    return sorted(merged, key=lambda finding: SEVERITIES.index(finding.severity))
