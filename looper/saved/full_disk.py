"""What to say where a file of a run cannot be written: on a full disk, in a folder that is gone or read-only."""

import contextlib
import errno
import shutil
from collections.abc import Iterator
from pathlib import Path

import tensorflow as tf

from looper.base.errors import SaveError, first_line
from looper.base.shown_path import shown_path

OF_FILES = (
    tf.errors.ResourceExhaustedError,
    tf.errors.NotFoundError,
    tf.errors.PermissionDeniedError,
    tf.errors.FailedPreconditionError,
    tf.errors.UnknownError,
    tf.errors.InternalError,
    tf.errors.DataLossError,
)
"""What TensorFlow raises where it cannot write a file."""

FULL = (errno.ENOSPC, errno.EDQUOT)

ROOM = 1 << 20
"""Bytes: with less free, a disk is full."""


def reason(error: Exception, folder: Path, needed: int | None = None) -> str:
    """Why something cannot be written, with the room that there is where that is why.

    Args:
        error: of Python or TensorFlow.
        folder: where to.
        needed: bytes that it takes, if that is known.

    Example:
        >>> reason(OSError(errno.EROFS, "Read-only file system"), Path("/tmp"))
        'Read-only file system'
    """
    if isinstance(error, OSError):
        said, full = error.strerror or str(error), error.errno in FULL
    else:
        said = first_line(error).rpartition("; ")[2]
        full = isinstance(error, tf.errors.ResourceExhaustedError) or "No space left" in said
    if not full:
        return said
    with contextlib.suppress(OSError):
        free = f"{shutil.disk_usage(folder).free / 1e6:,.1f} MB are free"
        return f"{said}, {free}" + ("" if needed is None else f" and it takes about {needed / 1e6:,.1f} MB")
    return said


@contextlib.contextmanager
def telling_of_files(folder: Path) -> Iterator[None]:
    """Inside it, an error of the system about a file of this folder is a `SaveError` of one line.

    Example:
        >>> with telling_of_files(Path("/nowhere")):
        ...     Path("/nowhere/file").write_text("x")
        Traceback (most recent call last):
        looper.errors.SaveError: /nowhere/file cannot be read or written (No such file or directory): see to it and \
start the same command again, which continues from the last checkpoint.
    """
    try:
        yield
    except OSError as error:
        name = error.filename if isinstance(error.filename, str) else None
        here = _is_full(folder) and error.errno in FULL if name is None else Path(name).is_relative_to(folder)
        if not here:
            raise
        what = shown_path(folder) if name is None else shown_path(Path(name))
        raise SaveError(
            f"{what} cannot be read or written ({reason(error, folder)}): see to it and start the same command again, "
            "which continues from the last checkpoint."
        ) from error


def _is_full(folder: Path) -> bool:
    try:
        return shutil.disk_usage(folder).free < ROOM
    except OSError:
        return True
