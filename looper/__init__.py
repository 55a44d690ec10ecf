"""looper: a training loop for TensorFlow 2 and Keras 3.

    class Digits(looper.Trainer):
        def build(self):
            self.model = keras.Sequential([...])
            self.optimizer = keras.optimizers.AdamW(1e-3)
            self.loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)

    Digits(workdir="runs/digits").fit((x, y), epochs=10, eval_data=(x_test, y_test))

The names below are loaded when they are first used: importing looper does not import TensorFlow.
"""

import importlib
import sys
from typing import TYPE_CHECKING

from looper.base import xla_cache
from looper.base.say import open_missing_descriptors
from looper.base.schedule import At, Every
from looper.errors import InputError, NonFiniteLossError

if TYPE_CHECKING:
    from looper import callbacks, data, errors
    from looper.cli import run_recipe
    from looper.recipe.freezing import freeze, unfreeze
    from looper.recipe.learning_rates import scale_learning_rate
    from looper.recipe.schedules import CosineDecay
    from looper.trainer import Trainer

    __version__: str

__all__ = [
    "At",
    "CosineDecay",
    "Every",
    "InputError",
    "NonFiniteLossError",
    "Trainer",
    "callbacks",
    "data",
    "errors",
    "freeze",
    "run_recipe",
    "scale_learning_rate",
    "unfreeze",
]

open_missing_descriptors()
xla_cache.announce()

_LAZY = {
    "Trainer": "looper.trainer",
    "run_recipe": "looper.cli",
    "freeze": "looper.recipe.freezing",
    "unfreeze": "looper.recipe.freezing",
    "scale_learning_rate": "looper.recipe.learning_rates",
    "CosineDecay": "looper.recipe.schedules",
    "callbacks": "looper.callbacks",
    "data": "looper.data",
}


if not TYPE_CHECKING:  # a type checker takes the names above, and tells of any other

    def __getattr__(name: str) -> object:
        if name == "__version__":
            from looper.base.versions import installed

            return installed("looper-tf") or "unknown"
        if name not in _LAZY:
            raise AttributeError(f"module 'looper' has no attribute {name!r}")
        if _LAZY[name] not in sys.modules and name != "run_recipe":  # the command line checks for itself
            from looper.base.versions import check_keras

            check_keras()
        module = importlib.import_module(_LAZY[name])
        return module if name in ("callbacks", "data") else getattr(module, name)


def __dir__() -> list[str]:
    return __all__
