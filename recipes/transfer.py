"""Transfer learning: train a new head on a frozen base, then fine-tune the base's last layers.

By default the base is pretrained here, on the digits 0 to 4 of scikit-learn's digits, and transferred to a few images
of 5 to 9. With images of your own, one sub-folder per class, it is one of `keras.applications`:

    looper run recipes/transfer.py
    looper run recipes/transfer.py --images DIR --base ResNet50 --weights imagenet --batch-size 32 --unfreeze-last 33

`--choice` tells what happens to the base; `python -m benchmarks.transfer` compares them.
"""

import dataclasses
import functools
import inspect
from pathlib import Path
from typing import Literal

import keras
import numpy as np
import tensorflow as tf
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

import looper


class Transfer(looper.Trainer):
    """Transfer a pretrained base to other classes."""

    @dataclasses.dataclass
    class Config:
        choice: Literal["fine_tuned", "fine_tuned_moving", "frozen", "naive", "scratch"] = "fine_tuned"
        """'frozen': the head alone is trained. 'fine_tuned': that, then the base's last layers too, with frozen batch
        statistics; 'fine_tuned_moving': with moving ones. 'naive': like 'frozen', but the base acts as in training:
        its batch statistics move and its dropout is on. 'scratch': all is trained, from random weights."""
        unfreeze_last: int = 9
        """How many layers at the base's end to fine-tune."""
        fine_tune_from: int = 20
        """Epochs until then."""
        learning_rate: float = 3e-3
        """Learning rate of AdamW."""
        fine_tune_rate: float = 3e-4
        """Learning rate of the base's layers."""
        base: str = "small"
        """'small', or with --images the name of a model in keras.applications, such as ResNet50."""
        weights: str = "own"
        """Of the base. 'own': pretrained on the digits 0 to 4; 'imagenet' (downloaded); 'none': random; or a file."""
        images: Path | None = None
        """Folder with a sub-folder of images for each class. None: the digits 5 to 9."""
        image_size: int = 160
        """Height and width that those images get."""
        examples: int = 50
        """Images of the digits 5 to 9 to train on; the others are for evaluation."""
        split_seed: int = 0
        """Seed of the split into training and evaluation data."""

    defaults = {"epochs": 60, "batch_size": 10, "eval_every": looper.Every(epochs=5), "workdir": "runs/transfer/one"}

    def build(self):
        config = self.config
        self._base = make_base(config)
        if config.choice == "naive":
            for weight in self._base.trainable_weights:
                weight.trainable = False  # the layers are not frozen
        elif config.choice != "scratch":
            looper.freeze(self._base)
        classes = 5 if config.images is None else 1 + image_files(config.images)[1][-1]
        self.model = keras.Sequential([self._base, keras.layers.Dense(classes, dtype="float32", name="head")])
        self.optimizer = keras.optimizers.AdamW(config.learning_rate)
        self.loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        self.metrics = [keras.metrics.SparseCategoricalAccuracy("accuracy")]
        if config.weights == "own" and config.choice != "scratch":  # last: it draws random numbers of its own
            self._base.set_weights(pretrained(self.strategy, config.split_seed))

    def callbacks(self):
        config = self.config
        if not config.choice.startswith("fine_tuned"):
            return []
        return [
            looper.callbacks.Unfreeze(
                at=looper.Every(epochs=config.fine_tune_from),
                layers=tuple(self._base.layers[-config.unfreeze_last :]),
                learning_rate=config.fine_tune_rate,
                batch_norm=config.choice == "fine_tuned_moving",
            )
        ]

    def train_data(self):
        return self._data(0)

    def eval_data(self):
        return self._data(1)

    def _data(self, part):
        config = self.config
        if config.images is None:
            (x, y), size = digits(range(5, 10)), config.examples
        else:
            x, y, size = *image_files(config.images), 0.8
        split = train_test_split(x, y, train_size=size, stratify=y, random_state=config.split_seed)
        x, y = split[part], split[2 + part]
        return (x, y) if config.images is None else Images(x, y, config.image_size)


class Images:
    """Image files and their classes, read one by one when they are asked for."""

    def __init__(self, files: list[str], classes: list[int], size: int) -> None:
        self.files, self.classes, self.size = files, classes, size

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> tuple[np.ndarray, int]:
        image = tf.io.decode_image(tf.io.read_file(self.files[index]), channels=3, expand_animations=False)
        return tf.image.resize(image, (self.size, self.size)).numpy(), self.classes[index]


def make_base(config: Transfer.Config) -> keras.Model:
    """The base, from images of 0 to 255 (digits: of 0 to 1) to features."""
    if config.images is not None and config.weights == "own":
        raise looper.InputError("--images: --weights own is for the digits; give --weights imagenet, none or a file.")
    if config.weights not in ("own", "imagenet", "none") and not Path(config.weights).is_file():
        raise looper.InputError(f"--weights {config.weights}: expected own, imagenet, none or a file of weights.")
    shape = (8, 8, 1) if config.images is None else (config.image_size, config.image_size, 3)
    if config.base == "small":
        base = small(shape)
    else:
        make = getattr(keras.applications, config.base, None)
        if make is None or config.images is None:
            raise looper.InputError(
                f"--base {config.base}: expected small, or with --images one of keras.applications, such as ResNet50."
            )
        weights = "imagenet" if config.weights == "imagenet" and config.choice != "scratch" else None
        inputs = keras.Input(shape)
        scaled = inspect.getmodule(make).preprocess_input(inputs)
        body = make(include_top=False, weights=weights, input_tensor=scaled, pooling="avg")
        base = keras.Model(inputs, body.output, name="base")
    if config.weights not in ("own", "imagenet", "none") and config.choice != "scratch":
        base.load_weights(config.weights)
    return base


def small(shape: tuple[int, int, int]) -> keras.Model:
    layers = keras.layers
    base = keras.Sequential([keras.Input(shape)], name="base")
    for filters, strides in (32, 1), (64, 2), (64, 2):
        base.add(layers.Conv2D(filters, 3, strides, padding="same", use_bias=False))
        base.add(layers.BatchNormalization(momentum=0.9))
        base.add(layers.ReLU())
        base.add(layers.SpatialDropout2D(0.1))
    base.add(layers.GlobalAveragePooling2D())
    return base


@functools.cache
def pretrained(strategy, seed: int) -> list[np.ndarray]:
    """Weights of the small base, trained on the digits 0 to 4."""
    trainer = looper.Trainer(
        model=lambda: keras.Sequential([small((8, 8, 1)), keras.layers.Dense(5)]),
        optimizer=lambda: keras.optimizers.AdamW(2e-3),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        strategy=strategy,
        seed=seed,
    )
    trainer.fit(digits(range(5)), epochs=20, batch_size=32, progress=False)
    return trainer.model.layers[0].get_weights()


def digits(classes: range) -> tuple[np.ndarray, np.ndarray]:
    """The images of some digits, of 0 to 1, and their classes from 0 on."""
    data = load_digits()
    kept = np.isin(data.target, classes)
    return (data.images[kept, ..., None] / 16.0).astype(np.float32), (data.target[kept] - classes[0]).astype(np.int32)


def image_files(folder: Path) -> tuple[list[str], list[int]]:
    """The images in the sub-folders, and the numbers of these."""
    kinds = (".jpg", ".jpeg", ".png", ".bmp", ".gif")
    folders = [sorted(p for p in sub.iterdir() if p.suffix.lower() in kinds) for sub in sorted(folder.glob("*/"))]
    found = [(str(path), number) for number, paths in enumerate(filter(None, folders)) for path in paths]
    if not found or found[-1][1] == 0:
        raise looper.InputError(f"--images {folder}: expected a folder with a sub-folder of images for each class.")
    return [path for path, _ in found], [number for _, number in found]


if __name__ == "__main__":
    looper.run_recipe(Transfer)
