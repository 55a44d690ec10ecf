"""Classify 8x8 handwritten digits: a small convolutional network with batch normalization and dropout.

The data is scikit-learn's bundled digits (1,797 images); a stratified, seeded fifth is held out for evaluation.

    looper run recipes/digits.py --epochs 20 --workdir runs/digits
"""

import dataclasses

import keras
import numpy as np
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

import looper


class Digits(looper.Trainer):
    """Classify handwritten digits."""

    @dataclasses.dataclass
    class Config:
        learning_rate: float = 2e-3
        """Peak learning rate of AdamW; it decays to zero along a cosine."""
        dropout: float = 0.3
        """Rate of the dropout before the last layer."""
        synchronized_bn: bool = False
        """Batch normalization over the whole batch, on several replicas or workers."""
        split_seed: int = 0
        """Seed of the split into training and evaluation data."""

    defaults = {"epochs": 20, "workdir": "runs/digits"}

    def build(self):
        layers = keras.layers
        self.model = keras.Sequential([keras.Input((8, 8, 1))])
        for filters, strides in (32, 1), (64, 2), (64, 2):
            self.model.add(layers.Conv2D(filters, 3, strides, padding="same", use_bias=False))
            self.model.add(layers.BatchNormalization(momentum=0.9, synchronized=self.config.synchronized_bn))
            self.model.add(layers.Activation("silu"))  # smooth: a ReLU makes differences of rounding grow
        self.model.add(layers.GlobalAveragePooling2D())
        self.model.add(layers.Dropout(self.config.dropout))
        self.model.add(layers.Dense(10))
        self.optimizer = keras.optimizers.AdamW(looper.CosineDecay(self, self.config.learning_rate))
        self.loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        self.metrics = [keras.metrics.SparseCategoricalAccuracy("accuracy")]

    def train_data(self):
        return self._split()[0]

    def eval_data(self):
        return self._split()[1]

    def _split(self):
        digits = load_digits()
        x = (digits.images[..., None] / 16.0).astype(np.float32)
        y = digits.target.astype(np.int32)
        x, x_held_out, y, y_held_out = train_test_split(
            x, y, test_size=0.2, stratify=y, random_state=self.config.split_seed
        )
        return (x, y), (x_held_out, y_held_out)


if __name__ == "__main__":
    looper.run_recipe(Digits)
