"""Values as people type them, by the types that fields of dataclasses have."""

import collections.abc
import dataclasses
import enum
import functools
import re
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from looper.base.errors import InputError
from looper.base.schedule import Every


@dataclasses.dataclass(frozen=True)
class Kind:
    """A kind of value.

    Attributes:
        read: makes the value of a text; raises ValueError if it is none of this kind.
        expected: what is expected, in words.
        shown: the same in one word, for `--help`.
        several: whether it may be typed as several words, too.
    """

    read: Callable[[str], Any]
    expected: str
    shown: str
    several: bool = False


def kind_of(hint: Any) -> Kind | None:
    """What is typed for a value of this type; None if such a value cannot be typed.

    Example:
        >>> kind_of(int | None).read("none"), kind_of(list[int]).read("8,9"), kind_of(dict[int, float]).read("1=5")
        (None, [8, 9], {1: 5.0})
        >>> kind_of(int | None).expected
        'a whole number or none'
    """
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if hint in _SIMPLE:
        return _SIMPLE[hint]
    if isinstance(hint, type) and issubclass(hint, enum.Enum):
        return _choice({member.name: member for member in hint})
    if origin is typing.Literal:
        return _choice({as_text(value): value for value in inner})
    if origin in (types.UnionType, typing.Union):
        return _any_of([kind_of(one) for one in sorted(inner, key=_tried)])
    if (origin or hint) in _CONTAINERS:
        each = inner[:1] if origin in _SEQUENCES else inner  # of any number
        return _items(_CONTAINERS[origin or hint], (*each, ...) if origin in _SEQUENCES else each)
    if (origin or hint) in (dict, collections.abc.Mapping):
        return _pairs(*map(kind_of, inner or (str, str)))
    return None


def as_text(value: Any) -> str:
    """What is to be typed for a value.

    Example:
        >>> as_text(None), as_text(True), as_text((8, 9)), as_text(Every(steps=10)), as_text({0: 1.0})
        ('none', 'true', '8,9', '10 steps', '0=1.0')
    """
    if isinstance(value, enum.Enum):
        return value.name
    if value is None or isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, Mapping):
        return ",".join(f"{as_text(key)}={as_text(item)}" for key, item in value.items())
    if isinstance(value, list | tuple | set | frozenset):
        return ",".join(map(as_text, value))
    return str(value)


def _tried(hint: Any) -> int:
    """Where a type of a union is tried: text reads as anything, and comes last."""
    return 0 if hint is type(None) or typing.get_origin(hint) is typing.Literal else 2 if hint in (str, Path) else 1


def _any_of(kinds: Sequence[Kind | None]) -> Kind | None:
    known = [kind for kind in kinds if kind is not None]
    if len(known) < len(kinds):
        return None
    said = [*known[1:], known[0]] if known[0] is _SIMPLE[type(None)] else known

    def read(text: str) -> Any:
        refusal: ValueError | None = None
        for kind in known:
            try:
                return kind.read(text)
            except ValueError as error:
                refusal = error if refusal is None or isinstance(error, InputError) else refusal
        raise refusal or ValueError(text)

    shown, expected = "|".join(k.shown for k in said), " or ".join(k.expected for k in said)
    return Kind(read, expected, shown, any(kind.several for kind in known))


def _choice(choices: Mapping[str, Any]) -> Kind:
    def read(text: str) -> Any:
        if text not in choices:
            raise ValueError(text)
        return choices[text]

    expected = f"one of {', '.join(choices)}" if len(choices) > 1 else next(iter(choices))
    return Kind(read, expected, "|".join(choices))


def _items(container: type, inner: Sequence[Any]) -> Kind | None:
    """Several values with commas between them; a tuple may have a length and a type for each."""
    fixed = container is tuple and inner and inner[-1] is not Ellipsis
    kinds = [kind_of(one) for one in inner if one is not Ellipsis] or [_SIMPLE[str]]
    if any(kind is None or kind.several for kind in kinds):
        return None

    def read(text: str) -> Any:
        words = [word.strip() for word in text.split(",")] if text.strip() else []
        if fixed and len(words) != len(kinds):
            raise ValueError(text)
        each = kinds if fixed else kinds * len(words)
        return container(kind.read(word) for kind, word in zip(each, words, strict=bool(fixed)))

    expected = ", ".join(k.expected for k in kinds) if fixed else f"{kinds[0].expected}, or several with commas between"
    return Kind(read, expected, ",".join(k.shown for k in kinds) + ("" if fixed else ",..."), True)


def _pairs(key: Kind | None, value: Kind | None) -> Kind | None:
    if key is None or value is None or key.several or value.several:
        return None

    def read(text: str) -> dict[Any, Any]:
        found = {}
        for pair in filter(None, text.split(",")):
            name, *said = re.split("[=:]", pair, maxsplit=1)
            if not said:
                raise ValueError(text)
            found[key.read(name.strip())] = value.read(said[0].strip())
        return found

    shown = f"{key.shown}={value.shown}"
    return Kind(read, f"{shown}, or several such pairs with commas between", f"{shown},...", True)


def _whole(text: str) -> int:
    """A whole number, also as 1e5."""
    try:
        return int(text)
    except ValueError:
        number = float(text)
        if not number.is_integer():
            raise
        return int(number)


_NONE = _choice({"none": None, "None": None, "null": None})
_TRUTH = {True: ("true", "yes", "on", "1"), False: ("false", "no", "off", "0")}
_BOOL = _choice({word: truth for truth, words in _TRUTH.items() for word in words})
_SIMPLE: dict[Any, Kind] = {
    type(None): dataclasses.replace(_NONE, expected="none", shown="none"),
    bool: Kind(lambda text: _BOOL.read(text.lower()), "true or false", "true|false"),
    int: Kind(_whole, "a whole number", "N"),
    float: Kind(float, "a number", "X"),
    str: Kind(str, "a text", "TEXT"),
    Path: Kind(Path, "a path", "PATH"),
    Every: Kind(Every.parse, "a period such as '100 steps', '2 epochs', 5m or 30s", "PERIOD"),
    Any: Kind(str, "a text", "TEXT"),
}
_CONTAINERS: dict[Any, Any] = {tuple: tuple, list: list, set: set, frozenset: frozenset}
_SEQUENCES = (collections.abc.Sequence, collections.abc.Iterable)
_CONTAINERS |= dict.fromkeys(_SEQUENCES, tuple)


@functools.cache
def docs_of(kind: type) -> dict[str, str]:
    """The texts below the fields of a class; none where its source is not known.

    Example:
        >>> from looper.base.options import FitOptions
        >>> docs_of(FitOptions)["shuffle"]
        'Shuffle arrays and indexable data, anew each epoch and by the seed.'
    """
    import ast
    import inspect
    import itertools
    import textwrap

    found: dict[str, str] = {}
    for one in reversed(kind.__mro__[:-1]):
        try:
            [tree] = ast.parse(textwrap.dedent(inspect.getsource(one))).body
        except (OSError, TypeError, SyntaxError, ValueError):
            continue
        for line, below in itertools.pairwise(getattr(tree, "body", [])):
            is_text = isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant)
            if isinstance(line, ast.AnnAssign) and isinstance(line.target, ast.Name) and is_text:
                found[line.target.id] = " ".join(str(below.value.value).split())
    return found
