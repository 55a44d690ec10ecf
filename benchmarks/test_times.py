"""How long the suite takes: the whole, each file, and the hundred slowest tests.

    python -m benchmarks.test_times                        runs the suite as the README has it
    python -m benchmarks.test_times --thorough             runs what tests/thorough.txt lists, too
    python -m benchmarks.test_times --of FILE --out FILE   reads what a run with --junitxml=FILE has written

A fixture counts for the test that came to it first.
"""

import argparse
import collections
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

from benchmarks.saving import save

ROOT = Path(__file__).parents[1]
RESULT = Path(__file__).parent / "results" / "test_times.json"
SLOWEST = 100


def measured(junit: Path) -> dict[str, Any]:
    """What a run wrote with `--junitxml`, in seconds: of the whole, by file, and by test for the slowest."""
    suite = ElementTree.parse(junit).getroot().find("testsuite")
    assert suite is not None
    tests: list[tuple[str, str, float]] = []
    for case in suite.iter("testcase"):
        place = case.attrib["classname"].replace(".", "/") + ".py"
        tests.append((place, case.attrib["name"], float(case.attrib["time"])))
    files: collections.Counter[str] = collections.Counter()
    count: collections.Counter[str] = collections.Counter()
    for file, _, seconds in tests:
        files[file] += seconds
        count[file] += 1
    slowest = sorted(tests, key=lambda test: -test[2])[:SLOWEST]
    return {
        "tests": len(tests),
        "failed": int(suite.attrib["failures"]) + int(suite.attrib["errors"]),
        "skipped": int(suite.attrib["skipped"]),
        "wall seconds": round(float(suite.attrib["time"]), 1),
        "seconds of all tests": round(sum(files.values()), 1),
        "files": {file: {"tests": count[file], "seconds": round(seconds, 1)} for file, seconds in files.most_common()},
        "slowest tests": {f"{file}::{name}": round(seconds, 2) for file, name, seconds in slowest},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--of", type=Path, help="what a run with --junitxml wrote; default: run the suite now")
    parser.add_argument("--thorough", action="store_true", help="run what tests/thorough.txt lists, too")
    parser.add_argument("--out", type=Path, default=RESULT)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        junit = options.of
        if junit is None:
            junit = Path(folder) / "junit.xml"
            more = ["--thorough"] if options.thorough else []
            subprocess.run([sys.executable, "-m", "pytest", f"--junitxml={junit}", *more], cwd=ROOT, check=False)
        print(save(options.out, measured(junit), "benchmarks.test_times"))


if __name__ == "__main__":
    main()
