"""The trainer's number format: a scoped Keras dtype policy, and the dynamic loss scale of float16."""

import contextlib
from collections.abc import Iterator

import keras
import tensorflow as tf


@contextlib.contextmanager
def scope(precision: str) -> Iterator[None]:
    """Makes `precision` Keras' dtype policy inside the `with`, and puts the old one back after it.

    `float64` also sets Keras' `floatx`, because losses and metrics take their dtype from there.
    Keras keeps the policy per thread: enter this in the thread that builds layers.

    Example:
        >>> with scope("mixed_bfloat16"):
        ...     layer = keras.layers.Dense(2)
        >>> layer.compute_dtype, keras.config.dtype_policy().name
        ('bfloat16', 'float32')
    """
    policy, floatx = keras.config.dtype_policy(), keras.config.floatx()
    keras.config.set_floatx("float64" if precision == "float64" else "float32")
    keras.config.set_dtype_policy(precision)
    try:
        yield
    finally:
        keras.config.set_floatx(floatx)
        keras.config.set_dtype_policy(policy)


class LossScale:
    """A dynamic loss scale: halved at non-finite gradients, doubled after `growth_steps` finite steps in a row.

    The rule, and the defaults, are those of `keras.optimizers.LossScaleOptimizer` (Micikevicius et al.,
    "Mixed Precision Training", 2018, section 3.2), but that it never falls below 1, as in Keras 2: at 0 nothing could
    be trained any more. Make it inside the strategy's scope.

    Attributes:
        scale: `tf.Variable`, float32 scalar, the factor that the loss is multiplied by.
        good_steps: `tf.Variable`, int32 scalar, finite steps since the scale last changed.
    """

    def __init__(self, initial: float = 2.0**15, growth_steps: int = 2000) -> None:
        self.growth_steps = growth_steps
        self.scale = tf.Variable(initial, dtype=tf.float32, trainable=False, name="loss_scale")
        self.good_steps = tf.Variable(0, dtype=tf.int32, trainable=False, name="good_steps")

    @property
    def variables(self) -> list[tf.Variable]:
        """The variables that must survive a restart."""
        return [self.scale, self.good_steps]

    def update(self, finite: tf.Tensor) -> None:
        """Takes note of one step; `finite` is a bool scalar. Call it in cross-replica context."""
        grow = finite & (self.good_steps >= self.growth_steps - 1)
        halved = tf.maximum(self.scale / 2.0, 1.0)
        self.scale.assign(tf.where(grow, self.scale * 2.0, tf.where(finite, self.scale, halved)))
        self.good_steps.assign(tf.where(grow | ~finite, 0, self.good_steps + 1))
