"""Keras' `Model.fit` as a worker of a cluster, as TensorFlow's tutorial has it ("Multi-worker training with Keras").

Run as `python -m tests.support.keras_fit_on_a_worker` on each worker, with its TF_CONFIG. Prints in one line how it
ended.
"""

import keras
import numpy as np
import tensorflow as tf


def main():
    strategy = tf.distribute.MultiWorkerMirroredStrategy()  # before everything else that is TensorFlow's
    random = np.random.default_rng(0)
    x, y = random.random((64, 28, 28), dtype="float32"), random.integers(0, 10, 64)
    data = tf.data.Dataset.from_tensor_slices((x, y)).shuffle(64).repeat().batch(16)
    with strategy.scope():
        layers = [
            keras.Input((28, 28)),
            keras.layers.Reshape((28, 28, 1)),
            keras.layers.Conv2D(8, 3, activation="relu"),
            keras.layers.Flatten(),
            keras.layers.Dense(10),
        ]
        model = keras.Sequential(layers)
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        model.compile(loss=loss, optimizer=keras.optimizers.SGD(0.001), metrics=["accuracy"])
    try:
        model.fit(data, epochs=1, steps_per_epoch=2, verbose=0)
    except ValueError as error:
        print("fit raised ValueError:", str(error).splitlines()[0], flush=True)
    else:
        print("fit trained", flush=True)


if __name__ == "__main__":
    main()
