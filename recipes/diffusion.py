"""Draw digits by taking noise away, step by step: a denoising diffusion model.

    looper run recipes/diffusion.py

The method is that of Ho et al., "Denoising Diffusion Probabilistic Models" (2020). A U-Net learns to see the noise in a
digit; pure noise becomes a digit as a little of what the network sees is taken away in each of 100 steps. What draws is
the average of the network's weights over training (`ema`). It ends with the energy distance (Szekely and Rizzo, "Energy
statistics", 2013) between the pixels of drawn and of real digits, beside that between two halves of the real ones.
"""

import dataclasses

import keras
import numpy as np
import tensorflow as tf
from scipy.spatial.distance import cdist, pdist
from sklearn.datasets import load_digits

import looper

L, ops = keras.layers, keras.ops


class Diffusion(looper.Trainer):
    """Draw digits with a denoising diffusion model."""

    @dataclasses.dataclass
    class Config:
        learning_rate: float = 2e-3
        """Peak learning rate of Adam, after a twentieth of the run; it decays to zero along a cosine."""
        noise_steps: int = 100
        """Steps from a digit to noise, and back."""
        width: int = 32
        """Channels at full size; there are twice as many at half of it."""
        watch_every: int = 500
        """Steps from one look at what is drawn to the next."""

    defaults = {"steps": 2000, "batch_size": 64, "ema": 0.995, "clip_norm": 1.0, "workdir": "runs/diffusion"}

    def build(self):
        self.model = make_network(self.config.width)
        self.optimizer = keras.optimizers.Adam(looper.CosineDecay(self, self.config.learning_rate, warmup=0.05))
        self.seeds = keras.random.SeedGenerator()
        # what is left of a digit after each step falls along a cosine: Nichol and Dhariwal, "Improved Denoising
        # Diffusion Probabilistic Models" (2021), section 3.2
        times = np.linspace(0, 1, self.config.noise_steps + 1)
        left = np.cos((times + 0.008) / 1.008 * np.pi / 2) ** 2
        self.left = np.maximum(left / left[0], 1e-4).astype("float32")

    def compute_loss(self, batch, training):
        step = keras.random.randint((tf.shape(batch)[0],), 1, self.config.noise_steps + 1, seed=self.seeds)
        noise = keras.random.normal(tf.shape(batch), dtype=batch.dtype, seed=self.seeds)
        left = tf.cast(tf.gather(self.left, step), batch.dtype)[:, None, None, None]
        seen = self.model([tf.sqrt(left) * batch + tf.sqrt(1 - left) * noise, step], training=training)
        return tf.square(tf.cast(seen, noise.dtype) - noise)

    def predict_step(self, batch):
        """Makes digits of noise: algorithm 2 of Ho et al., with the same random numbers each time."""
        left = tf.constant(self.left, batch.dtype)

        def less_noise(step, x):
            seen = tf.cast(self.model([x, tf.fill([tf.shape(x)[0]], step)], training=False), x.dtype)
            now, then = left[step], left[step - 1]
            digit = tf.clip_by_value((x - tf.sqrt(1 - now) * seen) / tf.sqrt(now), -1.0, 1.0)
            mean = (tf.sqrt(then) * (1 - now / then) * digit + tf.sqrt(now / then) * (1 - then) * x) / (1 - now)
            noise = tf.random.stateless_normal(tf.shape(x), [0, step], dtype=x.dtype)
            return step - 1, mean + tf.sqrt((1 - now / then) * (1 - then) / (1 - now)) * noise  # none at the end

        return tf.while_loop(lambda step, _: step > 0, less_noise, [self.config.noise_steps, batch])[1]

    def train_data(self):
        return digits()

    def callbacks(self):
        noise = np.random.default_rng(0).normal(size=(256, 8, 8, 1)).astype("float32")
        watch = Watch(noise, looper.Every(steps=self.config.watch_every))
        pictures = looper.callbacks.Images(lambda run: grid(watch.drawn[:64]), watch.every, tag="drawn")
        return [watch, pictures, looper.callbacks.LambdaCallback(on_fit_end=self.report)]

    def report(self):
        if "distance" not in self.history:
            return  # training was cut short
        before, now = self.history["distance"][0], self.history["distance"][-1]
        halves = energy_distance(*np.array_split(np.random.default_rng(0).permutation(digits()), 2))
        after = self.config.watch_every
        print(f"distance {now:.3f}; after {after} steps {before:.3f}; between halves of the real digits {halves:.3f}")


class Watch(looper.callbacks.Callback):
    """Logs how far drawn digits are from real ones."""

    logs = ("distance",)

    def __init__(self, noise, every):
        self.noise, self.every = noise, every

    def on_step(self, step, logs):
        self.drawn = self.run.predict(self.noise, batch_size=len(self.noise))  # a batch draws its own noise
        self.run.log("distance", energy_distance(self.drawn, digits()))


def make_network(width):
    """A U-Net: from images and the steps of noise in them to that noise."""
    image, step = keras.Input((8, 8, 1)), keras.Input((), dtype="int32")
    angles = ops.cast(step, image.dtype)[:, None] * np.geomspace(1, 0.01, 16)
    time = L.Dense(4 * width, "silu")(ops.concatenate([ops.sin(angles), ops.cos(angles)], -1))

    def block(x, channels):
        y = L.Conv2D(channels, 3, padding="same")(ops.silu(L.GroupNormalization(8)(x)))
        y = ops.silu(L.GroupNormalization(8)(y + L.Dense(channels)(time)[:, None, None]))
        y = L.Conv2D(channels, 3, padding="same", kernel_initializer="zeros")(y)
        return y + (x if x.shape[-1] == channels else L.Conv2D(channels, 1)(x))

    full = block(L.Conv2D(width, 3, padding="same")(image), width)
    half = block(L.Conv2D(2 * width, 3, 2, padding="same")(full), 2 * width)
    half = block(half, 2 * width)
    x = block(ops.concatenate([full, L.UpSampling2D()(half)], -1), width)
    x = L.Conv2D(1, 3, padding="same", kernel_initializer="zeros")(ops.silu(L.GroupNormalization(8)(x)))
    return keras.Model([image, step], x)


def grid(images):
    """One picture `[1, 64, 64]` from 0 to 1 of 64 images."""
    return (images.reshape(8, 8, 8, 8).swapaxes(1, 2).reshape(1, 64, 64) + 1) / 2


def energy_distance(a, b):
    """Twice the mean distance from one set's images to the other's, less those between different images of each set."""
    a, b = a.reshape(len(a), -1), b.reshape(len(b), -1)
    return 2 * cdist(a, b).mean() - pdist(a).mean() - pdist(b).mean()


def digits():
    """Images `[1797, 8, 8, 1]` from -1 to 1."""
    return (load_digits().images[..., None] / 8 - 1).astype("float32")


if __name__ == "__main__":
    looper.run_recipe(Diffusion)
