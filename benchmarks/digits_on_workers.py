"""`looper run recipes/digits.py --workers 2` against `--workers 1`: the evaluation after all 900 steps, in float32.

    python -m benchmarks.digits_on_workers

Without dropout, and with synchronized batch normalization, so that both train the same.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.saving import save

ROOT = Path(__file__).parents[1]
RESULT = Path(__file__).parent / "results" / "digits_on_workers.json"
SECONDS = 600
"""Until a run has ended, on a busy machine."""

LOSS = 1e-4
"""Sums over two halves of a batch are rounded otherwise than those over all of it."""


def trained(workers: int, workdir: Path, *options: str) -> tuple[dict[str, Any], str]:
    """Trains with so many workers. Returns the last row that was logged, and standard error."""
    alike = ["--dropout", "0", "--synchronized-bn", "--progress", "False"]
    words = ["run", "recipes/digits.py", "--workers", str(workers), "--workdir", str(workdir), *alike, *options]
    done = subprocess.run(
        [sys.executable, "-m", "looper.cli", *words],
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=SECONDS,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(done.stderr)
    return json.loads((workdir / "metrics.jsonl").read_text().splitlines()[-1]), done.stderr


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=RESULT)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        one, two = (trained(workers, Path(folder) / str(workers))[0] for workers in (1, 2))
    differences = {name: abs(one[name] - two[name]) for name in ("eval/loss", "eval/accuracy")}
    result = {"1 worker": one, "2 workers": two, "differences": differences, "bound": LOSS}
    print(save(options.out, result, "benchmarks.digits_on_workers"))


if __name__ == "__main__":
    main()
