"""The options of `looper run` itself. Free of TensorFlow, for a quick command line."""

import dataclasses

from looper.base.errors import InputError


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunOptions:
    """What to do with a recipe besides training it."""

    smoke: bool = False
    """Try the recipe in seconds, and keep nothing. A step, an evaluation, a checkpoint, and a step more from there."""
    profile: str | None = None
    """Trace the steps after A up to B, as 100:110, say what takes their time, and write them to the workdir."""

    def window(self) -> tuple[int, int] | None:
        """The steps of `profile`. Raises `InputError` if they are no such.

        Example:
            >>> RunOptions(profile="100:110").window()
            (100, 110)
        """
        if self.profile is None:
            return None
        first, _, last = self.profile.partition(":")
        if not (first.isdigit() and last.isdigit() and int(first) < int(last)):
            raise InputError(f"--profile {self.profile}: expected two steps, such as 100:110.")
        return int(first), int(last)
