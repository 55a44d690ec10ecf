"""Breaks looper in each way of the catalogue, in a copy, and tells whether the named tests notice.

    python -m tests.breakages --jobs 2 --out breakages.json
    python -m tests.breakages --only clip-before-reduction

All tests run in an unbroken copy first. A breakage is killed if pytest then ran its tests and at least one failed
(exit code 1). If they pass it survived: no test holds the promise. Everything else (a test that fails in the unbroken
copy, nothing collected, a timeout, a source that changed) is told, and is not killed.
"""

import argparse
import concurrent.futures
import dataclasses
import importlib.metadata
import json
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Collection, Sequence
from pathlib import Path

from tests.breakages.catalogue import BREAKAGES, ROOT, Breakage

COPIED = ("looper", "tests", "recipes", "benchmarks", "pyproject.toml", "README.md")
"""What a copy consists of."""

PYTEST = (sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-q", "--no-header")

VERDICTS = {
    0: "survived",
    1: "killed",
    2: "not killed: pytest was interrupted or could not collect",
    3: "not killed: an error inside pytest",
    4: "not killed: pytest was called wrongly",
    5: "not killed: no test was collected",
}
"""By pytest's exit code."""


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What became of one breakage; `verdict` is "killed", "survived" or a reason why neither can be said."""

    name: str
    promise: str
    file: str
    tests: tuple[str, ...]
    verdict: str
    seconds: float


def judge(breakage: Breakage, timeout: float, failing: Collection[str] = ()) -> Outcome:
    """Breaks a copy of the tree and runs the breakage's tests in it.

    Args:
        breakage: the mistake.
        timeout: seconds that the tests may take.
        failing: the tests that fail without it.
    """
    facts = {field: getattr(breakage, field) for field in ("name", "promise", "file", "tests")}
    for test in failing:
        if test.startswith(breakage.tests):
            return Outcome(**facts, verdict=f"not killed: {test} fails without it", seconds=0.0)
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix=f"breakage-{breakage.name}-") as folder:
        copy = Path(folder)
        copy_tree(copy)
        try:
            breakage.apply(copy)
        except ValueError as error:
            verdict = f"not killed: {error}"
        else:
            verdict = run_tests(copy, breakage.tests, timeout)
    return Outcome(**facts, verdict=verdict, seconds=round(time.monotonic() - began, 1))


def copy_tree(target: Path) -> None:
    """Copies what the tests need, without compiled files and results of benchmarks."""
    for name in COPIED:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, target / name, ignore=shutil.ignore_patterns("__pycache__", "results"))
        else:
            shutil.copy2(source, target / name)


def environment_of(folder: Path) -> dict[str, str]:
    """The variables of a process in a copy: its subprocesses, the command `looper` among them, import the copy, too."""
    return {**os.environ, "PYTHONPATH": str(folder), "PYTHONDONTWRITEBYTECODE": "1"}


def run_tests(folder: Path, tests: Sequence[str], timeout: float) -> str:
    """Runs pytest in a copy of the tree, and returns the verdict."""
    with subprocess.Popen(
        [*PYTEST, "-n", "0", "-x", *tests],
        cwd=folder,
        env=environment_of(folder),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    ) as process:
        try:
            code = process.wait(timeout)
        except subprocess.TimeoutExpired:
            return f"not killed: no result after {timeout:g} s"
        finally:
            end_group(process.pid)
    return VERDICTS.get(code, f"not killed: pytest ended with {code}")


def failing_unbroken(breakages: Sequence[Breakage], jobs: int) -> list[str]:
    """Runs the tests of all breakages in an unbroken copy. Returns the node ids of those that fail there.

    Raises:
        RuntimeError: if pytest could not run them.
    """
    tests = sorted({test for breakage in breakages for test in breakage.tests})
    with tempfile.TemporaryDirectory(prefix="unbroken-") as folder:
        copy_tree(Path(folder))
        done = subprocess.run(
            [*PYTEST, "-n", str(jobs), "-rfE", *tests],
            cwd=folder,
            env=environment_of(Path(folder)),
            capture_output=True,
            text=True,
            check=False,
        )
    if done.returncode not in (0, 1):
        raise RuntimeError(f"pytest ended with {done.returncode}: {(done.stdout + done.stderr)[-2000:]}")
    return re.findall(r"^(?:FAILED|ERROR) (\S+)", done.stdout, re.MULTILINE)


def end_group(leader: int) -> None:
    """Ends what is left of a process group."""
    try:
        os.killpg(leader, signal.SIGKILL)
    except ProcessLookupError:
        return


def chosen(names: Sequence[str] | None) -> list[Breakage]:
    """The breakages of these names, or all. Ends the process at a name that is not in the catalogue."""
    by_name = {breakage.name: breakage for breakage in BREAKAGES}
    unknown = [name for name in names or () if name not in by_name]
    if unknown:
        sys.exit(f"no breakage is called {unknown[0]!r}; there are {', '.join(by_name)}")
    return [by_name[name] for name in names or by_name]


def write(outcomes: Sequence[Outcome], path: Path) -> None:
    """Writes the outcomes with the versions that they were found with.

    Those of other breakages that the file holds stay, if they were found with the same versions and the catalogue has
    them still: a part of it can be tried again.
    """
    versions = {"python": platform.python_version()}
    versions |= {name: importlib.metadata.version(name) for name in ("tensorflow", "keras")}
    before = json.loads(path.read_text()) if path.exists() else {}
    found = {old["name"]: old for old in before.get("breakages", ()) if before.items() >= versions.items()}
    found |= {outcome.name: dataclasses.asdict(outcome) for outcome in outcomes}
    kept = [found[breakage.name] for breakage in BREAKAGES if breakage.name in found]
    killed = sum(outcome["verdict"] == "killed" for outcome in kept)
    content = {**versions, "killed": killed, "of": len(kept), "breakages": kept}
    path.write_text(json.dumps(content, indent=1) + "\n")


def main() -> int:
    """Runs the command. Returns 0 if every breakage was killed, otherwise 1."""
    parser = argparse.ArgumentParser(prog="python -m tests.breakages", description=__doc__.split("\n\n")[0])
    parser.add_argument("--only", nargs="+", metavar="NAME", help="breakages to try (default: all)")
    parser.add_argument("--jobs", type=int, default=2, help="how many at a time")
    parser.add_argument("--timeout", type=float, default=240.0, help="seconds that one may take")
    parser.add_argument("--out", type=Path, metavar="FILE.json", help="where to write the outcomes")
    options = parser.parse_args()
    wanted, began, outcomes = chosen(options.only), time.monotonic(), []
    failing = failing_unbroken(wanted, options.jobs)
    print(f"{len(failing)} tests fail in the unbroken copy, {time.monotonic() - began:.0f} s", flush=True)
    with concurrent.futures.ThreadPoolExecutor(options.jobs) as pool:
        for outcome in pool.map(lambda breakage: judge(breakage, options.timeout, failing), wanted):
            outcomes.append(outcome)
            print(f"{outcome.verdict:<10} {outcome.seconds:6.1f} s  {outcome.name}", flush=True)
    killed = sum(outcome.verdict == "killed" for outcome in outcomes)
    print(f"{killed} of {len(outcomes)} killed, {time.monotonic() - began:.0f} s")
    if options.out:
        write(outcomes, options.out)
    return 0 if killed == len(outcomes) else 1


if __name__ == "__main__":
    sys.exit(main())
