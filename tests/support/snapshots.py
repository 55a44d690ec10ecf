"""What a command prints, as it is committed in `tests/snapshots`: figures and paths are masked there.

`UPDATE_SNAPSHOTS=1 python -m pytest tests/commands` writes them anew; read what `git diff` shows then.
"""

import difflib
import os
import re
from pathlib import Path

FOLDER = Path(__file__).parent.parent / "snapshots"


def masked(text: str, *paths: Path) -> str:
    """A text without what differs from run to run: numbers, how columns are filled up, paths.

    >>> masked("took 1.25 s   in /tmp/x/run", Path("/tmp/x"))
    'took # s  in PATH/run\\n'
    """
    for path in sorted(map(str, paths), key=len, reverse=True):
        text = text.replace(path, "PATH")
    text = re.sub(r"-?\b(\d[\d,.:e+-]*\d|\d)(?=\b|s\b)|(?<=[a-z]_)\d+\b", "#", text)
    text = re.sub(r"(where the time went \(# s\): ).*\n.*-bound .*", r"\1...", text)  # in the order of the shares
    lines = [re.sub(r"(?<=\S) {2,}|^ {8,}", "  ", line).rstrip() for line in text.splitlines()]
    return "\n".join(lines) + "\n"


def check(name: str, text: str, *paths: Path) -> None:
    """Compares a text with the committed one."""
    file, found = FOLDER / f"{name}.txt", masked(text, *paths)
    if os.environ.get("UPDATE_SNAPSHOTS"):
        FOLDER.mkdir(exist_ok=True)
        file.write_text(found)
    lines = difflib.unified_diff(file.read_text().splitlines(), found.splitlines(), file.name, "what it prints", n=0)
    different = "\n".join(lines)
    assert not different, different
