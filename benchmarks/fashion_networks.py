"""Ten small classifiers of Fashion-MNIST that differ in kind, as factories: ``benchmarks/fashion_networks.py:plain``.

Their images are 28×28 pixels, grey, of ten classes. :mod:`teachers` trains them and compresses them.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

CLASSES = 10


class Classifier(nn.Sequential):
    """Layers in a row, for images [N, 1, 28, 28] with the data's mean and standard deviation; logits [N, 10]."""

    mean, std, image_size = (0.286,), (0.353,), 28


def normed(
    channels: int, out: int, size: int = 3, *, stride: int = 1, groups: int = 1, act: type[nn.Module] | None = nn.ReLU
) -> nn.Sequential:
    """Return a convolution without bias, its BatchNorm and an activation, unless that is None."""
    convolution = nn.Conv2d(channels, out, size, stride, size // 2, groups=groups, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(out), *([] if act is None else [act()]))


def head(channels: int) -> list[nn.Module]:
    """Return a global mean and a linear layer."""
    return [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, CLASSES)]


class Added(nn.Module):
    """``layers`` and their input added, with a ReLU behind the sum if there is to be one."""

    def __init__(self, layers: nn.Module, *, relu: bool = False) -> None:
        super().__init__()
        self.layers, self.act = layers, nn.ReLU() if relu else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.act(x + self.layers(x))


class Joined(nn.Module):
    """The input and what ``layers`` make of it, as channels side by side."""

    def __init__(self, layers: nn.Module) -> None:
        super().__init__()
        self.layers = layers

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x, self.layers(x)], 1)


class Squeezed(nn.Module):
    """A squeeze and excitation: each channel times a gate of all channels' means."""

    def __init__(
        self, channels: int, inner: int, act: type[nn.Module] = nn.SiLU, gate: type[nn.Module] = nn.Sigmoid
    ) -> None:
        super().__init__()
        self.gate = nn.Sequential(
            nn.AdaptiveAvgPool2d(1), nn.Conv2d(channels, inner, 1), act(), nn.Conv2d(inner, channels, 1), gate()
        )

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gate(x)


def plain() -> Classifier:
    """Return six convolutions in a row with max pooling."""
    return Classifier(
        *(normed(1, 12), normed(12, 16), nn.MaxPool2d(2), normed(16, 32), normed(32, 32), nn.MaxPool2d(2)),
        *(normed(32, 64), normed(64, 64), *head(64)),
    )


def residual() -> Classifier:
    """Return a residual network with a ReLU behind each sum."""
    layers: list[nn.Module] = [normed(1, 16, stride=2)]
    for channels, out in ((16, 16), (16, 32), (32, 64)):
        if channels != out:
            layers.append(normed(channels, out, stride=2))
        layers.append(Added(nn.Sequential(normed(out, out), normed(out, out, act=None)), relu=True))
    return Classifier(*layers, *head(64))


def mobile() -> Classifier:
    """Return inverted residuals with depthwise convolutions and ReLU6."""
    layers: list[nn.Module] = [normed(1, 16, stride=2, act=nn.ReLU6)]
    for channels, out, stride in ((16, 24, 1), (24, 24, 1), (24, 32, 2), (32, 32, 1), (32, 48, 1)):
        inner = 3 * channels
        block = nn.Sequential(
            normed(channels, inner, 1, act=nn.ReLU6),
            normed(inner, inner, stride=stride, groups=inner, act=nn.ReLU6),
            normed(inner, out, 1, act=None),
        )
        layers.append(Added(block) if channels == out else block)
    return Classifier(*layers, normed(48, 128, 1, act=nn.ReLU6), *head(128))


def dense() -> Classifier:
    """Return densely connected layers: each one's input is all before it."""
    layers: list[nn.Module] = [normed(1, 16, stride=2)]
    channels = 16
    for _ in range(2):
        for _ in range(4):
            layers.append(Joined(normed(channels, 12)))
            channels += 12
        layers += [normed(channels, channels // 2, 1), nn.AvgPool2d(2)]
        channels //= 2
    return Classifier(*layers, *head(channels))


def squeezed() -> Classifier:
    """Return inverted residuals with SiLU and squeeze and excitation."""
    layers: list[nn.Module] = [normed(1, 16, stride=2, act=nn.SiLU)]
    for channels, out, stride in ((16, 24, 1), (24, 24, 1), (24, 40, 2), (40, 40, 1)):
        inner = 3 * channels
        block = nn.Sequential(
            normed(channels, inner, 1, act=nn.SiLU),
            normed(inner, inner, stride=stride, groups=inner, act=nn.SiLU),
            Squeezed(inner, 8),
            normed(inner, out, 1, act=None),
        )
        layers.append(Added(block) if channels == out else block)
    return Classifier(*layers, normed(40, 96, 1, act=nn.SiLU), *head(96))


def gated() -> Classifier:
    """Return fused inverted residuals with SiLU, with squeeze and excitation, as EfficientNetV2's.

    A second kind of gates, so that settings for them need not be chosen by :func:`squeezed`.
    """
    layers: list[nn.Module] = [normed(1, 16, stride=2, act=nn.SiLU)]
    for channels, out, stride in ((16, 24, 1), (24, 24, 1), (24, 32, 2), (32, 32, 1)):
        block = nn.Sequential(
            normed(channels, 2 * channels, stride=stride, act=nn.SiLU),
            Squeezed(2 * channels, 8),
            normed(2 * channels, out, 1, act=None),
        )
        layers.append(Added(block) if channels == out else block)
    return Classifier(*layers, normed(32, 80, 1, act=nn.SiLU), *head(80))


def hard() -> Classifier:
    """Return inverted residuals with hard swish, some with squeeze and excitation by hard gates, as MobileNetV3's."""
    layers: list[nn.Module] = [normed(1, 16, stride=2, act=nn.Hardswish)]
    rows = (
        (16, 24, 1, nn.ReLU, 5),
        (24, 24, 1, nn.ReLU, 3),
        (24, 40, 2, nn.Hardswish, 5),
        (40, 40, 1, nn.Hardswish, 5),
    )
    for channels, out, stride, act, size in rows:
        inner = 3 * channels
        block = nn.Sequential(
            normed(channels, inner, 1, act=act),
            normed(inner, inner, size, stride=stride, groups=inner, act=act),
            *([Squeezed(inner, 16, nn.ReLU, nn.Hardsigmoid)] if size == 5 else []),
            normed(inner, out, 1, act=None),
        )
        layers.append(Added(block) if channels == out else block)
    return Classifier(*layers, normed(40, 96, 1, act=nn.Hardswish), *head(96))


def leaky() -> Classifier:
    """Return convolutions with LeakyReLU, the last of which makes the logits: there is no linear layer."""
    layers = [normed(1, 16, act=nn.LeakyReLU)]
    for channels, out in ((16, 32), (32, 48), (48, 64)):
        layers.append(normed(channels, out, stride=2 if channels < 48 else 1, act=nn.LeakyReLU))
    return Classifier(*layers, nn.Conv2d(64, CLASSES, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten())


def wide() -> Classifier:
    """Return few and wide layers: 1.1 million parameters."""
    return Classifier(
        *(normed(1, 64, stride=2), normed(64, 160, stride=2), normed(160, 256), normed(256, 256, stride=2)), *head(256)
    )


def tiny() -> Classifier:
    """Return a network of 3 thousand parameters."""
    return Classifier(normed(1, 8, stride=2), normed(8, 12, stride=2), normed(12, 16), *head(16))
