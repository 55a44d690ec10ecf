"""Public signatures: they name every argument, and they are the ones that `public_api.txt` lists.

After a change that is meant: `python -m tests.test_signatures > tests/public_api.txt`.
"""

import inspect
import re
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import looper
from looper.callbacks import Callback

LISTED = Path(__file__).with_name("public_api.txt")

VARIADIC = {
    "looper.data.zipped": "sources: the user names them; batch_size must have the same names",
    "looper.data.named": "sets: the user names them; any name without a slash will do",
    "looper.callbacks.LambdaCallback": "hooks: any hook of Callback by its name; a wrong name is told with the nearest",
}
"""What takes any number of arguments by design, and why."""


def public() -> Iterator[tuple[str, Any]]:
    """All public functions and classes by name, with the public methods and attributes of the classes.

    Of callbacks these are the ones that `Callback` does not have, and of `looper.data` functions and constructors only.
    """
    for name in looper.__all__:
        thing = getattr(looper, name)
        if not inspect.ismodule(thing):
            yield f"looper.{name}", thing
            yield from _members(f"looper.{name}", thing)
    for name in looper.callbacks.__all__:
        thing = getattr(looper.callbacks, name)
        yield f"looper.callbacks.{name}", thing
        inherits = inspect.isclass(thing) and issubclass(thing, Callback) and thing is not Callback
        yield from _members(f"looper.callbacks.{name}", thing, besides=Callback if inherits else object)
    for name in looper.data.__all__:
        thing = getattr(looper.data, name)
        if not inspect.ismodule(thing):
            yield f"looper.data.{name}", thing
            continue
        for inner, function in inspect.getmembers(thing, inspect.isroutine):
            if function.__module__ == thing.__name__ and not inner.startswith("_"):
                yield f"looper.data.{name}.{inner}", function


def _members(name: str, thing: Any, besides: type = object) -> Iterator[tuple[str, Any]]:
    if inspect.isclass(thing) and not issubclass(thing, Exception):
        for member in sorted(set(dir(thing)) - set(dir(besides))):
            if not member.startswith("_"):
                yield f"{name}.{member}", getattr(thing, member)


def signature(thing: Any) -> inspect.Signature | None:
    """The signature; None for an attribute, and for an error, which takes what Python's errors take."""
    is_error = inspect.isclass(thing) and issubclass(thing, Exception)
    return inspect.signature(thing) if callable(thing) and not is_error else None


def line(name: str, thing: Any) -> str:
    """One line of the list: no type is named with its module, as modules move.

    Example:
        >>> line("looper.Every.parse", looper.Every.parse)
        "looper.Every.parse(text: str) -> 'Every'"
    """
    found = signature(thing)
    written = "" if found is None else re.sub(r"\b(?:[A-Za-z_]\w*\.)+(?=[A-Za-z_])", "", str(found))
    return name + re.sub(r"<function (\w+) at 0x\w+>", r"\1", written)


def public_api() -> str:
    """The public names and their signatures, one a line."""
    return "".join(f"{line(name, thing)}\n" for name, thing in public())


def test_the_public_names_and_signatures_are_those_listed():
    assert public_api().splitlines() == LISTED.read_text().splitlines()


def test_public_signatures_name_every_argument():
    """Otherwise a type checker and an editor cannot tell a misspelt option."""
    loose = set()
    for name, thing in public():
        found = signature(thing)
        kinds = set() if found is None else {parameter.kind for parameter in found.parameters.values()}
        if kinds & {inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD}:
            loose.add(name)
    assert loose == VARIADIC.keys()


class WithOwnOptions(looper.Trainer):
    """A recipe that has an option of its own and hands the others on."""

    def __init__(self, width=4, **options):
        self.width = width
        super().__init__(**options)

    def fit(self, *data, **options):
        return super().fit(*data, **options)


def test_a_recipe_may_hand_any_options_on():
    assert WithOwnOptions(width=8, seed=3).width == 8
    with pytest.raises(looper.InputError, match=r"^WithOwnOptions has no option 'sed': did you mean 'seed'\? One of: "):
        WithOwnOptions(sed=3)
    with pytest.raises(looper.InputError, match=r"^fit has no option 'epoch': did you mean 'epochs'\? One of: "):
        WithOwnOptions().fit(epoch=3)
    with pytest.raises(looper.InputError, match=r"^fit has no option 'seed': it is an option of WithOwnOptions\.$"):
        WithOwnOptions().fit(seed=3)
    with pytest.raises(looper.InputError, match=r"^fit\(\) takes the data as one argument: fit\(\(x, y\), epochs"):
        WithOwnOptions().fit([1.0], [2.0], epochs=1)


def test_a_wrong_option_has_a_short_traceback():
    """The line with the mistake, and one of looper's."""
    with pytest.raises(looper.InputError) as raised:
        looper.Trainer().fit(epoch=3)
    assert [frame.name for frame in traceback.extract_tb(raised.tb)][1:] == ["checked"]
    assert raised.value.__context__ is None


if __name__ == "__main__":
    print(public_api(), end="")
