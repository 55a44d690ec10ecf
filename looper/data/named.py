"""Several sets of evaluation data, each with a name of its own."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from looper.base.errors import InputError


@dataclasses.dataclass(frozen=True, eq=False)
class Named:
    """Several sets as `named` returns them.

    Attributes:
        sets: data by name.
    """

    sets: Mapping[str, Any]


def named(*unnamed: Any, **sets: Any) -> Named:
    """Several sets to evaluate on, for `fit(eval_data=...)`, `evaluate` and a recipe's `eval_data()`.

    Each is evaluated by itself, one after the other. The logs of a set have its name: `eval/val/loss`, `eval/ood/loss`.

    Args:
        unnamed: none; data without a name is an error.
        sets: data as `fit` takes it, by name.

    Raises:
        InputError: if there is none, or a set has no name, or one that is empty or has a slash in it.

    Example:
        >>> import keras, looper, numpy as np
        >>> x, y = np.ones((8, 2), "float32"), np.ones((8, 1), "float32")
        >>> trainer = looper.Trainer(model=keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)]), loss="mse")
        >>> sorted(trainer.evaluate(named(val=(x, y), ood=(2 * x[:3], y[:3]))))
        ['ood/examples', 'ood/loss', 'val/examples', 'val/loss']
    """
    if unnamed or not sets:
        given = "data without a name" if unnamed else "no data"
        raise InputError(f"named() was given {given}: expected sets by name, as in named(val=(x, y), ood=dataset).")
    for name in sets:
        if not name or "/" in name:
            raise InputError(f"named() has a set called {name!r}: expected a name without a slash, such as 'val'.")
    return Named(sets)
