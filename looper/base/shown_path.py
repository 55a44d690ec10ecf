"""A path as people write it."""

from pathlib import Path


def shown_path(path: Path) -> str:
    """A path from the current directory on, if it is below that; else the path as it is.

    Example:
        >>> shown_path(Path.cwd() / "runs" / "digits"), shown_path(Path("/elsewhere"))
        ('runs/digits', '/elsewhere')
    """
    here = Path.cwd()
    return str(path.relative_to(here) if path.is_relative_to(here) else path)
