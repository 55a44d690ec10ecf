"""All findings of an audit: what each check says, put together and sorted."""

import dataclasses

from looper.audit import flag_checks, step_checks
from looper.audit.facts import SEVERITIES, Facts, Finding


def find(facts: Facts) -> list[Finding]:
    """All findings, the severest first; those of one kind that say the same are put together."""
    found: dict[tuple, list[Finding]] = {}
    for check in (flag_checks.tensor_flags,) if facts.stopped else (*flag_checks.CHECKS, *step_checks.CHECKS):
        for finding in check(facts):
            found.setdefault((finding.severity, finding.kind, finding.meaning, finding.remedy), []).append(finding)
    merged = []
    for same in found.values():
        paths = list(dict.fromkeys(finding.path for finding in same))
        merged.append(dataclasses.replace(same[0], path=paths[0], also=tuple(paths[1:])))
    return sorted(merged, key=lambda finding: SEVERITIES.index(finding.severity))
