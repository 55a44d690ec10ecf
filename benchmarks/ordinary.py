"""Training as it is done every day, against the same by hand and Keras' `fit`: input, bar, files and all.

    python -m benchmarks.ordinary
    python -m benchmarks.ordinary --only text --seconds 20 --out try.json

`looper bench` compares the sides of three recipes (`benchmarks/ordinary_recipes.py`), in turns: JPEG files that are
decoded, cropped and flipped, ResNet-50, and windows of a file of tokens. A fit besides tells where its time went.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.peers.process import ROOT
from benchmarks.saving import save

RESULTS = Path(__file__).parent / "results" / "ordinary.json"
IMAGES, TOKENS = 640, 1_000_000
EXAMPLES = {"jpeg": 32, "resnet": 16, "text": 8}
"""In a batch."""


def words(name: str, folder: Path) -> list[str]:
    """A recipe on the command line, with its data."""
    classes = {"jpeg": "Jpeg", "resnet": "ResNet", "text": "Text"}
    own = {"jpeg": ["--folder", str(folder / "images")], "text": ["--file", str(folder / "tokens")]}
    return [f"benchmarks/ordinary_recipes.py:{classes[name]}", *own.get(name, [])]


def printed_by(*arguments: str) -> str:
    """What `looper` prints with these words."""
    run = subprocess.run([sys.executable, "-m", "looper", *arguments], capture_output=True, text=True, cwd=ROOT)
    if run.returncode:
        raise SystemExit(f"looper {' '.join(arguments)} failed: {run.stderr[-2000:]}")
    return run.stdout + run.stderr


def measure(name: str, folder: Path, seconds: float) -> dict[str, Any]:
    """The sides of a recipe, and the ledger of a fit."""
    recipe, out = words(name, folder), folder / name
    sides = ["raw", "graph", "xla_step", "keras"]
    printed_by("bench", *recipe, "--sides", *sides, "--seconds", str(seconds), "--out", str(out))
    found = json.loads((out / "bench.json").read_text())
    printed = printed_by("run", *recipe, "--steps", "100", "--workdir", str(folder / f"{name}-run"))
    ledger = next(line for line in printed.splitlines() if line.startswith("where the time went"))
    return {"bench": found, "examples in a batch": EXAMPLES[name], "of a fit of 100 steps": ledger}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="*", choices=list(EXAMPLES), default=list(EXAMPLES))
    parser.add_argument("--seconds", type=float, default=120.0, help="of bursts, of all sides together")
    parser.add_argument("--out", type=Path, default=RESULTS, help="the JSON file to write")
    given = parser.parse_args()
    from benchmarks.ordinary_recipes import make_images, make_text

    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        (folder / "images").mkdir()
        make_images(folder / "images", IMAGES if "jpeg" in given.only else 0)
        make_text(folder / "tokens", TOKENS)
        result = {name: measure(name, folder, given.seconds) for name in given.only}
    print(save(given.out, {"recipes": result}, "benchmarks.ordinary"))


if __name__ == "__main__":
    main()
