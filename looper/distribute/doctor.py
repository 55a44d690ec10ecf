"""`looper doctor`: tries with a tiny job what a real one needs, and prints what works, and how to repair the rest.

Without `--workers` this process is one worker of the cluster that the environment tells of, or alone; the chief prints.
With `--workers N` this process starts N of them, and prints what they found. TensorFlow is not imported here: what a
worker tries is in `looper.distribute.capabilities`.
"""

import dataclasses
import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from looper.distribute.failure import End
from looper.errors import InputError


@dataclasses.dataclass(frozen=True, kw_only=True)
class DoctorOptions:
    """Where to try what.

    Attributes:
        workdir: the job's directory; None for a temporary one.
        strategy, devices: as of a Trainer.
        report: a directory to write what was found to, in place of printing it: `rank_K.json`.
    """

    workdir: Path | None = None
    strategy: str = "auto"
    devices: int | None = None
    report: Path | None = None


@dataclasses.dataclass(frozen=True)
class Check:
    """What one check found.

    Attributes:
        name: of what was tried.
        verdict: "ok"; "FAIL"; "warn" for what works badly; "skip" for what was not tried.
        seen: what was found, in words.
        fix: what to do about it.

    Example:
        >>> print(Check("devices", "FAIL", "the driver has a GPU, TensorFlow none", "pip install 'looper-tf[cuda]'"))
        FAIL  devices      the driver has a GPU, TensorFlow none  -> pip install 'looper-tf[cuda]'
    """

    name: str
    verdict: Literal["ok", "warn", "skip", "FAIL"]
    seen: str
    fix: str = ""

    @classmethod
    def of(cls, name: str, error: InputError) -> "Check":
        """A failed check, of an error that says what is wrong and, after its last colon, what to do.

        Example:
            >>> print(Check.of("workers", InputError("worker 0: its port is in use: give it another.")))
            FAIL  workers      worker 0: its port is in use  -> give it another.
        """
        seen, found, fix = str(error).partition(" Expected ")
        if found:
            return cls(name, "FAIL", seen.rstrip("."), f"expected {fix}")
        seen, _, fix = str(error).rpartition(": ")
        return cls(name, "FAIL", seen, fix) if seen else cls(name, "FAIL", fix)

    def __str__(self) -> str:
        return f"{self.verdict:<4}  {self.name:<11}  {self.seen}" + (f"  -> {self.fix}" if self.fix else "")


def examine_here(options: DoctorOptions) -> int:
    """Examines as one worker. Prints what was found if this is the chief, or knows more than the chief does.

    Returns:
        The exit code: 0 if no check failed, 1 otherwise.
    """
    from looper.distribute.capabilities import examine

    found = examine(options)
    if options.report is not None:
        (options.report / f"rank_{found.rank}.json").write_text(json.dumps([vars(check) for check in found.checks]))
    elif found.rank == 0 or not found.agreed:
        _print(found.checks)
    return _code(found.checks)


def examine_all(count: int, options: DoctorOptions) -> int:
    """Starts so many workers on this machine, and prints what they found. The exit code is that of `examine_here`."""
    from looper.distribute.launcher import run_once

    words = ["doctor", "--strategy", options.strategy]
    words += [] if options.workdir is None else ["--workdir", str(options.workdir)]
    words += [] if options.devices is None else ["--devices", str(options.devices)]
    with tempfile.TemporaryDirectory(prefix="looper-doctor-") as folder:
        ends = run_once(count, [*words, "--report", folder])
        reports = [_read(Path(folder) / f"rank_{rank}.json") for rank in range(count)]
    checks = merged(reports, ends)
    _print(checks)
    return _code(checks)


def merged(reports: Sequence[Sequence[Check] | None], ends: Sequence[End]) -> list[Check]:
    """What all workers found: the chief's list, what others saw fail and the chief did not, and who did not report.

    Args:
        reports: of each worker; None if it wrote none.
        ends: how each of them ended.
    """
    checks = list(next((report for report in reports if report), []))
    for rank, report in enumerate(reports):
        if report is None and not ends[rank].stopped:
            seen = " ".join(str(ends[rank]).removeprefix("looper: ").split("\n")[0].split())
            words = ends[rank].words[-1] if ends[rank].words else "it said nothing"
            fix = f"its last words: {words}"
            checks.append(Check("start", "FAIL", seen.rstrip(":"), fix))
        known = {(check.name, check.seen) for check in checks}
        for check in report or ():
            if check.verdict == "FAIL" and (check.name, check.seen) not in known:
                checks.append(check)
    return checks


def _read(path: Path) -> list[Check] | None:
    return [Check(**check) for check in json.loads(path.read_text())] if path.exists() else None


def _print(checks: Sequence[Check]) -> None:
    for check in checks:
        print(check, flush=True)


def _code(checks: Sequence[Check]) -> int:
    return int(any(check.verdict == "FAIL" for check in checks))
