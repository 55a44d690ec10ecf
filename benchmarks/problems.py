"""What is trained in the comparisons: data, sizes and initial weights, in NumPy alone, the same for every framework."""

import dataclasses

import numpy as np


@dataclasses.dataclass(frozen=True)
class Problem:
    """A network with its data.

    Attributes:
        network: its name; the definitions are in `peers/keras_models.py`, `torch_models.py` and `jax_models.py`.
        batch: examples in a batch.
        shape: of an example; images are floats, tokens are whole numbers.
        classes: as many as the outputs have, for each example or token.
        tokens: whether an example is a sequence of tokens, each with a target.
        batches: how many there are; they come again and again, in the same order.
        steps_per_call: of those who loop inside a compiled call.
        steps_per_burst: how many are timed at once.
    """

    network: str
    batch: int
    shape: tuple[int, ...]
    classes: int
    tokens: bool = False
    batches: int = 100
    steps_per_call: int = 100
    steps_per_burst: int = 1000

    def data(self) -> tuple[np.ndarray, np.ndarray]:
        """Inputs `[batches, batch, *shape]`, float32 or int32 tokens; targets `[batches, batch(, tokens)]`, int32."""
        random = np.random.default_rng(0)
        leading = (self.batches, self.batch)
        if self.tokens:
            x = random.integers(0, self.classes, (*leading, *self.shape), "int32")
            return x, random.integers(0, self.classes, x.shape, "int32")
        x = random.normal(size=(*leading, *self.shape)).astype("float32")
        return x, random.integers(0, self.classes, leading, "int32")


SLICE = 16
"""The fewest examples that a replica gets of a batch, where there are several."""


def on_replicas(problem: Problem, replicas: int) -> Problem:
    """The problem with a batch that replicas can share evenly: as large as it was, or the next size that they can.

    Example:
        >>> [on_replicas(PROBLEMS["mlp"], replicas).batch for replicas in (1, 2, 3, 4)]
        [32, 32, 48, 64]
        >>> on_replicas(PROBLEMS["cnn256"], 3).batch
        258
    """
    if replicas == 1:
        return problem
    return dataclasses.replace(problem, batch=replicas * max(SLICE, -(-problem.batch // replicas)))


PROBLEMS = {
    "mlp": Problem("mlp", 32, (32,), 10, batches=2000),
    "deep_mlp": Problem("deep_mlp", 32, (32,), 10, batches=2000, steps_per_burst=500),
    "cnn32": Problem("cnn", 32, (8, 8, 1), 10, steps_per_call=50, steps_per_burst=200),
    "cnn256": Problem("cnn", 256, (8, 8, 1), 10, steps_per_call=20, steps_per_burst=60),
    "gpt8": Problem("gpt", 8, (64,), 256, tokens=True, steps_per_call=20, steps_per_burst=40),
    "gpt64": Problem("gpt", 64, (64,), 256, tokens=True, steps_per_call=10, steps_per_burst=20),
    "nanogpt": Problem("nanogpt", 12, (64,), 65, tokens=True, steps_per_call=10, steps_per_burst=20),
    "resnet50": Problem("resnet50", 16, (64, 64, 3), 10, batches=8, steps_per_call=4, steps_per_burst=4),
}

BOTTLENECKS = [
    (width, stride if first else 1, first)
    for width, blocks, stride in ((64, 3, 1), (128, 4, 2), (256, 6, 2), (512, 3, 2))
    for first in [True] + [False] * (blocks - 1)
]
"""ResNet-50's blocks (He et al., 2015, table 1): the width, the stride, and whether the shortcut is a convolution.

Each begins as its shortcut: the scale of its last normalization is 0 (Goyal et al., 2017, section 5.1). From ones,
roundings grow so fast that no two programs could be compared."""

RESNET_EPSILON = 1.001e-5
"""Of its batch normalization, as `keras.applications` has it."""

SGD = {"mlp": 0.01, "resnet50": 5e-4}
"""The learning rates of those that have momentum, 0.9; the others have Adam or AdamW."""

EPSILON = 1e-10
"""Adam's. So small that it does not matter whether it stands before or after the correction for the first steps: Keras
has it before, PyTorch and Optax after."""


class Weights:
    """Draws initial matrices one after another. Biases begin at 0 and scales of normalizations at 1."""

    def __init__(self) -> None:
        self._random = np.random.default_rng(1)

    def __call__(self, *shape: int) -> np.ndarray:
        """The next one, float32, in Keras' layout: outputs last."""
        return self._random.normal(scale=0.05, size=shape).astype("float32")
