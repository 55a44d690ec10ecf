"""The line of the user's code that is executed, or that made an operation of a graph."""

import contextlib
import importlib.util
import os
import re
import site
import sys
import sysconfig
import warnings
from collections.abc import Iterator
from pathlib import Path
from types import FrameType, TracebackType
from typing import TYPE_CHECKING

from looper.base.errors import InputError, NonFiniteLossError, StepError

if TYPE_CHECKING:  # the command line reads lines of errors, too, and needs no TensorFlow for most of its own
    import tensorflow as tf

_MODULES = ("concurrent.futures", "tensorflow", "keras", "looper")
_FOLDERS = [Path(importlib.util.find_spec(name).origin).parent for name in _MODULES]
NOT_THE_USERS = tuple(f"{folder}{os.sep}" for folder in _FOLDERS)
"""Folders whose lines are not looked for: those of TensorFlow, Keras and looper, and of threads that looper starts."""

_LIBRARIES = tuple(
    f"{folder}{os.sep}"
    for folder in (
        *map(sysconfig.get_path, ("stdlib", "platstdlib", "purelib", "platlib")),
        *site.getsitepackages(),
        site.getusersitepackages(),
    )
)
"""Folders of code that the user may have called, and has not written."""

UNKNOWN = "its line is not known"


def line_here() -> str:
    """The innermost line of code outside TensorFlow, Keras and looper that is being executed, as "file.py:12".

    Example:
        >>> line_here()
        '<doctest looper.base.lines.line_here[0]>:1'
    """
    frame, _ = _users_frame()
    return UNKNOWN if frame is None else f"{Path(frame.f_code.co_filename).name}:{frame.f_lineno}"


def warn(message: str) -> None:
    """Warns, at the innermost line of code outside TensorFlow, Keras and looper that is being executed.

    Example:
        >>> import warnings
        >>> with warnings.catch_warnings(record=True) as caught:
        ...     warnings.simplefilter("always")
        ...     warn("careful")
        >>> str(caught[0].message), caught[0].category.__name__
        ('careful', 'UserWarning')
    """
    frame, level = _users_frame()
    warnings.warn(message, stacklevel=2 if frame is None else level)


def _users_frame() -> tuple[FrameType | None, int]:
    """The innermost frame of such code, or None, and its level as the caller of this counts, who is 1."""
    frame, level = sys._getframe(1), 1
    while frame is not None and _is_passed_over(frame.f_code.co_filename):
        frame, level = frame.f_back, level + 1
    return frame, level


def _is_passed_over(file: str) -> bool:
    """Whether a file is none of the user's; AutoGraph writes such files of what it has converted.

    `<string>` is that of methods that `dataclasses` has made.
    """
    name = os.path.basename(file)
    others = name in ("threading.py", "contextlib.py", "<string>") or name.startswith(
        ("__autograph_generated_file", "<frozen ")
    )
    return others or file.startswith(NOT_THE_USERS)


def line_of_error(error: BaseException, libraries: bool = True) -> str | None:
    """The user's innermost line that an error comes from, as "file.py:12", or None.

    That is where an operation was made that failed in a graph, which TensorFlow tells in the error's text, else where
    the error was raised. The line that called looper is not looked at.

    Args:
        error: see above.
        libraries: whether a line of an installed library counts where there is no other.

    Example:
        >>> try:
        ...     exec(compile("1 / 0", "recipe.py", "exec"))
        ... except ZeroDivisionError as error:
        ...     line_of_error(error)
        'recipe.py:1'
    """
    if isinstance(error, SyntaxError) and error.filename:  # it is raised by who reads the file
        return f"{Path(error.filename).name}:{error.lineno}"
    for each in _chain(error):
        seen = [(tb.tb_frame.f_code.co_filename, tb.tb_lineno) for tb in _tracebacks(each.__traceback__)]
        for lines in (*_stacks_told(str(each)), seen):
            ours = [i for i, (file, _) in enumerate(lines) if file.startswith(NOT_THE_USERS[-1])]
            below = lines[ours[0] :] if ours else lines  # what is before is the call of looper
            of_user = [(file, line) for file, line in below if not _is_passed_over(file)]
            own = [(file, line) for file, line in of_user if not file.startswith(_LIBRARIES)]
            for file, line in (own or of_user if libraries else own)[-1:]:
                return f"{Path(file).name}:{line}"
    return None


def is_raised_there(error: BaseException) -> bool:
    """Whether the user's own code raised an error, and not what it called; known before it was shortened.

    Example:
        >>> try:
        ...     1 / 0
        ... except ZeroDivisionError as error:
        ...     is_raised_there(error)
        True
    """
    known = getattr(error, "looper_by_user", None)
    frames = list(_tracebacks(error.__traceback__))
    if known is not None or not frames:
        return bool(known)
    file = frames[-1].tb_frame.f_code.co_filename
    return not (_is_passed_over(file) or file.startswith(_LIBRARIES))


def _stacks_told(text: str) -> Iterator[list[tuple[str, int]]]:
    """The stacks that an error of TensorFlow tells, each as files and lines, the innermost last."""
    found: list[tuple[str, int]] = []
    for line in text.splitlines():
        frame = re.match(r'\s*File "(.+?)", line (\d+)', line)
        if frame:
            file = f"/{frame[1].lstrip('/')}"  # XLA leaves the first character out
            found.append((file if os.path.exists(file) else frame[1], int(frame[2])))
        elif found and line and not line.startswith("    "):  # which would be the code of that line
            yield found
            found = []
    if found:
        yield found


def shorten(error: BaseException) -> None:
    """Leaves only the user's frames in the tracebacks of an error and its causes.

    Where there are none, the error is not the recipe's, and its traceback stays, but for an error of looper's own,
    whose message says all. `keras.config.disable_traceback_filtering()` keeps all of them.
    """
    with contextlib.suppress(AttributeError):  # of an error that takes no attributes
        error.looper_by_user = is_raised_there(error)  # type: ignore[attr-defined]
    keras = sys.modules.get("keras")
    if keras is not None and not keras.config.is_traceback_filtering_enabled():
        return
    for each in _chain(error):
        users = _users_frames(each.__traceback__)
        if users is not None or isinstance(each, InputError | StepError | NonFiniteLossError):
            each.__traceback__ = users


def _users_frames(traceback: TracebackType | None) -> TracebackType | None:
    """The frames of the user and of libraries; None if all are of libraries."""
    found, own = None, False
    for each in reversed(list(_tracebacks(traceback))):
        file = each.tb_frame.f_code.co_filename
        if not _is_passed_over(file):
            found = TracebackType(found, each.tb_frame, each.tb_lasti, each.tb_lineno)
            own |= not file.startswith(_LIBRARIES)
    return found if own else None


def _tracebacks(traceback: TracebackType | None) -> Iterator[TracebackType]:
    while traceback is not None:
        yield traceback
        traceback = traceback.tb_next


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """An error, its cause, that one's cause, and so on; where there is none, what was being handled."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        yield error
        seen.add(id(error))
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)


def line_of(operation: "tf.Operation") -> str:
    """The innermost line of code outside TensorFlow, Keras and looper that made an operation, as "file.py:12".

    Example:
        >>> import tensorflow as tf
        >>> line_of(tf.function(lambda x: x + 1).get_concrete_function(tf.constant(1)).outputs[0].op).rpartition(":")[0]
        '<doctest looper.base.lines.line_of[1]>'
    """
    for frame in reversed(operation.traceback):
        if not _is_passed_over(frame.filename):
            return f"{Path(frame.filename).name}:{frame.lineno}"
    return UNKNOWN
