"""Training as it is done every day, for `benchmarks/ordinary.py`: images that are decoded, a large network, a text."""

import dataclasses
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf

import looper
from benchmarks.peers import keras_models
from benchmarks.problems import PROBLEMS

SIZE, CROP = 256, 224
TOKENS, WINDOW = 64, 65


def make_images(folder: Path, count: int) -> None:
    """Writes JPEG files of smooth colours, 256 pixels high and wide, some 15 kB each."""
    random = np.random.default_rng(0)
    for i in range(count):
        coarse = random.random((1, 16, 16, 3)).astype("float32")
        smooth = tf.clip_by_value(tf.image.resize(coarse, (SIZE, SIZE), "bicubic"), 0, 1)
        pixels = tf.cast(255 * smooth, tf.uint8)[0]
        tf.io.write_file(str(folder / f"{i % 10}_{i:05d}.jpg"), tf.io.encode_jpeg(pixels))


def make_text(file: Path, tokens: int) -> None:
    """Writes uint16 tokens below 256 one after another."""
    np.random.default_rng(0).integers(0, 256, tokens, "uint16").tofile(file)


def read_image(path: tf.Tensor, number: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """A decoded image, cropped and flipped at random, and its class; `number` is its number in the run."""
    pixels = tf.io.decode_jpeg(tf.io.read_file(path), 3)
    seed = tf.stack([number, 7])
    pixels = tf.image.stateless_random_crop(pixels, (CROP, CROP, 3), seed)
    pixels = tf.image.stateless_random_flip_left_right(pixels, seed)
    label = tf.strings.to_number(tf.strings.substr(tf.strings.split(path, "/")[-1], 0, 1), tf.int32)
    return tf.cast(pixels, tf.float32) / 255, label


class Jpeg(looper.Trainer):
    """A small convolutional network on images that are read from files."""

    @dataclasses.dataclass
    class Config:
        folder: str = ""
        """Of the images."""

    def build(self):
        layers = keras.layers
        self.model = keras.Sequential([keras.Input((CROP, CROP, 3))])
        for filters in (16, 32, 64):
            self.model.add(layers.Conv2D(filters, 3, strides=4, padding="same", use_bias=False))
            self.model.add(layers.BatchNormalization())
            self.model.add(layers.ReLU())
        self.model.add(layers.GlobalAveragePooling2D())
        self.model.add(layers.Dense(10))
        self.optimizer = keras.optimizers.SGD(0.05, momentum=0.9)
        self.loss = keras_models.loss()

    def train_data(self):
        paths = sorted(map(str, Path(self.config.folder).iterdir()))
        numbered = tf.data.Dataset.zip(
            tf.data.Dataset.from_tensor_slices(paths).repeat().shuffle(len(paths), seed=1), tf.data.Dataset.counter()
        )
        images = numbered.map(read_image, num_parallel_calls=tf.data.AUTOTUNE)
        return images.batch(32, drop_remainder=True).prefetch(tf.data.AUTOTUNE)


class ResNet(looper.Trainer):
    """ResNet-50 on 64x64 images from memory, 16 at a time."""

    def build(self):
        problem = PROBLEMS["resnet50"]
        self.model = keras_models.model(problem, 0.0)
        self.optimizer, self.loss = keras_models.optimizer(problem), keras_models.loss()

    def train_data(self):
        return keras_models.dataset(PROBLEMS["resnet50"]).prefetch(tf.data.AUTOTUNE)


class Windows(keras.utils.PyDataset):
    """Batches of windows of a file of tokens that is mapped into memory, at places drawn from a seed."""

    def __init__(self, file: str, batch: int) -> None:
        super().__init__()
        self._tokens, self._batch = np.memmap(file, "uint16", "r"), batch

    def __len__(self) -> int:
        return len(self._tokens) // (self._batch * TOKENS)

    def __getitem__(self, index: int):
        places = np.random.default_rng(index).integers(0, len(self._tokens) - WINDOW, self._batch)
        windows = np.stack([self._tokens[place : place + WINDOW] for place in places]).astype("int32")
        return windows[:, :-1], windows[:, 1:]


class Text(looper.Trainer):
    """A transformer of two blocks on windows of a file."""

    @dataclasses.dataclass
    class Config:
        file: str = ""
        """Of the tokens."""

    def build(self):
        problem = PROBLEMS["gpt8"]
        self.model = keras_models.model(problem, 0.0)
        self.optimizer, self.loss = keras_models.optimizer(problem), keras_models.loss()

    def train_data(self):
        return Windows(self.config.file, PROBLEMS["gpt8"].batch)
