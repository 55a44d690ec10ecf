"""The clock of compiled steps, which TensorFlow refuses to read while its operations are to be deterministic."""

import tensorflow as tf


def may_be_read() -> bool:
    """Whether `tf.timestamp` runs: not after `tf.config.experimental.enable_op_determinism()`.

    Example:
        >>> may_be_read()
        True
    """
    with tf.init_scope():  # also while a function is traced
        try:
            tf.timestamp()
        except tf.errors.FailedPreconditionError:
            return False
    return True
