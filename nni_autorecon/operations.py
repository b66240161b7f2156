"""Candidate operations of the search space (Table 1) and their mixture on an edge (eq. 8).

Every operation maps features [N, C, h, w] and labels [N] to features [N, C, *size].
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .topology import CONVOLUTIONS, IDENTITY, INTERPOLATIONS, NONE, NORMAL, Edge

LEAKY_SLOPE = 0.2


class EdgeShape(NamedTuple):
    """What an edge must know to build its operations."""

    width: int
    """Channels of both ends."""
    size: tuple[int, int]
    """Height and width of the target node."""
    num_classes: int


class ConditionalBatchNorm2d(nn.Module):
    """Batch normalization whose scale and shift are looked up by class (de Vries et al., 2017)."""

    def __init__(self, channels: int, num_classes: int, *, eps: float = 1e-5) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(channels, eps=eps, affine=False)
        self.scale = nn.Embedding(num_classes, channels)
        self.shift = nn.Embedding(num_classes, channels)
        nn.init.ones_(self.scale.weight)
        nn.init.zeros_(self.shift.weight)

    def forward(self, x: Tensor, labels: Tensor) -> Tensor:
        scale = self.scale(labels)[:, :, None, None]  # [N, C, 1, 1]
        shift = self.shift(labels)[:, :, None, None]  # [N, C, 1, 1]
        return torch.addcmul(shift, self.norm(x), scale)  # [N, C, h, w]


class Preactivation(nn.Module):
    """Class-conditional batch normalization, then LeakyReLU(0.2): what comes before every convolution."""

    def __init__(self, channels: int, num_classes: int) -> None:
        super().__init__()
        self.norm = ConditionalBatchNorm2d(channels, num_classes)

    def forward(self, x: Tensor, labels: Tensor) -> Tensor:
        return F.leaky_relu(self.norm(x, labels), LEAKY_SLOPE)


class ConvOperation(nn.Module):
    """Preactivation, then a size-keeping convolution."""

    def __init__(self, width: int, kernel_size: int, dilation: int, preactivation: Preactivation) -> None:
        super().__init__()
        self.preactivation = preactivation
        padding = dilation * (kernel_size - 1) // 2
        self.conv = nn.Conv2d(width, width, kernel_size, padding=padding, dilation=dilation)

    def forward(self, x: Tensor, labels: Tensor) -> Tensor:
        return self.conv(self.preactivation(x, labels))


class UpOperation(nn.Module):
    """Interpolation to the target's size, preactivation, 1×1 convolution.

    Where every pixel is repeated equally often, the interpolation comes last: it changes neither batch statistics nor
    what is computed from single pixels.
    """

    def __init__(self, mode: str, shape: EdgeShape) -> None:
        super().__init__()
        self.mode, self.size = mode, shape.size
        self.preactivation = Preactivation(shape.width, shape.num_classes)
        self.conv = nn.Conv2d(shape.width, shape.width, 1)

    def forward(self, x: Tensor, labels: Tensor) -> Tensor:
        evenly = all(after % before == 0 for after, before in zip(self.size, x.shape[2:], strict=True))
        if self.mode == "nearest" and evenly:
            return self._interpolate(self.conv(self.preactivation(x, labels)))
        return self.conv(self.preactivation(self._interpolate(x), labels))

    def _interpolate(self, x: Tensor) -> Tensor:
        """Features of the target's size."""
        align_corners = False if self.mode == "bilinear" else None
        return F.interpolate(x, self.size, mode=self.mode, align_corners=align_corners)


class Identity(nn.Module):
    """The features themselves."""

    def forward(self, x: Tensor, labels: Tensor) -> Tensor:
        return x


class NoConnection(nn.Module):
    """Zeros of the target's size, without storage."""

    def __init__(self, size: tuple[int, int]) -> None:
        super().__init__()
        self.size = size

    def forward(self, x: Tensor, labels: Tensor) -> Tensor:
        return x.new_zeros(()).expand(x.shape[0], x.shape[1], *self.size)


def make_operation(name: str, shape: EdgeShape, preactivation: Preactivation | None = None) -> nn.Module:
    """The candidate called ``name``. Convolutions use the given preactivation, or one of their own."""
    if name in CONVOLUTIONS:
        preactivation = preactivation or Preactivation(shape.width, shape.num_classes)
        return ConvOperation(shape.width, *CONVOLUTIONS[name], preactivation)
    if name in INTERPOLATIONS:
        return UpOperation(name, shape)
    if name == IDENTITY:
        return Identity()
    if name == NONE:
        return NoConnection(shape.size)
    known = ", ".join((*CONVOLUTIONS, *INTERPOLATIONS, IDENTITY, NONE))
    raise ValueError(f"unknown operation {name!r}; known: {known}")


def make_candidates(edge: Edge, shape: EdgeShape) -> dict[str, nn.Module]:
    """All candidates of an edge; its convolutions share one preactivation."""
    shared = Preactivation(shape.width, shape.num_classes) if edge.kind == NORMAL else None
    return {name: make_operation(name, shape, shared) for name in edge.candidates}


def mixture(operations: Mapping[str, nn.Module], weights: Tensor, x: Tensor, labels: Tensor) -> Tensor:
    """Eq. 8 as it stands: Σ_j m_j · O_j(x). ``weights`` [F] in the order of ``operations``."""
    terms = [
        weight * operation(x, labels)
        for weight, (name, operation) in zip(weights, operations.items(), strict=True)
        if name != NONE
    ]
    return sum(terms[1:], terms[0])


def fused_mixture(operations: Mapping[str, nn.Module], weights: Tensor, x: Tensor, labels: Tensor) -> Tensor:
    """Eq. 8 on a normal edge, with two convolutions instead of five.

    The candidates' convolutions share their input a = preactivation(x), so Σ_j m_j · conv_j(a) is linear in
    the kernels: conv_1x1, conv_3x3 and conv_5x5 merge into one 5×5 kernel, the dilated ones into another of
    dilation 2. The values and gradients are those of :func:`mixture`, up to rounding.
    """
    m = dict(zip(operations, weights, strict=True))
    convs = {name: cast(ConvOperation, operations[name]) for name in CONVOLUTIONS}
    a = convs["conv_1x1"].preactivation(x, labels)  # [N, C, h, w]
    y = m[IDENTITY] * x
    for dilation in (1, 2):
        names = [name for name in CONVOLUTIONS if CONVOLUTIONS[name][1] == dilation]
        kernel = torch.stack([m[name] * _centred(convs[name].conv.weight, 5) for name in names]).sum(0)
        bias = torch.stack([m[name] * cast(Tensor, convs[name].conv.bias) for name in names]).sum(0)
        y = y + F.conv2d(a, kernel, bias, padding=2 * dilation, dilation=dilation)
    return y


def sampled_operation(operations: Mapping[str, nn.Module], weights: Tensor, x: Tensor, labels: Tensor) -> Tensor:
    """Eq. 8 for one-hot weights [F], at the cost of the operation that they name.

    Of the weights only that of this operation receives a gradient (GDAS: Dong & Yang, CVPR 2019).
    """
    index = int(weights.argmax())
    y = cast(Tensor, list(operations.values())[index](x, labels))
    return weights[index] * y if weights.requires_grad else y


def mix_edge(edge_kind: str, operations: Mapping[str, nn.Module], weights: Tensor, x: Tensor, labels: Tensor) -> Tensor:
    """The output of an edge under mixture weights m [F], by the fastest exact form."""
    mix = fused_mixture if edge_kind == NORMAL else mixture
    return mix(operations, weights, x, labels)


def _centred(kernel: Tensor, size: int) -> Tensor:
    """A [C, C, k, k] kernel padded with zeros to [C, C, size, size]."""
    return F.pad(kernel, [(size - kernel.shape[-1]) // 2] * 4)
