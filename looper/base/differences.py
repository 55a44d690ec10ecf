"""Nested configurations as one level, and how two of them differ."""

import json
from collections.abc import Mapping
from typing import Any


def flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """A nested configuration as one level.

    Example:
        >>> flat({"epochs": 3, "optimizer": {"SGD": {"rate": 0.1}}})
        {'epochs': 3, 'optimizer.SGD.rate': 0.1}
    """
    found: dict[str, Any] = {}
    for name, value in config.items():
        found |= flat(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {f"{prefix}{name}": value}
    return found


def differences(saved: Any, now: Any, name: str = "", words: tuple[str, str] = ("was", "is now")) -> list[str]:
    """Lists what differs between two configurations, as `name was old, is now new`.

    Example:
        >>> differences({"optimizer": {"rate": 0.1}}, {"optimizer": {"rate": 0.2}})
        ['optimizer.rate was 0.1, is now 0.2']
    """
    if isinstance(saved, Mapping) and isinstance(now, Mapping):
        keys = list(saved) + [key for key in now if key not in saved]
        found: list[str] = []
        for key in keys:
            full = f"{name}.{key}" if name else str(key)
            found += differences(saved.get(key, _ABSENT), now.get(key, _ABSENT), full, words)
        return found
    return [] if saved == now else [f"{name} {words[0]} {_short(saved)}, {words[1]} {_short(now)}"]


_ABSENT = object()


def _short(value: Any) -> str:
    if value is _ABSENT:
        return "not there"
    text = f"{value:.6g}" if isinstance(value, float) else json.dumps(value, default=str)
    return text if len(text) <= 60 else "there" if isinstance(value, Mapping) else text[:57] + "..."
