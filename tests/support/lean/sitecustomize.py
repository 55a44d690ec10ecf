"""On the path of the processes that tests start: Keras does not find what it imports wherever it is installed.

scikit-learn and matplotlib take a second of each process, a quarter of TensorFlow's import. Here a process starts as in
an installation without looper's extras; what a recipe or looper itself imports is there.
"""

import sys


class _Lean:
    """Finds nothing; where Keras looks for what it can do without, it says so."""

    @staticmethod
    def find_spec(name, path=None, target=None):
        if name in ("sklearn", "matplotlib"):
            frame = sys._getframe(1)
            while frame is not None and "importlib" in frame.f_code.co_filename:
                frame = frame.f_back
            if frame is not None and frame.f_globals.get("__name__", "").startswith("keras."):
                raise ModuleNotFoundError(f"{name}: see {__file__}", name=name)


sys.meta_path.insert(0, _Lean)
