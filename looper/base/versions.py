"""Which versions are installed, read without an import of what they are of."""

import platform
import re
from importlib import metadata

from looper.base.errors import InputError

KERAS_NEEDED = (3, 15)
"""The oldest Keras whose private names are those that looper uses."""


def installed(distribution: str) -> str | None:
    """The version of a distribution; None if it is not installed under this name.

    Example:
        >>> installed("no-such-distribution") is None
        True
    """
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def describe_versions() -> str:
    """The versions that matter here, in one line: what `looper --version` prints.

    Example:
        >>> describe_versions()  # doctest: +ELLIPSIS
        'looper ..., TensorFlow ..., Keras ..., Python ...'
    """
    named = {"looper": "looper-tf", "TensorFlow": "tensorflow", "Keras": "keras"}
    found = [f"{name} {installed(distribution) or 'unknown'}" for name, distribution in named.items()]
    return ", ".join([*found, f"Python {platform.python_version()}"])


def check_keras() -> None:
    """Raises `InputError` if the installed Keras is too old.

    It reads the version only, so that it can be called before Keras is imported. A Keras that is installed under
    another name, such as a nightly build, is taken as it is.
    """
    found = installed("keras")
    numbers = re.match(r"(\d+)\.(\d+)", found or "")
    if numbers and tuple(map(int, numbers.groups())) < KERAS_NEEDED:
        needed = ".".join(map(str, KERAS_NEEDED))
        raise InputError(f"Keras {found} is installed, and looper needs {needed} or newer: pip install -U keras.")
