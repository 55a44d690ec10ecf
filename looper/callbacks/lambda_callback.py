"""A callback made of functions."""

from collections.abc import Callable
from typing import Any

from looper.base.errors import InputError, check_known
from looper.base.schedule import Every
from looper.run.callback import Callback

HOOKS = tuple(name for name in vars(Callback) if name.startswith("on_"))


class LambdaCallback(Callback):
    """Calls functions at boundaries.

    Args:
        every: when to call `on_step`; None means at each log boundary.
        hooks: functions by the name of the hook of `looper.callbacks.Callback`, with its arguments.

    Raises:
        InputError: if there is no such hook, or something is not a function.

    Example:
        >>> low = LambdaCallback(on_step=lambda step, logs: print(step, logs["loss"]))
        >>> low.on_step(100, {"loss": 0.5})
        100 0.5
    """

    def __init__(self, *, every: Every | None = None, **hooks: Callable[..., Any]) -> None:
        check_known("LambdaCallback", [name for name in hooks if name not in HOOKS], HOOKS)
        for name, function in hooks.items():
            if not callable(function):
                raise InputError(f"LambdaCallback: {name}={function!r}: expected a function.")
        self.every = every
        vars(self).update(hooks)
