"""This module has networks for small images: MobileNetV2, and ResNets after He et al., "Deep Residual Learning" (2015).

Images may have any size. The residual networks' state_dicts have the names that public checkpoints of ResNets for CIFAR
use (``layer1.0.conv1``). Saved students name networks by this module, so its path must stay.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, cast

import torch.nn.functional as F
from torch import Tensor, nn

Shortcut = Literal["pad", "conv"]


class BasicBlock(nn.Module):
    """A residual block of two 3×3 convolutions: relu(x' + bn(conv(relu(bn(conv(x)))))), where x' is the shortcut of x.

    It maps [N, in_channels, H, W] to [N, out_channels, H / stride, W / stride].
    """

    expansion = 1

    def __init__(self, in_channels: int, out_channels: int, *, stride: int, shortcut: Shortcut) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(out_channels)
        self.relu1 = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.relu2 = nn.ReLU(inplace=True)  # not relu1 again, as each needs its own activation range when quantized
        self.shortcut = _shortcut(in_channels, out_channels, stride, shortcut)

    def forward(self, x: Tensor) -> Tensor:
        residual = self.bn2(self.conv2(self.relu1(self.bn1(self.conv1(x)))))
        return self.relu2(self.shortcut(x) + residual)


class Bottleneck(nn.Module):
    """A residual block of three convolutions: 1×1 to ``width`` channels, 3×3, and 1×1 to four times ``width`` channels.

    It maps [N, in_channels, H, W] to [N, 4 · width, H / stride, W / stride].
    """

    expansion = 4

    def __init__(self, in_channels: int, width: int, *, stride: int, shortcut: Shortcut) -> None:
        super().__init__()
        out_channels = width * self.expansion
        self.conv1 = nn.Conv2d(in_channels, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu1 = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(width, width, 3, stride=stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.relu2 = nn.ReLU(inplace=True)
        self.conv3 = nn.Conv2d(width, out_channels, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(out_channels)
        self.relu3 = nn.ReLU(inplace=True)
        self.shortcut = _shortcut(in_channels, out_channels, stride, shortcut)

    def forward(self, x: Tensor) -> Tensor:
        residual = self.relu1(self.bn1(self.conv1(x)))
        residual = self.relu2(self.bn2(self.conv2(residual)))
        return self.relu3(self.shortcut(x) + self.bn3(self.conv3(residual)))


class PadShortcut(nn.Module):
    """A shortcut that takes every ``stride``-th pixel and adds zero channels, half before and half after (option A).

    Raises ValueError if there are fewer channels after it than before.
    """

    def __init__(self, in_channels: int, out_channels: int, *, stride: int) -> None:
        super().__init__()
        if out_channels < in_channels:
            raise ValueError(f"cannot pad {in_channels} channels to {out_channels}; use shortcut='conv'")
        self.before = (out_channels - in_channels) // 2
        self.after = out_channels - in_channels - self.before
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        x = x[:, :, :: self.stride, :: self.stride]
        return F.pad(x, (0, 0, 0, 0, self.before, self.after))  # [N, out_channels, H / stride, W / stride]


def _shortcut(in_channels: int, out_channels: int, stride: int, shortcut: Shortcut) -> nn.Module:
    """Return the identity, or the named shortcut if the block changes the shape. Raises ValueError for other names."""
    if in_channels == out_channels and stride == 1:
        return nn.Identity()
    if shortcut == "pad":
        return PadShortcut(in_channels, out_channels, stride=stride)
    if shortcut == "conv":
        convolution = nn.Conv2d(in_channels, out_channels, 1, stride=stride, bias=False)
        return nn.Sequential(convolution, nn.BatchNorm2d(out_channels))
    raise ValueError(f"shortcut = {shortcut!r}; choose 'pad' or 'conv'")


class CifarResNet(nn.Module):
    """A 3×3 stem, stages of residual blocks, a global average pool and a linear classifier (He et al., section 4.2).

    ``depths`` is the number of blocks of each stage, and ``widths`` is the number of inner channels of these blocks.
    Every stage but the first halves height and width. Where a block changes the shape, its shortcut is parameter-free
    (``"pad"``, option A of the paper) or a 1×1 convolution with BatchNorm (``"conv"``, option B).

    The network maps images [N, in_channels, H, W] of any size to logits [N, num_classes].
    Raises ValueError unless there is one depth and one width for each of at least one stage.
    """

    def __init__(
        self,
        depths: Sequence[int],
        widths: Sequence[int],
        *,
        in_channels: int = 3,
        num_classes: int = 10,
        shortcut: Shortcut = "conv",
        block: type[BasicBlock | Bottleneck] = BasicBlock,
    ) -> None:
        super().__init__()
        if len(depths) != len(widths) or not depths:
            raise ValueError(f"{len(depths)} depths and {len(widths)} widths; give one of each for every stage")
        self.conv1 = nn.Conv2d(in_channels, widths[0], 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(widths[0])
        self.relu = nn.ReLU(inplace=True)
        self.stages = [f"layer{number}" for number in range(1, len(depths) + 1)]  # public checkpoints use these names
        channels = widths[0]
        for name, depth, width in zip(self.stages, depths, widths, strict=True):
            strides = [1 if name == "layer1" else 2] + [1] * (depth - 1)
            blocks = []
            for stride in strides:
                blocks.append(block(channels, width, stride=stride, shortcut=shortcut))
                channels = width * block.expansion
            self.add_module(name, nn.Sequential(*blocks))
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.linear = nn.Linear(channels, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        x = self.relu(self.bn1(self.conv1(images)))  # [N, widths[0], H, W]
        for name in self.stages:
            x = self.get_submodule(name)(x)  # [N, widths[i] · expansion, H / 2^i, W / 2^i]
        return self.linear(self.pool(x).flatten(1))  # [N, K]


def digits_resnet() -> CifarResNet:
    """Return a network with one block per stage, for grey images of ten classes: 78 thousand parameters."""
    return CifarResNet((1, 1, 1), (16, 32, 64), in_channels=1, num_classes=10)


def digits_student() -> CifarResNet:
    """Return the digits network at half its width: 20 thousand parameters."""
    return CifarResNet((1, 1, 1), (8, 16, 32), in_channels=1, num_classes=10)


def resnet20(num_classes: int = 10) -> CifarResNet:
    """Return ResNet-20 for CIFAR with parameter-free shortcuts, as in the paper: 0.27 million parameters."""
    return _thin_resnet(3, num_classes)


def resnet32(num_classes: int = 10) -> CifarResNet:
    """Return ResNet-32 for CIFAR, built like ResNet-20: 0.46 million parameters."""
    return _thin_resnet(5, num_classes)


def resnet44(num_classes: int = 10) -> CifarResNet:
    """Return ResNet-44 for CIFAR, built like ResNet-20: 0.66 million parameters."""
    return _thin_resnet(7, num_classes)


def resnet56(num_classes: int = 10) -> CifarResNet:
    """Return ResNet-56 for CIFAR, built like ResNet-20: 0.85 million parameters."""
    return _thin_resnet(9, num_classes)


def resnet18(num_classes: int = 10) -> CifarResNet:
    """Return ResNet-18 with the width for ImageNet and a stem for 32×32 images: 11.17 million parameters."""
    return _wide_resnet((2, 2, 2, 2), BasicBlock, num_classes)


def resnet34(num_classes: int = 10) -> CifarResNet:
    """Return ResNet-34, built like ResNet-18: 21.28 million parameters."""
    return _wide_resnet((3, 4, 6, 3), BasicBlock, num_classes)


def resnet50(num_classes: int = 10) -> CifarResNet:
    """Return ResNet-50, built like ResNet-18 but with bottleneck blocks: 23.52 million parameters."""
    return _wide_resnet((3, 4, 6, 3), Bottleneck, num_classes)


def mobilenetv2(num_classes: int = 10) -> nn.Module:
    """Return torchvision's MobileNetV2 with the first two strides at 1, for 32×32 images: 2.24 million parameters.

    The network is that of Sandler et al., "MobileNetV2: Inverted Residuals and Linear Bottlenecks" (2018), table 2.
    """
    from torchvision.models import mobilenet_v2  # slow to import, and the other networks do not need it

    network: nn.Module = mobilenet_v2(num_classes=num_classes, inverted_residual_setting=MOBILENETV2_STAGES)
    cast(nn.Conv2d, network.get_submodule("features.0.0")).stride = (1, 1)
    return network


MOBILENETV2_STAGES = [  # expansion, channels, blocks, stride of the first block
    [1, 16, 1, 1],
    [6, 24, 2, 1],
    [6, 32, 3, 2],
    [6, 64, 4, 2],
    [6, 96, 3, 1],
    [6, 160, 3, 2],
    [6, 320, 1, 1],
]


def _thin_resnet(depth: int, num_classes: int) -> CifarResNet:
    return CifarResNet((depth,) * 3, (16, 32, 64), num_classes=num_classes, shortcut="pad")


def _wide_resnet(depths: Sequence[int], block: type[BasicBlock | Bottleneck], num_classes: int) -> CifarResNet:
    return CifarResNet(depths, (64, 128, 256, 512), num_classes=num_classes, block=block)


def parameter_count(network: nn.Module) -> int:
    """Count the numbers that ``network`` learns."""
    return sum(parameter.numel() for parameter in network.parameters())
