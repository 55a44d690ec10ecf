"""What the hand-written peers on several replicas have in common: the strategy, and a replica's step."""

import tensorflow as tf

from benchmarks.peers import keras_models
from benchmarks.peers.hand_written import HandWritten
from benchmarks.peers.line import Settings


def make_strategy(given: Settings) -> tf.distribute.Strategy:
    """The strategy, as by hand: all GPUs that are wanted, or the CPU split into so many."""
    if given.strategy == "one_device":
        return tf.distribute.get_strategy()
    if given.strategy == "multi_worker":
        return tf.distribute.MultiWorkerMirroredStrategy()
    cpus, gpus = (tf.config.list_physical_devices(kind) for kind in ("CPU", "GPU"))
    if gpus:
        return tf.distribute.MirroredStrategy([f"GPU:{i}" for i in range(given.replicas)])
    tf.config.set_logical_device_configuration(cpus[0], [tf.config.LogicalDeviceConfiguration()] * given.replicas)
    return tf.distribute.MirroredStrategy([f"CPU:{i}" for i in range(given.replicas)])


class OnReplicas(HandWritten):
    """A model on replicas that loops over an iterator in a compiled call. Keras' optimizer sums the gradients.

    Args:
        given: what to train, and how much of it.
    """

    def __init__(self, given: Settings) -> None:
        self.strategy = make_strategy(given)
        with self.strategy.scope():
            super().__init__(given)
            self.loss = tf.keras.losses.SparseCategoricalCrossentropy(from_logits=True, reduction=None)
        self.slice = given.problem.batch // given.replicas
        dataset = keras_models.dataset(given.problem).prefetch(tf.data.AUTOTUNE)
        self.iterator = iter(self.distribute(dataset))

    def distribute(self, dataset: tf.data.Dataset) -> tf.data.Dataset:
        """What to iterate over: here, whole batches on every worker."""
        return dataset

    def train(self, x: tf.Tensor, y: tf.Tensor) -> None:
        """One step of one replica; `x` and `y` are whole batches."""
        first = self.slice * tf.distribute.get_replica_context().replica_id_in_sync_group
        self.train_on_slice(x[first : first + self.slice], y[first : first + self.slice])

    def train_on_slice(self, x: tf.Tensor, y: tf.Tensor) -> None:
        """One step of one replica; `x` and `y` are its own examples."""
        with tf.GradientTape() as tape:
            outputs = self.model(x, training=True)
            losses = self.loss(y, outputs)
            loss = tf.reduce_sum(losses) / self.given.problem.batch
        variables = self.model.trainable_variables
        self.optimizer.apply(tape.gradient(loss, variables), variables)
        self.mean_loss.update_state(losses)
        self.accuracy.update_state(y, outputs)

    @tf.function
    def steps(self, iterator, count):
        for _ in tf.range(count):
            self.strategy.run(self.train, args=next(iterator))

    def burst(self) -> None:
        for _ in range(self.given.calls):
            self.steps(self.iterator, tf.constant(self.given.steps_per_call))
