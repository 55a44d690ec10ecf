"""The line of the user's code that made an operation of a graph."""

import os
from pathlib import Path

import keras
import tensorflow as tf

_FOLDERS = (Path(tf.__file__).parent, Path(keras.__file__).parent, Path(__file__).parents[1])
NOT_THE_USERS = tuple(f"{folder}{os.sep}" for folder in _FOLDERS)
"""Folders whose lines are not looked for: those of TensorFlow, Keras and looper."""


def line_of(operation: tf.Operation) -> str:
    """The innermost line of code outside TensorFlow, Keras and looper that made an operation, as "file.py:12".

    Example:
        >>> line_of(tf.function(lambda x: x + 1).get_concrete_function(tf.constant(1)).outputs[0].op).rpartition(":")[0]
        '<doctest looper.base.lines.line_of[0]>'
    """
    for frame in reversed(operation.traceback):
        if not frame.filename.startswith(NOT_THE_USERS) and "threading.py" not in frame.filename:
            return f"{Path(frame.filename).name}:{frame.lineno}"
    return "its line is not known"
