"""The networks in PyTorch, with their optimizers and batches, for `torch.py` and `lightning.py`."""

import itertools
from collections.abc import Iterator

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from benchmarks.problems import BOTTLENECKS, EPSILON, RESNET_EPSILON, SGD, Problem, Weights


class CNN(nn.Sequential):
    """Two convolutions, each with batch normalization, and a mean over the image."""

    def __init__(self, channels: int, classes: int) -> None:
        super().__init__(
            nn.Conv2d(channels, 32, 3, padding=1),
            norm(nn.BatchNorm2d, 32),
            nn.ReLU(),
            SamePadding(),
            nn.Conv2d(32, 64, 3, stride=2),
            norm(nn.BatchNorm2d, 64),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(64, classes),
        )


class SamePadding(nn.Module):
    """Padding as TensorFlow's "same" for a 3x3 convolution of stride 2 over an even size: at the end alone."""

    def forward(self, x):
        return F.pad(x, (0, 1, 0, 1))


class ResNet50(nn.Sequential):
    """ResNet-50 as `keras.applications` has it: convolutions have biases, and a block's first one has the stride."""

    def __init__(self, channels: int, classes: int) -> None:
        inputs, blocks = 64, []
        for width, stride, projected in BOTTLENECKS:
            blocks.append(Bottleneck(inputs, width, stride, projected))
            inputs = 4 * width
        super().__init__(
            convolution(channels, 64, 7, 2),
            nn.ReLU(),
            nn.MaxPool2d(3, 2, 1),
            *blocks,
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(inputs, classes),
        )


class Bottleneck(nn.Module):
    """A block of ResNet-50. The modules are in the order of Keras' variables."""

    def __init__(self, inputs: int, width: int, stride: int, projected: bool) -> None:
        super().__init__()
        self.first, self.second = convolution(inputs, width, 1, stride), convolution(width, width, 3)
        self.shortcut = convolution(inputs, 4 * width, 1, stride) if projected else nn.Identity()
        self.third = convolution(width, 4 * width, 1)
        nn.init.zeros_(self.third[1].weight)

    def forward(self, x):
        return F.relu(self.shortcut(x) + self.third(F.relu(self.second(F.relu(self.first(x))))))


def convolution(inputs: int, outputs: int, size: int, stride: int = 1) -> nn.Module:
    """A convolution of ResNet-50 with its batch normalization."""
    normalized = norm(nn.BatchNorm2d, outputs, RESNET_EPSILON)
    return nn.Sequential(nn.Conv2d(inputs, outputs, size, stride, size // 2), normalized)


class KeysAsKeras(nn.Linear):
    """Queries, keys and values from one matrix, which begins as the three that Keras' attention has."""


class Block(nn.Module):
    """A transformer's block: Keras' with biases, nanoGPT's without."""

    def __init__(self, width: int, heads: int, bias: bool) -> None:
        super().__init__()
        self.heads = heads
        self.norm_1, self.norm_2 = (nn.LayerNorm(width, eps=1e-3, bias=bias) for _ in range(2))
        self.qkv = (KeysAsKeras if bias else nn.Linear)(width, 3 * width, bias)
        self.projection = nn.Linear(width, width, bias)
        self.wide, self.narrow = nn.Linear(width, 4 * width, bias), nn.Linear(4 * width, width, bias)

    def forward(self, x):
        x = x + self.projection(self.attend(self.qkv(self.norm_1(x))))
        return x + self.narrow(F.gelu(self.wide(self.norm_2(x))))

    def attend(self, qkv):
        batch, length, _ = qkv.shape
        queries, keys, values = qkv.view(batch, length, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        attended = F.scaled_dot_product_attention(queries, keys, values, is_causal=True)
        return attended.transpose(1, 2).reshape(batch, length, -1)


class GPT(nn.Module):
    """A transformer over tokens; with `positions` and without `bias` it is nanoGPT."""

    def __init__(self, problem: Problem, width: int, blocks: int, *, positions: bool, bias: bool) -> None:
        super().__init__()
        self.token = nn.Embedding(problem.classes, width)
        self.position = nn.Embedding(*problem.shape, width) if positions else None
        self.blocks = nn.Sequential(*(Block(width, 4, bias) for _ in range(blocks)))
        self.norm, self.head = nn.LayerNorm(width, eps=1e-3, bias=bias), nn.Linear(width, problem.classes, bias)

    def forward(self, tokens):
        x = self.token(tokens)
        if self.position is not None:
            x = x + self.position.weight
        return self.head(self.norm(self.blocks(x)))


def norm(kind: type[nn.Module], features: int, epsilon: float = 1e-3) -> nn.Module:
    """Batch normalization with Keras' constants."""
    return kind(features, eps=epsilon, momentum=0.01)


def network(problem: Problem, dropout: float) -> nn.Module:
    if problem.network == "mlp":
        layers = [nn.Linear(*problem.shape, 32), nn.ReLU(), norm(nn.BatchNorm1d, 32), nn.Dropout(dropout)]
        return nn.Sequential(*layers, nn.Linear(32, problem.classes))
    if problem.network == "deep_mlp":
        widths = [*problem.shape, *[64] * 8]
        layers = [(nn.Linear(a, b), norm(nn.BatchNorm1d, b), nn.ReLU()) for a, b in itertools.pairwise(widths)]
        return nn.Sequential(*(layer for group in layers for layer in group), nn.Linear(64, problem.classes))
    if problem.network == "cnn":
        return CNN(problem.shape[-1], problem.classes)
    if problem.network == "resnet50":
        return ResNet50(problem.shape[-1], problem.classes)
    if problem.network == "gpt":
        return GPT(problem, 64, 2, positions=False, bias=True)
    return GPT(problem, 128, 4, positions=True, bias=False)


def model(problem: Problem, dropout: float) -> nn.Module:
    """The problem's network with its initial weights."""
    made = network(problem, dropout)
    weights = Weights()
    for module in made.modules():
        if getattr(module, "bias", None) is not None:
            nn.init.zeros_(module.bias)
        if isinstance(module, nn.Linear | nn.Conv2d | nn.Embedding):
            module.weight.data = torch.from_numpy(np.ascontiguousarray(initial(module, weights)))
    return made


def initial(module: nn.Module, weights: Weights) -> np.ndarray:
    """A module's matrix, drawn in Keras' layout."""
    if isinstance(module, nn.Embedding):
        return weights(*module.weight.shape)
    if isinstance(module, nn.Conv2d):
        return weights(*module.kernel_size, module.in_channels, module.out_channels).transpose(3, 2, 0, 1)
    if isinstance(module, KeysAsKeras):
        width = module.in_features
        return np.concatenate([weights(width, width).T for _ in range(3)])
    return weights(module.in_features, module.out_features).T


def optimizer(problem: Problem, model: nn.Module) -> torch.optim.Optimizer:
    """The problem's optimizer, with Keras' constants."""
    if problem.network in SGD:
        return torch.optim.SGD(model.parameters(), SGD[problem.network], momentum=0.9)
    if problem.network == "deep_mlp":
        return torch.optim.Adam(model.parameters(), 1e-3, eps=EPSILON)
    return torch.optim.AdamW(model.parameters(), 1e-3, eps=EPSILON, weight_decay=0.004)


def batches(problem: Problem, pinned: bool = False) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """The problem's batches, again and again: slices of what is in memory. Images have their channels first."""
    x, y = problem.data()
    if problem.network in ("cnn", "resnet50"):
        x = x.transpose(0, 1, 4, 2, 3)
    x, y = torch.from_numpy(np.ascontiguousarray(x)), torch.from_numpy(y).long()
    x = x.long() if problem.tokens else x
    if pinned:
        x, y = x.pin_memory(), y.pin_memory()
    return itertools.cycle(list(zip(x, y, strict=True)))
