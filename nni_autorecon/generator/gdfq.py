"""GDFQ's human-designed generators (Xu et al., 2020)."""

from __future__ import annotations

from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from ..accel.convolution import (
    LEAKY_SLOPE,
    conv_backward,
    conv_by_rows,
    fits_by_rows,
    kernel_gradient_by_rows,
)
from ..accel.upsampling import UpsampledConv
from .operations import ClassAffine, embedded
from .topology import ImageShape

GDFQ_WIDTH = 128
LATENT_DIM = 100
GDFQ_EPS = 0.8  # the released code passes 0.8 where BatchNorm2d expects eps; it is part of the baseline


class GDFQGenerator(nn.Module):
    """GDFQ's human-designed generators (Xu et al., 2020), after ACGAN.

    Two upsamplings by nearest neighbour from a quarter of the image, widths ``width`` and ``width`` / 2.
    With ``conditional`` false, the label enters by embedding(y) ⊙ z (their CIFAR generator); with true, by
    class-conditional normalization in all three places (their ImageNet generator).
    Convolutions before a BatchNorm have no bias, which would change no image.
    """

    def __init__(
        self,
        *,
        image: ImageShape,
        num_classes: int,
        width: int = GDFQ_WIDTH,
        latent_dim: int = LATENT_DIM,
        conditional: bool = False,
    ) -> None:
        super().__init__()
        self.image, self.num_classes, self.width, self.latent_dim = image, num_classes, width, latent_dim
        self.embedding = None if conditional else nn.Embedding(num_classes, latent_dim)
        self.sizes = gdfq_sizes(image)
        narrow = max(width // 2, 1)
        height0, width0 = self.sizes[0]
        self.stem = nn.Linear(latent_dim, width * height0 * width0)
        self.norms = nn.ModuleList(
            _GDFQNorm(features, num_classes if conditional else None, eps)
            for features, eps in ((width, 1e-5), (width, GDFQ_EPS), (narrow, GDFQ_EPS))
        )
        self.convs = nn.ModuleList(UpsampledConv(width, out) for out in (width, narrow))
        self.to_rgb = nn.Conv2d(narrow, image.channels, 3, padding=1)
        self.norm_out = nn.BatchNorm2d(image.channels, affine=False)
        self.to(memory_format=torch.channels_last)

    def macs(self) -> int:
        """Multiply-accumulates for one image."""
        return gdfq_macs(width=self.width, image=self.image, latent_dim=self.latent_dim)

    def forward(self, z: Tensor, labels: Tensor) -> Tensor:
        """Images [N, C, H, W] for latent vectors z [N, latent_dim] and labels [N], or probabilities [N, K]."""
        if self.embedding is not None:
            z = embedded(self.embedding, labels) * z
        x = self.stem(z).view(-1, self.width, *self.sizes[0]).contiguous(memory_format=torch.channels_last)
        x = self.norms[0](x, labels)
        for size, conv, norm in zip(self.sizes[1:], self.convs, list(self.norms)[1:], strict=True):
            x = F.leaky_relu_(norm(conv(x, size), labels), LEAKY_SLOPE)  # [N, C, *size]
        return self.norm_out(torch.tanh(image_conv(x, self.to_rgb).contiguous()))


def image_conv(x: Tensor, conv: nn.Conv2d) -> Tensor:
    """The 3×3 convolution of padding 1 that makes images of features [N, C, h, w].

    On a CPU that to few channels is faster by the rows of its kernel, and that to a single one by taps: a 1×1
    convolution to nine channels, which are added where they belong.
    """
    weight, bias = conv.weight, cast(Tensor, conv.bias)
    if not fits_by_rows(x, weight):
        return cast(Tensor, conv(x))
    if len(weight) > 1:
        return cast(Tensor, _ConvByRows.apply(x, weight, bias))
    taps = F.conv2d(x, weight.flip(2, 3).permute(2, 3, 1, 0).reshape(9, -1, 1, 1))  # [N, 9, h, w]
    return F.fold(taps.flatten(2), x.shape[2:], 3, padding=1) + bias


class _ConvByRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        return conv_by_rows(x, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        dx = conv_backward(dy, x, weight, padding=[1, 1], of_kernel=False)[0] if ctx.needs_input_grad[0] else None
        return dx, kernel_gradient_by_rows(dy, x, weight), dy.sum((0, 2, 3))


class _GDFQNorm(nn.Module):
    """BatchNorm with one affine map, or one per class."""

    def __init__(self, channels: int, num_classes: int | None, eps: float) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(channels, eps=eps, affine=num_classes is None)
        self.affine = None if num_classes is None else ClassAffine(channels, num_classes)

    def forward(self, x: Tensor, labels: Tensor) -> Tensor:
        if self.affine is None:
            return self.norm(x)
        scale, shift = self.affine(labels)[..., None, None].unbind(1)  # both [N, C, 1, 1]
        return torch.addcmul(shift, self.norm(x), scale)


def gdfq_macs(*, width: int, image: ImageShape, latent_dim: int) -> int:
    """Multiply-accumulates of GDFQ's generator for one image."""
    (h0, w0), (h1, w1), (h2, w2) = gdfq_sizes(image)
    narrow = max(width // 2, 1)
    convolutions = width * width * h1 * w1 + (width * narrow + narrow * image.channels) * h2 * w2
    return latent_dim * width * h0 * w0 + 9 * convolutions


def gdfq_sizes(image: ImageShape) -> list[tuple[int, int]]:
    """A quarter of the image, half of it, and all: height and width, rounded up."""
    return [(-(-image.height // f), -(-image.width // f)) for f in (4, 2, 1)]
