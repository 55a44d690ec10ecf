"""Draw digits with a DCGAN: two networks, each with an optimizer of its own, train against each other.

    looper run recipes/gan.py
    looper run recipes/gan.py --gradient-penalty 1 --workdir runs/gan_penalty

The networks follow Radford et al., "Unsupervised Representation Learning with Deep Convolutional Generative Adversarial
Networks" (2015). How far drawn digits are from real ones is measured as in Heusel et al., "GANs Trained by a Two
Time-Scale Update Rule Converge to a Local Nash Equilibrium" (2017): by Frechet's distance between two normal
distributions, which have the means and covariances of a network's features. Their network is Inception; the one here is
small and reads digits. It ends with that distance, beside the one between two halves of the real digits.
"""

import dataclasses

import keras
import numpy as np
import tensorflow as tf
from sklearn.datasets import load_digits
from sklearn.neural_network import MLPClassifier

import looper

L = keras.layers


class Gan(looper.Trainer):
    """Draw digits with a DCGAN."""

    @dataclasses.dataclass
    class Config:
        learning_rate: float = 5e-4
        """Learning rate of both optimizers."""
        latent: int = 32
        """Random numbers that a digit is made of."""
        gradient_penalty: float = 0.0
        """Weight of the discriminator's squared slope at real digits (R1; Mescheder et al., 2018); 0: none."""
        watch_every: int = 400
        """Steps from one look at what is drawn to the next."""

    defaults = {"steps": 4000, "batch_size": 64, "workdir": "runs/gan"}

    def build(self):
        self.generator = make_generator(self.config.latent)
        # the slope at one digit is to depend on that digit alone: with a penalty nothing is normalized over a batch
        self.discriminator = make_discriminator(normalized=not self.config.gradient_penalty)
        rate = self.config.learning_rate
        self.generator_optimizer = keras.optimizers.Adam(rate, beta_1=0.5)
        self.discriminator_optimizer = keras.optimizers.Adam(rate, beta_1=0.5)
        self.seeds = keras.random.SeedGenerator()

    def train_step(self, batch):
        latents = keras.random.normal((tf.shape(batch)[0], self.config.latent), seed=self.seeds)
        drawn = self.generator(latents, training=True)
        with tf.GradientTape() as tape:
            real, false = self.discriminator(batch, training=True), self.discriminator(drawn, training=True)
            mistaken = tf.nn.softplus(-real) + tf.nn.softplus(false)  # the cross entropies of both
            if self.config.gradient_penalty:
                mistaken += self.config.gradient_penalty * tf.cast(self.slope(batch), mistaken.dtype)
        self.minimize(mistaken, tape, self.discriminator_optimizer, self.discriminator.trainable_variables)
        with tf.GradientTape() as tape:
            seen_through = tf.nn.softplus(-self.discriminator(self.generator(latents, training=True), training=True))
        self.minimize(seen_through, tape, self.generator_optimizer, self.generator.trainable_variables)
        return {"discriminator": mistaken, "generator": seen_through}

    def slope(self, images):
        """Half the squared norm of the discriminator's gradient at each image, `[images, 1]`."""
        with tf.GradientTape() as tape:
            tape.watch(images)
            judged = self.discriminator(images, training=True)
        return tf.reduce_sum(tf.square(tape.gradient(judged, images)), [1, 2]) / 2

    def predict_step(self, batch):
        return self.generator(batch, training=False)  # what is drawn of latents

    def train_data(self):
        return digits()[0]

    def callbacks(self):
        latents = np.random.default_rng(0).normal(size=(len(digits()[0]), self.config.latent)).astype("float32")
        watch = Watch(latents, looper.Every(steps=self.config.watch_every))
        pictures = looper.callbacks.Images(lambda run: grid(watch.drawn[:64]), watch.every, tag="drawn")
        return [watch, pictures, looper.callbacks.LambdaCallback(on_fit_end=lambda: self.report(watch.frechet))]

    def report(self, frechet):
        if "distance" not in self.history:
            return  # training was cut short
        before, now = self.history["distance"][0], self.history["distance"][-1]
        halves = frechet.of(*np.array_split(np.random.default_rng(0).permutation(digits()[0]), 2))
        after = self.config.watch_every
        print(f"distance {now:.2f}; after {after} steps {before:.2f}; between halves of the real digits {halves:.2f}")


class Watch(looper.callbacks.Callback):
    """Logs how far drawn digits are from real ones."""

    logs = ("distance",)

    def __init__(self, latents, every):
        self.latents, self.every, self.frechet = latents, every, Frechet()

    def on_step(self, step, logs):
        self.drawn = self.run.predict(self.latents)
        self.run.log("distance", self.frechet.of(self.drawn, digits()[0]))


class Frechet:
    """The distance between sets of images, by the features of a network that reads digits."""

    def __init__(self):
        images, classes = digits()
        self.network = MLPClassifier((32,), learning_rate_init=0.01, random_state=0).fit(
            images.reshape(len(images), -1), classes
        )

    def features(self, images):
        hidden = images.reshape(len(images), -1) @ self.network.coefs_[0] + self.network.intercepts_[0]
        return np.maximum(hidden, 0)

    def of(self, a, b):
        """The squared distance of the means, and that of the covariances: equation 6 of Heusel et al."""
        a, b = self.features(a), self.features(b)
        covariances = np.cov(a.T), np.cov(b.T)
        # the trace of the square root of a product is the sum of the roots of its eigenvalues
        shared = np.sqrt(np.linalg.eigvals(covariances[0] @ covariances[1]).real.clip(0)).sum()
        return np.square(a.mean(0) - b.mean(0)).sum() + np.trace(covariances[0] + covariances[1]) - 2 * shared


def make_generator(latent):
    model = keras.Sequential([keras.Input((latent,)), L.Dense(2 * 2 * 64, use_bias=False), L.Reshape((2, 2, 64))])
    for filters in 64, 32:
        model.add(L.BatchNormalization())
        model.add(L.ReLU())
        model.add(L.Conv2DTranspose(filters, 4, 2, padding="same", use_bias=False))
    model.add(L.BatchNormalization())
    model.add(L.ReLU())
    model.add(L.Conv2D(1, 3, padding="same", activation="tanh"))
    return model


def make_discriminator(normalized):
    model = keras.Sequential([keras.Input((8, 8, 1)), L.Conv2D(32, 4, 2, padding="same"), L.LeakyReLU(0.2)])
    model.add(L.Conv2D(64, 4, 2, padding="same"))
    if normalized:
        model.add(L.BatchNormalization(momentum=0.9))
    model.add(L.LeakyReLU(0.2))
    model.add(L.Flatten())
    model.add(L.Dense(1))
    return model


def grid(images):
    """One picture `[1, 64, 64]` from 0 to 1 of 64 images."""
    return (images.reshape(8, 8, 8, 8).swapaxes(1, 2).reshape(1, 64, 64) + 1) / 2


def digits():
    """Images `[1797, 8, 8, 1]` from -1 to 1, and what they show."""
    data = load_digits()
    return (data.images[..., None] / 8 - 1).astype("float32"), data.target


if __name__ == "__main__":
    looper.run_recipe(Gan)
