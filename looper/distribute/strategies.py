"""From the options `strategy` and `devices` to one `tf.distribute.Strategy` per device set and process."""

import functools

import tensorflow as tf

from looper.errors import InputError
from looper.options import STRATEGIES


def resolve(strategy: str | tf.distribute.Strategy, devices: int | None) -> tf.distribute.Strategy:
    """The strategy to run on.

    Args:
        strategy: `"one_device"`, `"mirrored"`, `"auto"` (mirrored where there are several GPUs), or a
            `tf.distribute.MirroredStrategy` of your own.
        devices: how many local devices to mirror over (default: all). Without GPUs, the CPU is split into so many
            logical devices, which TensorFlow allows only before its first operation.

    Raises:
        InputError: if there are fewer devices, or it is too late to split the CPU.
    """
    if isinstance(strategy, tf.distribute.MultiWorkerMirroredStrategy | tf.distribute.TPUStrategy):
        raise InputError(f"strategy={type(strategy).__name__}: looper trains on one machine so far; use 'mirrored'.")
    if isinstance(strategy, tf.distribute.Strategy):
        if devices is not None:
            raise InputError(f"devices={devices} with a strategy object: it has its devices already.")
        return strategy
    if strategy not in STRATEGIES:
        raise InputError(f"strategy={strategy!r}: expected one of {', '.join(STRATEGIES)} or a strategy object.")
    # Not list_logical_devices: that starts TensorFlow, and then the CPU cannot be split.
    gpus = tf.config.list_physical_devices("GPU")
    if strategy == "one_device" or (strategy == "auto" and devices is None and len(gpus) < 2):
        if devices not in (None, 1):
            raise InputError(f"strategy='one_device' with devices={devices}: use strategy='mirrored'.")
        return tf.distribute.get_strategy()
    if gpus:
        count = devices or len(gpus)
        if count > len(gpus):
            raise InputError(f"devices={count}: this machine has {len(gpus)} GPUs.")
        return _mirrored(tuple(device.name for device in tf.config.list_logical_devices("GPU")[:count]))
    return _mirrored(_split_cpu(devices or 2))


@functools.cache
def _mirrored(devices: tuple[str, ...]) -> tf.distribute.MirroredStrategy:
    """One object per device set: TensorFlow's collectives fail if a process makes a second."""
    return tf.distribute.MirroredStrategy(list(devices))


def _split_cpu(count: int) -> tuple[str, ...]:
    physical = tf.config.list_physical_devices("CPU")[0]
    try:
        if tf.config.get_logical_device_configuration(physical) is None:
            tf.config.set_logical_device_configuration(physical, [tf.config.LogicalDeviceConfiguration()] * count)
    except RuntimeError:
        pass  # TensorFlow has started; the devices there are decide
    cpus = tf.config.list_logical_devices("CPU")
    if len(cpus) < count:
        raise InputError(
            f"strategy='mirrored' with devices={count}: TensorFlow has already started with {len(cpus)} CPU device(s). "
            "Make the Trainer before any TensorFlow operation (such as keras.Input or tf.constant), or use "
            "`looper run`."
        )
    return tuple(cpu.name for cpu in cpus[:count])
