"""The errors that looper raises for its users. `except looper.errors.InputError` and the like.

Example:
    >>> import looper
    >>> InputError is looper.InputError
    True
"""

from looper.base.errors import InputError, Interrupted, NonFiniteLossError, PeerLostError, SaveError, StepError

__all__ = ["InputError", "Interrupted", "NonFiniteLossError", "PeerLostError", "SaveError", "StepError"]
