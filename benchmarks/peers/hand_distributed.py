"""By hand, on replicas: `experimental_distribute_dataset` gives each replica its part, as TensorFlow's guides do."""

import tensorflow as tf

from benchmarks.peers.hand_replicas import OnReplicas
from benchmarks.peers.hand_written import serve


class Distributed(OnReplicas):
    """An iterator of TensorFlow's over parts of batches."""

    def distribute(self, dataset: tf.data.Dataset) -> tf.distribute.DistributedDataset:
        options = tf.data.Options()
        options.experimental_distribute.auto_shard_policy = tf.data.experimental.AutoShardPolicy.DATA
        return self.strategy.experimental_distribute_dataset(dataset.with_options(options))

    def train(self, x: tf.Tensor, y: tf.Tensor) -> None:
        self.train_on_slice(x, y)


if __name__ == "__main__":
    serve(Distributed)
