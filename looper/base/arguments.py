"""One clear line for arguments that a function does not take, though its signature names every one that it takes."""

import functools
import inspect
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

from looper.base.errors import InputError, check_known
from looper.base.lines import shorten

P = ParamSpec("P")
R = TypeVar("R")


def explain(
    more: str = "", unknown: Callable[[Any, list[str]], None] | None = None
) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """A decorator of methods, which says what is wrong where Python would only raise a `TypeError`.

    Whatever a method raises shows the user's frames alone: see `looper.base.lines.shorten`.

    Type checkers and `inspect.signature` see the signature of the method itself.

    Args:
        more: what to say of more positional arguments than the method has.
        unknown: called with the object and the names of options that the method does not have; raises `InputError`.
            Default: names the nearest of the method's own.

    Example:
        >>> class Trainer:
        ...     @explain(more="fit() takes the data as one argument: fit((x, y)).")
        ...     def fit(self, data): ...
        >>> Trainer().fit([1.0], [2.0])
        Traceback (most recent call last):
        looper.errors.InputError: fit() takes the data as one argument: fit((x, y)).
    """

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        parameters = inspect.signature(function).parameters
        positional = sum(p.kind is not p.KEYWORD_ONLY for p in parameters.values())
        options = list(parameters)[1:]  # without `self`

        @functools.wraps(function)
        def checked(*args: P.args, **kwargs: P.kwargs) -> R:
            if more and len(args) > positional:
                raise InputError(more)
            unlike = [name for name in kwargs if name not in parameters]
            if unlike:
                try:
                    if unknown is None:
                        check_known(function.__name__, unlike, options)
                    else:
                        unknown(args[0], unlike)
                except InputError as error:
                    raise error.with_traceback(None) from None  # the error is in the call, not in looper
            try:
                return function(*args, **kwargs)
            except Exception as error:
                shorten(error)
                raise error.with_traceback(error.__traceback__)  # noqa: B904  # the same error, with its own context

        return checked

    return decorate
