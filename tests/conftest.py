"""Two logical CPUs before TensorFlow starts, so that every test can run on one device or on two replicas."""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import tensorflow as tf

cpu = tf.config.list_physical_devices("CPU")[0]
tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)

collect_ignore = ["load_without_looper.py"]  # a script for a process of its own, without looper
