"""How results are written: with the machine, the versions, and the command that made them with its options."""

import json
import platform
import shlex
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import keras
import tensorflow as tf


def save(path: Path, result: Mapping[str, Any], module: str) -> str:
    """Writes a result as JSON, and returns what was written.

    Args:
        path: the file.
        result: what was measured.
        module: of the command, such as "benchmarks.hot_step".
    """
    made_by = {
        "machine": {"processor": platform.processor() or platform.machine(), "python": platform.python_version()},
        "versions": {"tensorflow": tf.__version__, "keras": keras.__version__},
        "command": shlex.join(["python", "-m", module, *sys.argv[1:]]),
    }
    text = json.dumps({**result, **made_by}, indent=1, default=float)
    path.write_text(text + "\n")
    return text
