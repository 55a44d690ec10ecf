"""A run's configuration as a table that people read."""

from collections.abc import Iterator, Mapping
from typing import Any

NOISE = ("module", "registered_name", "build_config", "name", "dtype", "trainable", "shared_object_id")
"""What Keras writes of each layer to make it anew, and what says nothing of this run."""


def table(config: Mapping[str, Any]) -> str:
    """A configuration in Markdown: a row an option, and a row a layer.

    Args:
        config: as `config.json` has it.

    Example:
        >>> print(table({"recipe": "Digits", "model": {"Sequential": {"0": {"Dense": {"units": 8, "dtype": None}}}}}))
        | option | value |
        | --- | --- |
        | recipe | `Digits` |
        | model.Sequential.0 | `Dense(units=8)` |
    """
    rows = [f"| {name} | `{value}` |" for name, value in _rows(config)]
    return "\n".join(["| option | value |", "| --- | --- |", *rows])


def _rows(config: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    for name, value in config.items():
        full = f"{prefix}{name}"
        if isinstance(value, Mapping) and value and not _is_one_thing(value):
            yield from _rows(value, f"{full}.")
        elif value is not None and value != {}:
            yield full, _shown(value)[:400].replace("|", "/").replace("`", "'").replace("\n", " ")


def _is_one_thing(value: Mapping[str, Any]) -> bool:
    """Whether it is a class and its arguments, and not one that holds others by number."""
    [name, inside], *others = value.items()
    if _is_of_keras(value):
        return True
    of_numbers = str(name).isdigit() or (isinstance(inside, Mapping) and any(str(key).isdigit() for key in inside))
    return not others and isinstance(inside, Mapping) and not of_numbers


def _is_of_keras(value: Any) -> bool:
    return isinstance(value, Mapping) and "class_name" in value and isinstance(value.get("config"), Mapping)


def _shown(value: Any) -> str:
    if _is_of_keras(value):
        return _call(value["class_name"], value["config"])
    if isinstance(value, Mapping) and value and _is_one_thing(value):
        return _call(*next(iter(value.items())))
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key}: {_shown(one)}" for key, one in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(_shown, value)) + "]"
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def _call(name: str, arguments: Mapping[str, Any]) -> str:
    shown = {key: one for key, one in arguments.items() if key not in NOISE and one is not None and one is not False}
    return f"{name}({', '.join(f'{key}={_shown(one)}' for key, one in shown.items())})"
