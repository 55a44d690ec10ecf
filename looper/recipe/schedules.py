"""A learning rate that follows the length of the run."""

import math
from collections.abc import Mapping
from typing import Any, Protocol

import keras
import tensorflow as tf

from looper.base.errors import InputError
from looper.recipe.optimizers import members


class HasLastStep(Protocol):
    """A trainer, as a schedule sees it."""

    @property
    def last_step(self) -> int | tf.Tensor:
        """The step that it trains to."""


class CosineDecay(keras.optimizers.schedules.LearningRateSchedule):
    """A learning rate that grows along a line at first, and then falls along a cosine to the end of the run.

    It is `keras.optimizers.schedules.CosineDecay` with the length of the run in place of `decay_steps`: whatever
    `epochs=` or `steps=` is, the rate reaches its end where training does. A run that is continued with a larger
    number goes on with the rate that the longer run would have at that step. Before any `fit`, as in an audit, it is
    as if the run had no end. It is for an optimizer that makes one update in each step, from the first one on: as all
    schedules it is given the number of updates. The cosine is that of Loshchilov and Hutter, "SGDR: Stochastic
    Gradient Descent with Warm Restarts", 2017, without restarts.

    Args:
        trainer: whose run it follows: `self` in `build`.
        learning_rate: the largest one, at the end of the warm-up.
        warmup: how long it grows from 0: a number of steps, or a share of the run below 1.
        alpha: the last learning rate, as a share of the largest.

    Raises:
        InputError: if an argument is out of range; when training begins, if nobody can tell how long the run is.

    Example:
        >>> class Run:
        ...     last_step = 100
        >>> rate = CosineDecay(Run(), 1.0, warmup=0.1, alpha=0.2)
        >>> [round(float(rate(step)), 2) for step in (0, 5, 10, 55, 100, 200)]
        [0.0, 0.5, 1.0, 0.6, 0.2, 0.2]
    """

    def __init__(self, trainer: HasLastStep, learning_rate: float, warmup: float = 0, alpha: float = 0.0) -> None:
        super().__init__()
        if not hasattr(trainer, "last_step"):
            raise InputError(f"CosineDecay({trainer!r}, ...): expected the trainer first: CosineDecay(self, 1e-3).")
        if not 0 < learning_rate < math.inf:
            raise InputError(f"learning_rate={learning_rate!r}: expected a number above 0, such as 1e-3.")
        if not (0 <= warmup < 1 or (warmup >= 1 and warmup == int(warmup))):
            raise InputError(f"warmup={warmup!r}: expected a number of steps, or a share of the run below 1.")
        if not 0 <= alpha <= 1:
            raise InputError(f"alpha={alpha!r}: expected a number from 0 to 1.")
        self._trainer, self.learning_rate, self.warmup, self.alpha = trainer, learning_rate, warmup, alpha

    def __call__(self, step: int | tf.Tensor) -> tf.Tensor:
        """The learning rate of the update after `step` others, a float32 scalar."""
        done, last = tf.cast(step, tf.float32), tf.cast(self._trainer.last_step, tf.float32)
        warmup = float(self.warmup) if self.warmup >= 1 else self.warmup * last
        share = tf.where(last > 0, tf.clip_by_value((done - warmup) / tf.maximum(last - warmup, 1.0), 0.0, 1.0), 0.0)
        falling = self.alpha + (1.0 - self.alpha) * 0.5 * (1.0 + tf.cos(math.pi * share))
        return self.learning_rate * tf.where(done < warmup, done / tf.maximum(warmup, 1.0), falling)

    def get_config(self) -> dict[str, float]:
        """What tells it from another one."""
        return {"learning_rate": self.learning_rate, "warmup": self.warmup, "alpha": self.alpha}


EARLY = 0.9
"""Share of a run: a schedule that has ended before is too short for it."""


def ends_early(optimizer: Any, last_step: int) -> str | None:
    """What to say of an optimizer whose learning rate has stopped falling long before the run ends; None if it has not.

    Args:
        optimizer: a Keras optimizer that makes an update in each step.
        last_step: the step at which training ends.

    Example:
        >>> schedule = keras.optimizers.schedules.CosineDecay(0.1, decay_steps=900)
        >>> ends_early(keras.optimizers.SGD(schedule), 1800)
        "the learning rate's CosineDecay ends at step 900 of 1800, and stays at 0 from there on: give \
decay_steps=1800, or take looper.CosineDecay, which follows the run's length."
        >>> ends_early(keras.optimizers.SGD(schedule), 950)
    """
    for member in members(optimizer):
        found = member.get_config().get("learning_rate")
        name, config = (found["class_name"], found["config"]) if isinstance(found, Mapping) else ("", {})
        if name not in ("CosineDecay", "PolynomialDecay") or "decay_steps" not in config or config.get("cycle"):
            continue
        # Keras 3.15 warms up only to a target, and counts each call, also those that only add up gradients
        warmup = 0 if config.get("warmup_target") is None else config.get("warmup_steps") or 0
        end = warmup + config["decay_steps"]
        if end < EARLY * last_step:
            schedule = keras.optimizers.schedules.deserialize(found)
            return (
                f"the learning rate's {name} ends at step {end} of {last_step}, and stays at "
                f"{float(schedule(end)):.4g} from there on: give decay_steps={last_step - warmup}, or take "
                "looper.CosineDecay, which follows the run's length."
            )
    return None
