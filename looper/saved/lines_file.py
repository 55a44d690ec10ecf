"""A text file that lines are appended to, and that is never cut off."""

import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from looper.base.errors import SaveError
from looper.base.lines import warn
from looper.base.shown_path import shown_path
from looper.saved.files import naming, sync


class LinesFile:
    """Lines on disk. From `replace` on the file is kept open until `close`.

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
        self._descriptor: int | None = None
        self._stays_open = False
        self._waiting = b""
        self._told = False

    def replace(self, lines: Iterable[str]) -> None:
        """Writes these lines in place of all that is there: a process that dies meanwhile leaves the old ones.

        What was added and could not be written yet must be among them.
        """
        self._close()
        self._waiting = b""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        partial = self.path.with_name(f".{self.path.name}-{os.getpid()}")
        try:
            with naming(partial), partial.open("w", newline="", encoding="utf-8") as file:
                file.writelines(lines)
            sync(partial)
            partial.replace(self.path)
        except OSError:
            partial.unlink(missing_ok=True)
            raise
        sync(self.path.parent)
        self._stays_open = True

    @property
    def waits(self) -> bool:
        """Whether something was added that could not be written yet."""
        return bool(self._waiting)

    def set_aside(self, lines: Sequence[str]) -> None:
        """Keeps lines that do not belong into the file in another one beside it, and says so."""
        if not lines:
            return
        aside = self.path.with_name(f"{self.path.name}.aside")
        with aside.open("a", encoding="utf-8", errors="backslashreplace") as file:
            file.writelines(f"{line}\n" for line in lines)
        warn(f"{shown_path(self.path)}: {len(lines)} line(s) that are no rows of a run were moved to {aside.name}.")

    def append(self, text: str) -> None:
        """Adds text, which others can read from now on.

        Where there is no room for it, it is kept, and written with what is added next.
        """
        self._waiting += text.encode()
        try:
            if self._descriptor is None and self._waiting:
                self._descriptor = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
            while self._waiting:
                self._waiting = self._waiting[os.write(self._descriptor, self._waiting) :]
        except OSError as error:
            if not self._told:
                self._told = True
                warn(f"{shown_path(self.path)} cannot be written ({error.strerror}): rows wait until it can.")
        if not self._stays_open:
            self._close()

    def sync(self) -> None:
        """Puts on disk what was added.

        Raises:
            SaveError: if some of it could not be written.
        """
        self.append("")
        if self._waiting:
            raise SaveError(f"no checkpoint is written: {shown_path(self.path)} lacks rows that could not be written.")
        if self._descriptor is not None:
            try:
                os.fsync(self._descriptor)
            except OSError as error:
                raise SaveError(f"{shown_path(self.path)} cannot be put on disk ({error.strerror}).") from error

    def close(self) -> None:
        """Closes the file; `append` opens it again, for itself alone."""
        self.append("")
        if self._waiting:
            warn(f"{shown_path(self.path)} lacks rows that could not be written.")
            self._waiting = b""
        self._close()
        self._stays_open = False

    def _close(self) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None
