"""The networks in JAX, with their optimizers, for `jax_scan.py`.

A network is two functions: one draws its parameters and makes its batch statistics, both as lists of layers in order;
the other applies it in training.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from benchmarks.problems import BOTTLENECKS, EPSILON, RESNET_EPSILON, SGD, Problem, Weights

Layers = list[dict[str, Any]]


def dense(weights: Weights, inputs: int, outputs: int) -> dict[str, Any]:
    return {"kernel": weights(inputs, outputs), "bias": jnp.zeros(outputs)}


def conv(weights: Weights, inputs: int, outputs: int, size: int = 3) -> dict[str, Any]:
    return {"kernel": weights(size, size, inputs, outputs), "bias": jnp.zeros(outputs)}


def norm(features: int, bias: bool = True) -> dict[str, Any]:
    return {"scale": jnp.ones(features)} | ({"bias": jnp.zeros(features)} if bias else {})


def statistics(features: int) -> dict[str, Any]:
    return {"mean": jnp.zeros(features), "variance": jnp.ones(features)}


def apply_dense(layer: dict[str, Any], x: jax.Array) -> jax.Array:
    return x @ layer["kernel"] + layer.get("bias", 0.0)


def apply_conv(layer: dict[str, Any], x: jax.Array, stride: int, padding: Any = "SAME") -> jax.Array:
    dimensions = ("NHWC", "HWIO", "NHWC")
    x = jax.lax.conv_general_dilated(x, layer["kernel"], (stride, stride), padding, dimension_numbers=dimensions)
    return x + layer["bias"]


def batch_norm(
    layer: dict[str, Any], moving: dict[str, Any], x: jax.Array, epsilon: float = 1e-3
) -> tuple[jax.Array, dict[str, Any]]:
    axes = tuple(range(x.ndim - 1))
    mean, variance = x.mean(axes), x.var(axes)
    moved = {"mean": 0.99 * moving["mean"] + 0.01 * mean, "variance": 0.99 * moving["variance"] + 0.01 * variance}
    x = (x - mean) * jax.lax.rsqrt(variance + epsilon) * layer["scale"] + layer["bias"]
    return x, jax.lax.stop_gradient(moved)


def layer_norm(layer: dict[str, Any], x: jax.Array) -> jax.Array:
    x = (x - x.mean(-1, keepdims=True)) * jax.lax.rsqrt(x.var(-1, keepdims=True) + 1e-3)
    return x * layer["scale"] + layer.get("bias", 0.0)


def mlp(problem: Problem, weights: Weights) -> tuple[Layers, Layers]:
    layers = [dense(weights, *problem.shape, 32), norm(32), dense(weights, 32, problem.classes)]
    return layers, [statistics(32)]


def apply_mlp(layers: Layers, moving: Layers, x: jax.Array, key: jax.Array, dropout: float) -> tuple[jax.Array, Layers]:
    x, moved = batch_norm(layers[1], moving[0], jax.nn.relu(apply_dense(layers[0], x)))
    if dropout:
        x = jnp.where(jax.random.bernoulli(key, 1 - dropout, x.shape), x / (1 - dropout), 0.0)
    return apply_dense(layers[2], x), [moved]


def deep_mlp(problem: Problem, weights: Weights) -> tuple[Layers, Layers]:
    layers: Layers = []
    for inputs in (*problem.shape, *[64] * 7):
        layers += [dense(weights, inputs, 64), norm(64)]
    return [*layers, dense(weights, 64, problem.classes)], [statistics(64) for _ in range(8)]


def apply_deep_mlp(layers: Layers, moving: Layers, x: jax.Array, *_: Any) -> tuple[jax.Array, Layers]:
    moved: Layers = []
    for i, old in enumerate(moving):
        x, new = batch_norm(layers[2 * i + 1], old, apply_dense(layers[2 * i], x))
        x = jax.nn.relu(x)
        moved.append(new)
    return apply_dense(layers[-1], x), moved


def cnn(problem: Problem, weights: Weights) -> tuple[Layers, Layers]:
    layers = [conv(weights, problem.shape[-1], 32), norm(32), conv(weights, 32, 64), norm(64)]
    return [*layers, dense(weights, 64, problem.classes)], [statistics(32), statistics(64)]


def apply_cnn(layers: Layers, moving: Layers, x: jax.Array, *_: Any) -> tuple[jax.Array, Layers]:
    x, first = batch_norm(layers[1], moving[0], apply_conv(layers[0], x, 1))
    x, second = batch_norm(layers[3], moving[1], apply_conv(layers[2], jax.nn.relu(x), 2))
    return apply_dense(layers[4], jax.nn.relu(x).mean((1, 2))), [first, second]


def resnet50(problem: Problem, weights: Weights) -> tuple[Layers, Layers]:
    """ResNet-50 as `keras.applications` has it; a layer is a convolution with its batch normalization."""

    def convolution(inputs: int, outputs: int, size: int = 1, scale: float = 1.0) -> dict[str, Any]:
        return conv(weights, inputs, outputs, size) | {"norm": norm(outputs) | {"scale": jnp.full(outputs, scale)}}

    layers, inputs = [convolution(problem.shape[-1], 64, 7)], 64
    for width, _, projected in BOTTLENECKS:
        layers += [convolution(inputs, width), convolution(width, width, 3)]
        layers += [convolution(inputs, 4 * width)] if projected else []  # where Keras' variables have it
        layers += [convolution(width, 4 * width, scale=0.0)]
        inputs = 4 * width
    moving = [statistics(len(layer["bias"])) for layer in layers]
    return [*layers, dense(weights, inputs, problem.classes)], moving


def apply_resnet50(layers: Layers, moving: Layers, x: jax.Array, *_: Any) -> tuple[jax.Array, Layers]:
    *convolutions, last = layers
    following, moved = iter(zip(convolutions, moving, strict=True)), []

    def convolution(x: jax.Array, stride: int = 1, padding: Any = "SAME") -> jax.Array:
        layer, old = next(following)
        x, new = batch_norm(layer["norm"], old, apply_conv(layer, x, stride, padding), RESNET_EPSILON)
        moved.append(new)
        return x

    x = jax.nn.relu(convolution(x, 2, [(3, 3), (3, 3)]))
    edges = [(0, 0), (1, 1), (1, 1), (0, 0)]
    x = jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, (1, 3, 3, 1), (1, 2, 2, 1), edges)
    for _, stride, projected in BOTTLENECKS:
        y = jax.nn.relu(convolution(jax.nn.relu(convolution(x, stride))))
        shortcut = convolution(x, stride) if projected else x
        x = jax.nn.relu(shortcut + convolution(y))
    return apply_dense(last, x.mean((1, 2))), moved


def block(weights: Weights, width: int, bias: bool) -> dict[str, Any]:
    """A transformer's block: Keras' with biases, whose queries, keys and values are three matrices, or nanoGPT's."""
    triple = [weights(width, width) for _ in range(3)] if bias else [weights(width, 3 * width)]
    kernels = {
        "qkv": jnp.concatenate(triple, axis=1),
        "projection": weights(width, width),
        "wide": weights(width, 4 * width),
        "narrow": weights(4 * width, width),
    }
    made = {
        name: {"kernel": kernel} | ({"bias": jnp.zeros(kernel.shape[-1])} if bias else {})
        for name, kernel in kernels.items()
    }
    return made | {"norm_1": norm(width, bias), "norm_2": norm(width, bias)}


def apply_block(layer: dict[str, Any], x: jax.Array, heads: int = 4) -> jax.Array:
    batch, length, width = x.shape
    qkv = apply_dense(layer["qkv"], layer_norm(layer["norm_1"], x)).reshape(batch, length, 3, heads, width // heads)
    queries, keys, values = jnp.moveaxis(qkv, 2, 0)
    attended = jax.nn.dot_product_attention(queries, keys, values, is_causal=True).reshape(x.shape)
    x = x + apply_dense(layer["projection"], attended)
    wide = apply_dense(layer["wide"], layer_norm(layer["norm_2"], x))
    return x + apply_dense(layer["narrow"], jax.nn.gelu(wide, approximate=False))


def gpt(problem: Problem, weights: Weights) -> tuple[Layers, Layers]:
    return transformer(problem, weights, width=64, blocks=2, positions=False, bias=True), []


def nanogpt(problem: Problem, weights: Weights) -> tuple[Layers, Layers]:
    return transformer(problem, weights, width=128, blocks=4, positions=True, bias=False), []


def transformer(problem: Problem, weights: Weights, *, width: int, blocks: int, positions: bool, bias: bool) -> Layers:
    embeddings = {"token": weights(problem.classes, width)}
    if positions:
        embeddings["position"] = weights(*problem.shape, width)
    inner = [block(weights, width, bias) for _ in range(blocks)]
    head = {"kernel": weights(width, problem.classes)} | ({"bias": jnp.zeros(problem.classes)} if bias else {})
    return [embeddings, *inner, norm(width, bias), head]


def apply_transformer(layers: Layers, moving: Layers, tokens: jax.Array, *_: Any) -> tuple[jax.Array, Layers]:
    embeddings, *blocks, last_norm, head = layers
    x = embeddings["token"][tokens] + embeddings.get("position", 0.0)
    for layer in blocks:
        x = apply_block(layer, x)
    return apply_dense(head, layer_norm(last_norm, x)), moving


NETWORKS: dict[str, tuple[Callable[..., tuple[Layers, Layers]], Callable[..., tuple[jax.Array, Layers]]]] = {
    "mlp": (mlp, apply_mlp),
    "deep_mlp": (deep_mlp, apply_deep_mlp),
    "cnn": (cnn, apply_cnn),
    "resnet50": (resnet50, apply_resnet50),
    "gpt": (gpt, apply_transformer),
    "nanogpt": (nanogpt, apply_transformer),
}


def optimizer(problem: Problem) -> optax.GradientTransformation:
    """The problem's optimizer, with Keras' constants."""
    if problem.network in SGD:
        return optax.sgd(SGD[problem.network], momentum=0.9)
    if problem.network == "deep_mlp":
        return optax.adam(1e-3, eps=EPSILON)
    adamw = optax.adamw(1e-3, eps=EPSILON, weight_decay=0.004)
    return optax.chain(optax.clip_by_global_norm(1.0), adamw) if problem.network == "nanogpt" else adamw
