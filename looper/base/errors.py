"""The errors that looper raises for its users, and the wording that they share."""

import difflib
import numbers
import re
from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import Any

KERAS_NAMES = {
    "validation_data": ("eval_data", "looper calls it eval_data"),
    "validation_steps": ("eval_steps", "looper calls it eval_steps"),
    "validation_freq": ("eval_every", "looper calls it eval_every, as in eval_every=looper.Every(epochs=2)"),
    "verbose": ("progress", "looper calls it progress, as in progress=False"),
    "initial_epoch": ("epochs", "a run continues by itself from its workdir, until epochs are done in all"),
    "x": ("train_data", "give the data as one argument, such as fit((x, y))"),
    "y": ("train_data", "give the data as one argument, such as fit((x, y))"),
    "sample_weight": ("train_data", "give the data as one argument, such as fit((x, y, sample_weight))"),
}
"""Options of Keras' `fit`: looper's option in its place, and what to do."""


PUBLIC = "looper.errors"
"""Where users find these errors, and what a traceback shows: a name that stays."""


class InputError(ValueError):
    """Something a user gave is wrong: the message says what was given, what was expected and what to do."""

    __module__ = PUBLIC


class SaveError(InputError):
    """A checkpoint, or another file of a run, could not be written; the message says why and what to do."""

    __module__ = PUBLIC


class NonFiniteLossError(ArithmeticError):
    """The training loss became NaN or infinite; the message names the step."""

    __module__ = PUBLIC


class StepError(RuntimeError):
    """Steps failed inside TensorFlow; the message says which, and the error's cause is TensorFlow's own."""

    __module__ = PUBLIC


class Interrupted(KeyboardInterrupt):
    """Ctrl-C, when everything is saved; the message names the step. A notebook shows the message alone."""

    __module__ = PUBLIC

    def _render_traceback_(self) -> list[str]:
        """What IPython shows in place of a traceback: its own name for it."""
        return [f"looper: {self}"]


class PeerLostError(StepError):
    """Another worker of the job is gone or cannot be reached; the message names it. Start all again."""

    __module__ = PUBLIC


def nearest(name: str, names: Iterable[str]) -> str:
    """Names the valid choice closest to `name`, and all of them.

    Example:
        >>> nearest("eval/los", ["loss", "eval/loss"])
        "did you mean 'eval/loss'? One of: 'eval/loss', 'loss'"
    """
    names = sorted(names)
    containing = [other for other in names if len(name) > 2 and (name in other or other in name)]
    close = containing if len(containing) == 1 else difflib.get_close_matches(name, names, n=1)
    listed = "ne of: " + ", ".join(map(repr, names))
    return f"did you mean {close[0]!r}? O{listed}" if close else f"o{listed}"


def check_known(
    where: str,
    unknown: Iterable[str],
    names: Iterable[str],
    elsewhere: Mapping[str, Iterable[str]] = MappingProxyType({}),
) -> None:
    """Raises `InputError` if there are any unknown option names.

    The message has what takes such an option, if it is in `elsewhere`; else the nearest valid name.

    Example:
        >>> check_known("fit", {}, ["epochs"])
    """
    names = list(names)
    for name in unknown:
        for other, theirs in elsewhere.items():
            if name in theirs:
                raise InputError(f"{where} has no option {name!r}: it is an option of {other}.")
        ours, remedy = KERAS_NAMES.get(name, (None, ""))
        if ours in names:
            raise InputError(f"{where} has no option {name!r}: {remedy}.")
        raise InputError(f"{where} has no option {name!r}: {nearest(name, names)}.")


def check_choice(option: str, value: object, choices: Iterable[str]) -> None:
    """Raises `InputError` unless `value` is one of `choices`.

    Example:
        >>> check_choice("precision", "float32", ["float32", "float64"])
    """
    choices = list(choices)
    if value not in choices:
        raise InputError(f"{option}={value!r}: {nearest(str(value), choices)}.")


def check_positive(option: str, value: object, kind: type = int) -> None:
    """Raises `InputError` unless `value` is None or a positive number of this kind.

    Example:
        >>> check_positive("epochs", 3)
    """
    accepted: Any = numbers.Integral if kind is int else numbers.Real  # NumPy's numbers too
    if value is None or (isinstance(value, accepted) and not isinstance(value, bool) and value > 0):
        return
    what = "a positive whole number" if kind is int else "a positive number"
    raise InputError(f"{option}={value!r}: expected {what}.")


def check_patience(value: object) -> None:
    """Raises `InputError` unless `patience=` is a whole number of at least 0, where 0 means as much as 1.

    Example:
        >>> check_patience(0)
    """
    if not isinstance(value, numbers.Integral) or isinstance(value, bool) or value < 0:
        raise InputError(f"patience={value!r}: expected a whole number of at least 0.")


def first_line(error: BaseException) -> str:
    """The first line of an error's message that says something, without TensorFlow's stack of graph nodes.

    Example:
        >>> first_line(ValueError("\\n  Shapes differ: 2 and 3\\nmore"))
        'Shapes differ: 2 and 3'
        >>> first_line(ValueError("2 root error(s) found.\\n  (0) INVALID_ARGUMENT:  index out of bounds\\n  (1)"))
        'index out of bounds'
        >>> first_line(ValueError("{{function_node __wrapped__Gather}} indices[0] = 8 is not in [0, 5) [Op:Gather]"))
        'indices[0] = 8 is not in [0, 5)'
    """
    lines = [re.sub(r"\x1b\[[0-9;]*m", "", line).strip() for line in str(error).splitlines()]
    noise_before = r"^\(\d+\) [A-Z_]+:\s*|^\d+ root error\(s\) found\.$|^\{\{function_node [^}]*\}\}\s*"
    lines = [re.sub(r"\s*\[Op:\w+\]( name: ?\S*)?$", "", re.sub(noise_before, "", line)) for line in lines]
    frames = [i for i, line in enumerate(lines) if line.startswith('File "')]
    said = lines[frames[-1] + 1 :] if frames else lines
    noise = r"$|[\^~]|\{\{|in user code|raise |<stack|Exception encountered|Graph execution error|Detected at node"
    return next((line for line in said if not re.match(noise, line)), type(error).__name__)
