"""The audit of each architecture of `keras.applications`: batch statistics move in training, never in evaluation.

python -m benchmarks.audit_applications            # all of them, each in a process of its own
python -m benchmarks.audit_applications ResNet50   # some
"""

import argparse
import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

import keras
import numpy as np

import looper
from benchmarks.applications import ARCHITECTURES, CLASSES, EXAMPLES, LARGER_THAN_32
from benchmarks.saving import save

RESULTS = Path(__file__).parent / "results" / "audit_applications.json"


def audit(name: str) -> dict:
    """What the audit says of one architecture, untrained."""
    size = LARGER_THAN_32.get(name, 32)
    random = np.random.default_rng(0)
    x, y = random.normal(size=(EXAMPLES, size, size, 3)).astype("float32"), np.arange(EXAMPLES) % CLASSES
    trainer = looper.Trainer(
        model=lambda: getattr(keras.applications, name)(weights=None, input_shape=x.shape[1:], classes=CLASSES),
        optimizer="sgd",
        loss="sparse_categorical_crossentropy",
    )
    report = trainer.audit((x, y))
    rows = [row for row in report.rows if row.sensitive]
    statistics = [row for row in rows if row.sensitive == "batch statistics"]
    return {
        "name": name,
        "layers": len(report.rows),
        "mode_sensitive": len(rows),
        "flags_right": sum(
            [v for v, _ in row.training] == [True] and [v for v, _ in row.evaluation] == [False] for row in rows
        ),
        "batch_normalizations": len(statistics),
        "moved_in_training": sum(row.in_training == "moved statistics" for row in statistics),
        "moved_in_evaluation": sum(row.in_evaluation != "kept statistics" for row in statistics),
        "findings": dict(Counter(f"{finding.severity}: {finding.kind}" for finding in report.findings)),
        "paths": [f"{finding.path} ({len(finding.also)} more)" for finding in report.findings],
    }


def passed(row: dict) -> bool:
    """Whether all that depends on the flag got the right one, statistics moved in training alone, nothing is found."""
    statistics = row.get("batch_normalizations")
    return (
        "error" not in row
        and row["flags_right"] == row["mode_sensitive"]
        and row["moved_in_training"] == statistics
        and row["moved_in_evaluation"] == 0
        and not row["findings"]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="ARCHITECTURE", help="default: all of keras.applications")
    parser.add_argument("--here", action="store_true", help="print one architecture's result as JSON, in this process")
    parser.add_argument("--out", type=Path, default=RESULTS, help="the JSON file to write")
    arguments = parser.parse_args()
    if arguments.here:
        print(json.dumps(audit(arguments.names[0])))
        return
    rows = []
    for name in arguments.names or ARCHITECTURES:
        command = [sys.executable, "-m", "benchmarks.audit_applications", "--here", name]
        run = subprocess.run(command, capture_output=True, text=True, check=False)
        failed = {"name": name, "error": run.stderr.strip().splitlines()[-1:] or run.returncode}
        rows.append(failed if run.returncode else json.loads(run.stdout.splitlines()[-1]))
        print(json.dumps(rows[-1]), flush=True)
        result = {
            "what": "the audit of untrained architectures on random images: flags, batch statistics, findings",
            "passed": f"{sum(map(passed, rows))} of {len(rows)}",
            "architectures": sorted(rows, key=lambda row: row["name"]),
        }
        save(arguments.out, result, "benchmarks.audit_applications")


if __name__ == "__main__":
    main()
