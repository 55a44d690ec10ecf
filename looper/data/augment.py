"""Augmentation as a pure function of the example and a seed: the same for any batch size, and after any restart.

    data = augmented((x, y), [flip(), crop(4), mixup(0.2)], seed=0)
    trainer.fit(data, epochs=30)

Random ops and Keras' layers in `Dataset.map` keep a state that TensorFlow cannot save. Here example `i` of pass `p` is
drawn from (seed, p, i) by `tf.random.stateless_*`.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import tensorflow as tf

from looper.base.errors import InputError, check_positive
from looper.data.arrays import count_all, is_arrays, permuted
from looper.data.indexed import is_map_dataset
from looper.data.python import without_lists


@dataclasses.dataclass(frozen=True, eq=False)
class Operation:
    """One random change of images.

    Attributes:
        name: what it is called in a configuration, with its settings.
        draw: `(seed, shape) -> parameters` of one example; `seed` is int64 `[2]`, `shape` the image's `(h, w, c)`.
        apply: `(images, parameters) -> images`, both with a first axis for the examples; to each by itself.
        mixes: whether `apply` is given weights in place of that, as mixup.
    """

    name: str
    draw: Callable[[tf.Tensor, tuple[int, ...]], tf.Tensor]
    apply: Callable[[tf.Tensor, tf.Tensor], tf.Tensor]
    mixes: bool = False

    def __call__(self, images: tf.Tensor, seeds: tf.Tensor) -> tf.Tensor:
        """Changes images `[n, h, w, c]` by seeds int64 `[n, 2]`."""
        return self.apply(images, self.drawn(images, seeds))

    def drawn(self, images: tf.Tensor, seeds: tf.Tensor) -> tf.Tensor:
        # one example at a time, so that the last bit cannot depend on the place in a vectorized loop
        shape = tuple(images.shape[1:])
        spec = tf.type_spec_from_value(self.draw(tf.zeros([2], tf.int64), shape))
        return tf.map_fn(lambda seed: self.draw(seed, shape), tf.cast(seeds, tf.int64), fn_output_signature=spec)


def flip(horizontal: bool = True, vertical: bool = False) -> Operation:
    """Mirrors each image left to right, and up to down, with probability 1/2 each.

    Example:
        >>> images = tf.reshape(tf.range(6.0), [1, 1, 6, 1])
        >>> sorted({tuple(flip()(images, [[0, i]])[0, 0, :, 0].numpy().astype(int).tolist()) for i in range(9)})
        [(0, 1, 2, 3, 4, 5), (5, 4, 3, 2, 1, 0)]
    """

    def apply(images: tf.Tensor, coins: tf.Tensor) -> tf.Tensor:
        for wanted, axis, coin in ((horizontal, 2, coins[:, 0]), (vertical, 1, coins[:, 1])):
            if wanted:
                images = tf.where(coin[:, None, None, None], tf.reverse(images, [axis]), images)
        return images

    return Operation(
        f"flip(horizontal={horizontal}, vertical={vertical})",
        lambda seed, _: tf.random.stateless_uniform([2], seed) < 0.5,
        apply,
    )


def crop(padding: int) -> Operation:
    """Pads each image with `padding` zeros on every side and cuts one of its own size out, anywhere."""
    check_positive("crop: padding", padding)

    def apply(images: tf.Tensor, offsets: tf.Tensor) -> tf.Tensor:
        height, width = images.shape[1:3]
        padded = tf.pad(images, [[0, 0], [padding, padding], [padding, padding], [0, 0]])
        rows = tf.gather(padded, offsets[:, :1] + tf.range(height), axis=1, batch_dims=1)
        return tf.gather(rows, offsets[:, 1:] + tf.range(width), axis=2, batch_dims=1)

    return Operation(
        f"crop({padding})",
        lambda seed, _: tf.random.stateless_uniform([2], seed, 0, 2 * padding + 1, tf.int32),
        apply,
    )


def rotate(degrees: float | None = None) -> Operation:
    """Turns each image by an angle from -`degrees` to `degrees`, bilinearly; None: by a multiple of 90 degrees.

    Outside of the image it is 0. Multiples of 90 degrees need square images.
    """

    check_positive("rotate: degrees", degrees, float)

    def quarters(images: tf.Tensor, turns: tf.Tensor) -> tf.Tensor:
        if images.shape[1] != images.shape[2]:
            raise InputError(f"rotate() by 90 degrees needs square images, not {images.shape[1:]}: give degrees=.")
        turned = [tf.image.rot90(images, k) for k in range(4)]
        for k in range(1, 4):
            images = tf.where(turns[:, None, None, None] == k, turned[k], images)
        return images

    def matrix(seed: tf.Tensor, shape: tuple[int, ...]) -> tf.Tensor:
        """The 8 numbers of ImageProjectiveTransformV3 for a turn about the centre."""
        limit = math.radians(degrees)
        angle = tf.random.stateless_uniform([], seed, -limit, limit)
        sine, cosine = tf.sin(angle), tf.cos(angle)
        y, x = (shape[0] - 1) / 2, (shape[1] - 1) / 2
        zero = tf.zeros([])
        return tf.stack([cosine, -sine, x - cosine * x + sine * y, sine, cosine, y - sine * x - cosine * y, zero, zero])

    def turn(images: tf.Tensor, matrices: tf.Tensor) -> tf.Tensor:
        return tf.raw_ops.ImageProjectiveTransformV3(
            images=images,
            transforms=matrices,
            output_shape=images.shape[1:3],
            fill_value=0.0,
            interpolation="BILINEAR",
            fill_mode="CONSTANT",
        )

    if degrees is None:
        return Operation("rotate()", lambda seed, _: tf.random.stateless_uniform([], seed, 0, 4, tf.int32), quarters)
    return Operation(f"rotate({degrees})", matrix, turn)


def noise(stddev: float) -> Operation:
    """Adds normal noise of this standard deviation to each pixel."""
    check_positive("noise: stddev", stddev, float)
    return Operation(
        f"noise({stddev})",
        lambda seed, shape: stddev * tf.random.stateless_normal(shape, seed),
        lambda images, normal: images + tf.cast(normal, _float(images, "noise").dtype),
    )


def brightness(delta: float) -> Operation:
    """Adds one number from -`delta` to `delta` to all pixels of an image."""
    check_positive("brightness: delta", delta, float)
    return Operation(
        f"brightness({delta})",
        lambda seed, _: tf.random.stateless_uniform([1, 1, 1], seed, -delta, delta),
        lambda images, number: images + tf.cast(number, _float(images, "brightness").dtype),
    )


def cutout(size: int) -> Operation:
    """Sets a square of `size` pixels to 0, whose centre is anywhere; at a border it is cut off (DeVries & Taylor 2017).

    "Improved Regularization of Convolutional Neural Networks with Cutout", arXiv:1708.04552, section 3.2.
    """
    check_positive("cutout: size", size)

    def draw(seed: tf.Tensor, shape: tuple[int, ...]) -> tf.Tensor:
        place = tf.random.stateless_uniform([2], seed)
        return tf.cast(place * tf.constant(shape[:2], tf.float32), tf.int32)

    def apply(images: tf.Tensor, centres: tf.Tensor) -> tf.Tensor:
        def inside(centre: tf.Tensor, length: int) -> tf.Tensor:
            first = centre[:, None] - size // 2
            return (tf.range(length) >= first) & (tf.range(length) < first + size)

        rows, columns = inside(centres[:, 0], images.shape[1]), inside(centres[:, 1], images.shape[2])
        hole = rows[:, :, None, None] & columns[:, None, :, None]
        return tf.where(hole, tf.zeros([], images.dtype), images)

    return Operation(f"cutout({size})", draw, apply)


def mixup(alpha: float) -> Operation:
    """Mixes each example with another, `w * (x, y) + (1 - w) * (x', y')`, `w` from Beta(alpha, alpha).

    Zhang et al. 2018, "mixup: Beyond Empirical Risk Minimization", arXiv:1710.09412, section 2. The other example
    comes from anywhere in the data, by another permutation of each pass (for a `tf.data` dataset: from the batch),
    changed by the operations before this one. Targets must be one-hot or other floats.
    """
    check_positive("mixup: alpha", alpha, float)

    def draw(seed: tf.Tensor, _: tuple[int, ...]) -> tf.Tensor:
        pair = tf.random.stateless_gamma([2], seed, alpha, dtype=tf.float64)  # float32 would be 0 too often
        return tf.cast(pair[0] / (pair[0] + pair[1]), tf.float32)

    return Operation(f"mixup({alpha})", draw, lambda images, _: images, mixes=True)


@dataclasses.dataclass(frozen=True, eq=False)
class Augmented:
    """Arrays or indexable data as `augmented` returns them: the data, and the transforms to train with.

    Attributes:
        data: the examples as they are.
        operations: done one after the other.
        seed: of all draws.
        evaluate: whether to change them in `evaluate` and `predict` too.
    """

    data: Any
    operations: tuple[Operation, ...]
    seed: int
    evaluate: bool

    def transform(self) -> "Augment":
        examples = len(self.data) if is_map_dataset(self.data) else count_all(self.data)
        return Augment(self.operations, self.seed, examples)


def augmented(data: Any, operations: Sequence[Operation], *, seed: int = 0, evaluate: bool = False) -> Any:
    """Data whose images are changed anew in each pass: give it to `fit`.

    Args:
        data: images `[examples, height, width, channels]`, or `(images, ...)`, as arrays or an indexable source; or a
            `tf.data.Dataset` of batches of them.
        operations: `flip()`, `crop(4)`, `rotate(15)`, `noise(0.1)`, `cutout(8)`, `brightness(0.1)`, `mixup(0.2)`.
        seed: of all draws.
        evaluate: whether `evaluate` and `predict` change the examples too.

    Returns:
        For a dataset another dataset, whose draws depend on the batches and on `seed` and can be saved; otherwise an
        `Augmented`.

    Raises:
        InputError: if the data or an operation is of another kind.

    Example:
        >>> images = tf.random.stateless_normal([6, 4, 4, 1], [0, 0])
        >>> augmented((images, tf.range(6)), [flip(), crop(1)], seed=0).evaluate
        False
    """
    operations = (operations,) if isinstance(operations, Operation) else tuple(operations)
    if not isinstance(seed, int):
        raise InputError(f"seed={seed!r}: expected a whole number.")
    for operation in operations:
        if not isinstance(operation, Operation):
            raise InputError(f"operation {operation!r}: expected flip(), crop(4) or another of looper.data.augment.")
    if sum(operation.mixes for operation in operations) > 1:
        raise InputError("there are several mixup operations: keep one.")
    if isinstance(data, tf.data.Dataset):
        draws = tf.data.Dataset.random(seed, rerandomize_each_iteration=True)
        return tf.data.Dataset.zip(draws, data).map(Augment(operations, seed, None).of_batch, tf.data.AUTOTUNE)
    by_example = is_map_dataset(data)
    examples = data if by_example else without_lists(data)
    if not (by_example or is_arrays(examples)):
        raise InputError(
            f"augmented() got {type(data).__name__}: expected arrays, an indexable source or a tf.data.Dataset."
        )
    return Augmented(examples, operations, seed, evaluate)


class Augment:
    """Operations as a `looper.data.arrays.Transform`.

    Args:
        operations: done one after the other; at most one mixes.
        seed: of all draws.
        examples: how many there are, for mixup; None for those of the batch.
    """

    def __init__(self, operations: Sequence[Operation], seed: int, examples: int | None) -> None:
        self.operations, self.seed, self.examples = tuple(operations), seed, examples
        self._compiled = tf.function(self._changed, autograph=False, reduce_retracing=True)

    def __str__(self) -> str:
        return f"{', '.join(operation.name for operation in self.operations)}; seed {self.seed}"

    def __call__(self, rows: Any, index: tf.Tensor, number: tf.Tensor, fetch: Callable[[tf.Tensor], Any]) -> Any:
        if not any(operation.mixes for operation in self.operations):
            return self._compiled(rows, index, None, None, number)
        others = permuted(index, self.seed + 1, number, self.examples)
        return self._compiled(rows, index, fetch(others), others, number)

    @tf.autograph.experimental.do_not_convert
    def of_batch(self, draw: tf.Tensor, *batch: Any) -> Any:
        """Changes a batch by one random int64; for `Dataset.map`."""
        rows = batch if len(batch) > 1 else batch[0]
        size = tf.shape(tf.nest.flatten(rows)[0], tf.int64)[0]
        index = tf.range(size)
        others = tf.random.experimental.index_shuffle(index, tf.stack([draw, draw]), size - 1)
        other = tf.nest.map_structure(lambda column: tf.gather(column, others), rows)
        return self._changed(rows, index, other, others, draw)

    def _changed(self, rows: Any, index: tf.Tensor, other: Any, others: Any, number: tf.Tensor) -> Any:
        number = tf.cast(number, tf.int64)
        # a random number for each operation and pass; with the example's index it is the seed of a draw
        keys = tf.random.stateless_uniform(
            [len(self.operations)], tf.stack([tf.constant(self.seed, tf.int64), number]), None, None, tf.int64
        )
        for key, operation in zip(tf.unstack(keys, num=len(self.operations)), self.operations, strict=True):
            if operation.mixes:
                weights = operation.drawn(_images(rows), _seeds(key, index))
                rows = _mixed(rows, other, weights)
            else:
                rows = _with_images(rows, operation(_images(rows), _seeds(key, index)))
                if other is not None:
                    other = _with_images(other, operation(_images(other), _seeds(key, others)))
        return rows


def _seeds(key: tf.Tensor, index: tf.Tensor) -> tf.Tensor:
    return tf.stack([tf.fill(tf.shape(index), key), tf.cast(index, tf.int64)], 1)


def _images(rows: Any) -> tf.Tensor:
    images = tf.convert_to_tensor(rows[0] if isinstance(rows, tuple) else rows)
    if images.shape.rank != 4 or None in images.shape[1:]:
        raise InputError(
            f"images of shape {images.shape}: augmentation expects (examples, height, width, channels) of known size."
        )
    return images


def _with_images(rows: Any, images: tf.Tensor) -> Any:
    return (images, *rows[1:]) if isinstance(rows, tuple) else images


def _mixed(rows: Any, other: Any, weights: tf.Tensor) -> Any:
    """Images and targets mixed; sample weights stay those of the first example."""

    def mix(one: tf.Tensor, two: tf.Tensor) -> tf.Tensor:
        one, two = _float(tf.convert_to_tensor(one), "mixup"), tf.convert_to_tensor(two)
        share = tf.cast(tf.reshape(weights, [-1] + [1] * (one.shape.rank - 1)), one.dtype)
        return share * one + (1 - share) * two

    if not isinstance(rows, tuple):
        return mix(rows, other)
    return (*tf.nest.map_structure(mix, rows[:2], other[:2]), *rows[2:])


def _float(tensor: tf.Tensor, name: str) -> tf.Tensor:
    if not tensor.dtype.is_floating:
        raise InputError(
            f"{name} got {tensor.dtype.name}: expected float images, and one-hot or float targets for mixup."
        )
    return tensor
