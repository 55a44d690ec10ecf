"""TensorFlow's start: it takes seconds, and writes lines to the terminal that say nothing about the run."""

import contextlib
import os
import sys
import tempfile
from collections.abc import Iterator

from looper.launch.launched import REPORT


def start_tensorflow() -> None:
    """Imports TensorFlow and finds its devices, with a line before that says so.

    What TensorFlow writes meanwhile is shown if it fails, or if `TF_CPP_MIN_LOG_LEVEL` is 0 or 1. A worker of a
    launcher writes into its log what there is.
    """
    if "tensorflow" in sys.modules or REPORT in os.environ:
        return
    print("looper: importing TensorFlow ...", file=sys.stderr, flush=True)
    shown = sys.stderr is None or os.environ.get("TF_CPP_MIN_LOG_LEVEL") in ("0", "1")
    with contextlib.nullcontext() if shown else _held_back():
        import tensorflow as tf

        tf.config.list_physical_devices()


@contextlib.contextmanager
def _held_back() -> Iterator[None]:
    """Shows what is written to standard error, by C++ too, only after an error."""
    sys.stderr.flush()
    terminal = os.dup(2)
    with tempfile.TemporaryFile() as held:
        os.dup2(held.fileno(), 2)
        try:
            yield
        except BaseException:
            held.seek(0)
            os.write(terminal, held.read())
            raise
        finally:
            os.dup2(terminal, 2)
            os.close(terminal)
