"""Strategies: which devices of this machine a trainer runs on; and the launcher of several workers.

`resolve` is loaded when it is first used: the launcher works without TensorFlow.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from looper.distribute.strategies import resolve

__all__ = ["resolve"]


def __getattr__(name: str) -> object:
    if name != "resolve":
        raise AttributeError(f"module 'looper.distribute' has no attribute {name!r}")
    from looper.distribute.strategies import resolve

    return resolve
