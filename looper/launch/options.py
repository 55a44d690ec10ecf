"""The options of the local launcher, with their checks. Free of TensorFlow, for a quick command line."""

import argparse
import dataclasses
import os
from collections.abc import Sequence

from looper.base.errors import InputError


@dataclasses.dataclass(frozen=True, kw_only=True)
class LaunchOptions:
    """How many processes train, and how often they are started again."""

    workers: int | None = None
    """Train with this many processes of this machine. They share its cores and GPUs and each batch; 1 is a single
    supervised process. None: train in this process."""
    max_restarts: int = 0
    """How often all workers are started again from the last checkpoint when one of them fails."""


def take_options(argv: Sequence[str]) -> tuple[LaunchOptions, list[str]]:
    """Takes the launcher's options out of a command line.

    Returns:
        The options, and the other words, for the workers.

    Raises:
        InputError: if they are wrong, or `TF_CONFIG` in the environment names another cluster.

    Example:
        >>> take_options(["recipe.py", "--workers", "2", "--epochs", "3"])
        (LaunchOptions(workers=2, max_restarts=0), ['recipe.py', '--epochs', '3'])
    """
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, argument_default=argparse.SUPPRESS)
    parser.add_argument("--workers", nargs="?")
    parser.add_argument("--max-restarts", "--max_restarts", nargs="?")
    given, rest = parser.parse_known_args(list(argv))
    if "workers" not in given:
        if "max_restarts" in given:
            raise InputError("--max-restarts is for --workers, whose processes it restarts: give --workers N, too.")
        return LaunchOptions(), rest
    if os.name != "posix":
        raise InputError("--workers needs Linux or macOS: train without it.")
    workers = _whole("--workers", given.workers, 1)
    restarts = _whole("--max-restarts", given.max_restarts, 0) if "max_restarts" in given else 0
    if os.environ.get("TF_CONFIG"):
        raise InputError(
            f"--workers {workers} starts a cluster of its own, but TF_CONFIG in the environment names another: remove "
            "--workers to be one worker of that, or unset TF_CONFIG."
        )
    return LaunchOptions(workers=workers, max_restarts=restarts), rest


def _whole(option: str, value: str | None, least: int) -> int:
    try:
        number = int(value or "")
    except ValueError:
        number = least - 1
    if number < least:
        shown = option if value is None else f"{option} {value}"
        raise InputError(f"{shown}: expected a whole number of at least {least}, such as {option} 2.")
    return number
