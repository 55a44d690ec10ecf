"""Python numbers of a recipe that a compiled step has in it, and that have changed since."""

import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

from looper.base.lines import warn
from looper.base.own_world import ONE_AT_A_TIME
from looper.base.put_back import instead


@contextlib.contextmanager
def read_numbers(recipe: Any) -> Iterator[dict[str, int | float]]:
    """Gives, at its end, the numbers among a recipe's public attributes that were read inside it and did not change.

    Example:
        >>> class Recipe:
        ...     weight, name = 0.5, "recipe"
        >>> recipe = Recipe()
        >>> with read_numbers(recipe) as read:
        ...     _ = recipe.weight, recipe.name
        >>> read
        {'weight': 0.5}
    """
    read: dict[str, int | float] = {}
    kind: Any = type(recipe)

    def get(thing: Any, name: str) -> Any:
        value = original(thing, name)
        if thing is recipe and isinstance(value, int | float | np.number) and not name.startswith("_"):
            read.setdefault(name, value)
        return value

    with ONE_AT_A_TIME:  # the class may be that of other trainers, too
        original = kind.__getattribute__
        with instead(kind, "__getattribute__", get):
            yield read
    for name in [name for name, value in read.items() if getattr(recipe, name, None) != value]:
        del read[name]  # the step itself counts with it


class Numbers:
    """Says, once for each, that a number is another one than when a step was traced with it.

    Args:
        now: such a number now, by name, or what is given besides if there is none any more.
        read: the numbers as they were.
    """

    def __init__(self, now: Callable[[str, Any], Any], read: Mapping[str, int | float]) -> None:
        self._now, self._read = now, dict(read)

    def check(self) -> None:
        """Looks at them."""
        for name, before in list(self._read.items()):
            now = self._now(name, before)
            if now is not before and now != before:
                del self._read[name]
                warn(
                    f"self.{name} was {before} when the step was compiled, and is {now} now: the step goes on with "
                    f"{before}. Make it a variable in build, self.{name} = tf.Variable({before}), and assign() to it."
                )
