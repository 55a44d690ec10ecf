"""The line of the user's code that is executed, or that made an operation of a graph."""

import os
import sys
from pathlib import Path

import keras
import tensorflow as tf

_FOLDERS = (Path(tf.__file__).parent, Path(keras.__file__).parent, Path(__file__).parents[1])
NOT_THE_USERS = tuple(f"{folder}{os.sep}" for folder in _FOLDERS)
"""Folders whose lines are not looked for: those of TensorFlow, Keras and looper."""

UNKNOWN = "its line is not known"


def line_here() -> str:
    """The innermost line of code outside TensorFlow, Keras and looper that is being executed, as "file.py:12".

    Example:
        >>> line_here()
        '<doctest looper.base.lines.line_here[0]>:1'
    """
    frame = sys._getframe(1)
    while frame is not None:
        if not _is_passed_over(frame.f_code.co_filename):
            return f"{Path(frame.f_code.co_filename).name}:{frame.f_lineno}"
        frame = frame.f_back
    return UNKNOWN


def _is_passed_over(file: str) -> bool:
    """Whether a file is none of the user's; AutoGraph writes such files of what it has converted."""
    others = ("threading.py", "contextlib.py", "__autograph_generated_file")
    return file.startswith(NOT_THE_USERS) or any(name in file for name in others)


def line_of(operation: tf.Operation) -> str:
    """The innermost line of code outside TensorFlow, Keras and looper that made an operation, as "file.py:12".

    Example:
        >>> line_of(tf.function(lambda x: x + 1).get_concrete_function(tf.constant(1)).outputs[0].op).rpartition(":")[0]
        '<doctest looper.base.lines.line_of[0]>'
    """
    for frame in reversed(operation.traceback):
        if not _is_passed_over(frame.filename):
            return f"{Path(frame.filename).name}:{frame.lineno}"
    return UNKNOWN
