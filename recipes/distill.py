"""Distillation: a small network learns from 100 labelled digits, and from what a large one says of them.

    looper run recipes/distill.py
    looper run recipes/distill.py --alone --workdir runs/distill/alone

The method is that of Hinton et al., "Distilling the Knowledge in a Neural Network" (2015): besides the labels the
student learns the teacher's answers, softened by a temperature. The teacher is trained here first, on all digits but
the held-out fifth. It ends with the share of these that the student gets right, beside that of the teacher; `--alone`
trains the same student without one, which is what to compare with.
"""

import dataclasses

import keras
import numpy as np
import tensorflow as tf
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

import looper

L = keras.layers


class Distill(looper.Trainer):
    """Distill a large network into a small one."""

    @dataclasses.dataclass
    class Config:
        examples: int = 100
        """Labelled digits that the student learns from."""
        alone: bool = False
        """Whether the student learns without a teacher."""
        temperature: float = 4.0
        """By how much the answers are softened."""
        teachers_share: float = 0.9
        """The weight of the teacher's answers; the labels have the rest."""
        learning_rate: float = 3e-3
        """Peak learning rate of AdamW; it decays to zero along a cosine."""

    defaults = {"epochs": 200, "batch_size": 20, "eval_every": looper.Every(epochs=20), "workdir": "runs/distill/one"}

    def build(self):
        self.model = make_network(16)
        self.optimizer = keras.optimizers.AdamW(looper.CosineDecay(self, self.config.learning_rate))
        self.metrics = [keras.metrics.SparseCategoricalAccuracy("accuracy")]
        if not self.config.alone:
            self.teacher = make_network(256, 256)
            self.teacher.trainable = False
            self.teacher.set_weights(teachers_weights(self.strategy, self.model.dtype))

    def compute_loss(self, batch, training):
        x, y = batch
        logits = self.model(x, training=training)
        self.metrics[0].update_state(y, logits)
        labels = keras.losses.sparse_categorical_crossentropy(y, logits, from_logits=True)
        if self.config.alone or not training:
            return labels
        hot, share = self.config.temperature, self.config.teachers_share
        told = tf.nn.softmax(self.teacher(x, training=False) / hot)
        softened = hot**2 * keras.losses.kl_divergence(told, tf.nn.softmax(logits / hot))
        return (1 - share) * labels + share * softened

    def train_data(self):
        (x, y), _ = digits()
        few = train_test_split(x, y, train_size=self.config.examples, stratify=y, random_state=np.random.randint(2**31))
        return few[0], few[2]

    def eval_data(self):
        return digits()[1]

    def callbacks(self):
        return [looper.callbacks.LambdaCallback(on_fit_end=self.report)]

    def report(self):
        student = self.history["eval/accuracy"][-1]
        beside = "alone"
        if not self.config.alone:
            x, y = digits()[1]
            beside = f"teacher {np.mean(self.teacher.predict(x, verbose=0).argmax(1) == y):.3f}"
        print(f"student {student:.3f} of the held-out digits right ({beside})")


def make_network(*hidden):
    return keras.Sequential([keras.Input((64,)), *(L.Dense(width, "relu") for width in hidden), L.Dense(10)])


def teachers_weights(strategy, precision):
    """The weights of the teacher, trained on all digits but the held-out ones."""
    teacher = looper.Trainer(
        model=lambda: make_network(256, 256),
        optimizer=lambda: keras.optimizers.AdamW(1e-3, weight_decay=0.1),
        loss=lambda: keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        strategy=strategy,
        precision="float64" if precision == "float64" else "float32",
    )
    teacher.fit(digits()[0], epochs=30, batch_size=32, progress=False)
    return teacher.model.get_weights()


def digits():
    """Digits of 64 numbers from 0 to 1, and what they show: to train with, and a fifth that is held out."""
    x, y = load_digits(return_X_y=True)
    x, x_held_out, y, y_held_out = train_test_split(
        (x / 16).astype("float32"), y, test_size=0.2, stratify=y, random_state=0
    )
    return (x, y), (x_held_out, y_held_out)


if __name__ == "__main__":
    looper.run_recipe(Distill)
