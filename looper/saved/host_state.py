"""What `host.json` of a checkpoint must look like: a file from elsewhere is data, and may be anything."""

from collections.abc import Mapping
from typing import Any

MOST = 2**53
"""Of a step, an epoch or a position."""


def check_host(content: Any) -> None:
    """Raises `ValueError` if what was read has other types than what is saved, or numbers that cannot be.

    Example:
        >>> check_host({"host": {"progress": {"step": -1}}, "variables": {}})
        Traceback (most recent call last):
        ValueError: progress.step is -1
    """
    host = _mapping(content, "host")
    variables = _mapping(content, "variables")
    if not all(isinstance(kind, str) for kind in variables.values()):
        raise ValueError("variables has something else than dtypes and shapes")
    progress = _mapping(host, "progress")
    for name in ("step", "epoch", "epoch_step", "evaluated", "ended_before", "mode_for"):
        _check_number(f"progress.{name}", progress.get(name), required=name in ("step", "epoch"))
    for name in ("ended", "mode"):
        if not isinstance(progress.get(name), str | None):
            raise ValueError(f"progress.{name} is no text")
    feed = _mapping(host, "feed")
    for name in ("number", "batch"):
        _check_number(f"feed.{name}", feed.get(name), required=True)
    for name in ("window", "callbacks"):
        _mapping(host, name)
    _check_number("workers", host.get("workers"))
    own = host.get("own", [])
    if not isinstance(own, list) or not all(isinstance(name, str) for name in own):
        raise ValueError("own is no list of names")
    if not isinstance(host.get("iterator"), bool):
        raise ValueError("iterator is neither true nor false")
    for name in ("phase", "random"):
        if name in host:
            _mapping(host, name)


def _mapping(content: Any, name: str) -> Mapping[str, Any]:
    found = content.get(name) if isinstance(content, Mapping) else None
    if not isinstance(found, Mapping):
        raise ValueError(f"there is no {name}")
    return found


def _check_number(name: str, value: Any, required: bool = False) -> None:
    if value is None and not required:
        return
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < MOST:
        raise ValueError(f"{name} is {str(value)[:40]}")
