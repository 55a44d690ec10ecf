"""`looper doctor`: tries with a tiny job what a real one needs, and prints what works, and how to repair the rest.

Without `--workers` this process is one worker of the cluster that the environment tells of, or alone; the chief prints.
With `--workers N` this process starts N of them, and prints what they found. TensorFlow is not imported here: what a
worker tries is in `looper.commands.doctor.capabilities`.
"""

import argparse
import json
import tempfile
from collections.abc import Sequence
from pathlib import Path

from looper.base.options import STRATEGIES
from looper.commands.doctor.checks import Check, DoctorOptions
from looper.commands.options import Parser
from looper.launch.failure import End
from looper.launch.options import take_options


def doctor(argv: list[str]) -> int:
    """Runs the command with the words after it. Returns the exit code: 1 if something does not work."""
    parser = Parser("doctor", "Try what a job needs, with a tiny one.")
    parser.add_argument("--workers", metavar="N", help="with N processes of this machine (default: as run starts here)")
    parser.add_argument("--workdir", type=Path, metavar="DIR", help="the job's (default: a temporary directory)")
    parser.add_argument("--strategy", default="auto", choices=STRATEGIES, help="as for run")
    parser.add_argument("--devices", type=int, metavar="N", help="as for run")
    parser.add_argument("--report", type=Path, help=argparse.SUPPRESS)
    given = vars(parser.parse_args(argv))
    workers, _ = take_options([] if given["workers"] is None else ["--workers", given["workers"]])
    del given["workers"]
    options = DoctorOptions(**given)
    return examine_here(options) if workers.workers is None else examine_all(workers.workers, options)


def examine_here(options: DoctorOptions) -> int:
    """Examines as one worker. Prints what was found if this is the chief, or knows more than the chief does.

    Returns:
        The exit code: 0 if no check failed, 1 otherwise.
    """
    from looper.commands.doctor.capabilities import examine

    rank, agreed, checks = examine(options)
    if options.report is not None:
        (options.report / f"rank_{rank}.json").write_text(json.dumps([vars(check) for check in checks]))
    elif rank == 0 or not agreed:
        _print(checks)
    return _code(checks)


def examine_all(count: int, options: DoctorOptions) -> int:
    """Starts so many workers on this machine, and prints what they found. The exit code is that of `examine_here`."""
    from looper.launch.launcher import run_once

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
    """Joins what all workers found: the chief's list, what others alone saw fail, and who did not report.

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
