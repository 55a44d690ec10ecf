"""The methods of a recipe's class: those that looper calls can be called, and those of other frameworks are named."""

import inspect
from collections.abc import Iterator
from pathlib import Path
from types import CodeType, FunctionType

from looper.base.errors import InputError
from looper.base.lines import warn

CALLED = {
    "compute_loss": ("batch", "training"),
    "train_step": ("batch",),
    "eval_step": ("batch",),
    "predict_step": ("batch",),
    "transform_gradients": ("gradients", "variables"),
    "after_update": (),
}
"""What looper calls in a step, with which arguments."""

OURS = "looper."
"""The modules whose classes a recipe may inherit from besides, such as `Callback`."""

CALLBACK = "a method of a looper.callbacks.Callback"
ELSEWHERE = {
    "test_step": "eval_step(self, batch)",
    "training_step": "train_step(self, batch)",
    "validation_step": "eval_step(self, batch)",
    "configure_optimizers": "build(self), where self.optimizer is set",
    "train_dataloader": "train_data(self)",
    "val_dataloader": "eval_data(self)",
    "test_dataloader": "eval_data(self)",
    "make_train_function": "train_step(self, batch)",
    "make_test_function": "eval_step(self, batch)",
    **dict.fromkeys(("on_epoch_end", "on_train_epoch_end", "on_validation_epoch_end"), CALLBACK),
    **dict.fromkeys(("on_epoch_begin", "on_train_epoch_start", "on_validation_epoch_start"), CALLBACK),
    **dict.fromkeys(("on_train_begin", "on_train_start", "on_fit_start", "on_fit_begin"), CALLBACK),
    **dict.fromkeys(("on_train_end", "on_fit_end", "on_test_begin", "on_test_end"), CALLBACK),
    **dict.fromkeys(("on_train_batch_begin", "on_train_batch_start", "on_batch_begin"), CALLBACK),
    **dict.fromkeys(("on_train_batch_end", "on_batch_end", "optimizer_step"), CALLBACK),
}
"""Methods that Keras or Lightning call, and where that is said here."""


def check(kind: type, base: type) -> None:
    """Looks at the methods of a recipe's class, and warns of those that nothing calls.

    Args:
        kind: the class.
        base: looper's own, of which the methods are as they must be.

    Raises:
        InputError: if one that looper calls takes other arguments.

    Example:
        >>> class Base: ...
        >>> class Recipe(Base):
        ...     __module__ = "recipe"
        ...     def train_step(self, x, y): ...
        >>> check(Recipe, Base)  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        looper.errors.InputError: Recipe.train_step takes (x, y): looper calls train_step(self, batch). ...
    """
    recipes = [one for one in reversed(kind.__mro__) if one not in base.__mro__ and not one.__module__.startswith(OURS)]
    own = {name: function for one in recipes for name, function in _of(one)}
    for name, arguments in CALLED.items():
        if name in own:
            _check_arguments(kind, name, own[name], arguments)
    mentioned = {word for function in own.values() for word in _names(_as_written(function).__code__)}
    for name, here in ELSEWHERE.items():
        if name in own and name not in mentioned:
            warn(f"{kind.__name__}.{name} ({_line(own[name])}) is not called: here it is {here}.")


def _of(kind: type) -> Iterator[tuple[str, FunctionType]]:
    """The functions of a class as they are called: a decorator may take other arguments than what it decorates."""
    for name, thing in vars(kind).items():
        function = thing.fget if isinstance(thing, property) else thing
        if isinstance(function, FunctionType):
            yield name, function


def _names(code: CodeType) -> Iterator[str]:
    """The names in some code, and in the functions inside it."""
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _names(constant)


def _check_arguments(kind: type, name: str, function: FunctionType, arguments: tuple[str, ...]) -> None:
    signature = inspect.signature(function, follow_wrapped=False)
    try:
        signature.bind("self", *arguments)
    except TypeError:
        taken = ", ".join(list(signature.parameters)[1:])
        raise InputError(
            f"{kind.__name__}.{name} takes ({taken}): looper calls {name}({', '.join(('self', *arguments))})."
            f" See {_line(function)}."
        ) from None


def _as_written(function: FunctionType) -> FunctionType:
    """The function in the recipe's class, which a decorator may have put another one in the place of."""
    written = inspect.unwrap(function)
    return written if isinstance(written, FunctionType) else function


def _line(function: FunctionType) -> str:
    code = _as_written(function).__code__
    return f"{Path(code.co_filename).name}:{code.co_firstlineno}"
