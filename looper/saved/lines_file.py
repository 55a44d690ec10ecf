"""A text file that lines are appended to, and that is never cut off."""

import os
from collections.abc import Iterable
from pathlib import Path
from typing import TextIO


class LinesFile:
    """Lines on disk. It is opened when something is written, and kept open until `close`.

    Args:
        path: the file; its folder is made.

    Example:
        >>> import tempfile
        >>> file = LinesFile(Path(tempfile.mkdtemp()) / "rows.txt")
        >>> file.replace(["a\\n"]); file.append("b\\n"); file.close()
        >>> file.path.read_text()
        'a\\nb\\n'
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._open: TextIO | None = None

    def replace(self, lines: Iterable[str]) -> None:
        """Writes these lines in place of all that is there: a process that dies meanwhile leaves the old ones."""
        self.close()
        self.path.parent.mkdir(parents=True, exist_ok=True)
        partial = self.path.with_name(f".{self.path.name}-{os.getpid()}")
        with partial.open("w", newline="", encoding="utf-8") as file:
            file.writelines(lines)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(self.path)

    def append(self, text: str) -> None:
        """Adds text, which others can read from now on."""
        if self._open is None:
            self._open = self.path.open("a", newline="", encoding="utf-8")
        self._open.write(text)
        self._open.flush()

    def sync(self) -> None:
        """Puts on disk what was added."""
        if self._open is not None:
            os.fsync(self._open.fileno())

    def close(self) -> None:
        """Closes the file; `append` opens it again."""
        if self._open is not None:
            self._open.close()
            self._open = None
