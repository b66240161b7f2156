"""A convolution of an image enlarged by nearest neighbour, without enlarging it."""

from __future__ import annotations

from collections.abc import Iterator
from math import ceil
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from .convolution import conv_backward

PIECE = 2**22
"""Bytes of products that are made at once, so that they stay in a processor's cache."""


class UpsampledConv(nn.Conv2d):
    """A 3×3 convolution of padding 1, without bias, over x [N, C, h, w] brought to a size by nearest neighbour.

    At twice the size both steps are one, of fewer than half the multiplications: a transposed convolution, for a pixel
    that is repeated spreads its 3×3 kernel over 4×4 pixels, or, faster on a CPU, nine products instead of sixteen.
    """

    def __init__(self, channels: int, out: int) -> None:
        super().__init__(channels, out, 3, padding=1, bias=False)

    def forward(self, x: Tensor, size: tuple[int, int]) -> Tensor:  # type: ignore[override]
        if size != (2 * x.shape[2], 2 * x.shape[3]):
            return super().forward(F.interpolate(x, size, mode="nearest"))
        return self.by_nine_products(x) if x.device.type == "cpu" else self.as_transposed(x)

    def as_transposed(self, x: Tensor) -> Tensor:
        """At twice the size, as a transposed convolution."""
        kernel = self.weight.transpose(0, 1).flip(2, 3)
        sums = F.avg_pool2d(kernel, 2, stride=1, padding=1, divisor_override=1)  # over 2×2; [C, out, 4, 4]
        return F.conv_transpose2d(x, sums, stride=2, padding=1)

    def by_nine_products(self, x: Tensor) -> Tensor:
        """At twice the size, by :class:`_NineProducts`."""
        kernels = _of_products(_of_products(self.weight.permute(2, 3, 0, 1), 0), 1)  # [3, 3, out, C]
        return cast(Tensor, _NineProducts.apply(x, kernels.reshape(-1, x.shape[1], 1, 1)))


def _of_products(taps: Tensor, dim: int) -> Tensor:
    """Of three taps in one direction the kernels of the three products: the first, the sum, the last."""
    first, middle, last = taps.unbind(dim)
    return torch.stack([first, first + middle + last, last], dim)


class _NineProducts(torch.autograd.Function):
    """The enlarged image's convolution by minimal filtering (Winograd), of x and 1×1 kernels [9·out, C, 1, 1].

    In one direction, with taps a, b, c, pixel i becomes two:  a·x[i-1] + (b + c)·x[i]  and  (a + b)·x[i] + c·x[i+1].
    The three products a·x, (a + b + c)·x and c·x are enough: each pixel is the second of them, less the first plus
    its neighbour's first, or less the third plus its neighbour's third. In two directions they are nine.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, kernels: Tensor) -> Tensor:
        ctx.save_for_backward(x, kernels)
        y = x.new_empty(len(x), 2 * x.shape[2], 2 * x.shape[3], len(kernels) // 9)
        for piece, enlarged in _pieces(x, y):
            _spread(F.conv2d(_lines(piece), kernels), enlarged)
        return y.permute(0, 3, 1, 2)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, Tensor]:
        x, kernels = ctx.saved_tensors
        dx, dkernels = torch.empty_like(x, memory_format=torch.channels_last), torch.zeros_like(kernels)
        for piece, dpiece, enlarged in _pieces(x, dx, dy.permute(0, 2, 3, 1)):
            found, dkernel = conv_backward(_collected(enlarged), _lines(piece), kernels, padding=[0, 0])
            _lines(dpiece).copy_(found)
            dkernels += dkernel
        return dx, dkernels


def _pieces(*tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Of all of them, some images at a time, about as many each; the last are the enlarged ones."""
    images, products = len(tensors[-1]), tensors[-1].nbytes * 9 // 4
    return zip(*(tensor.split(ceil(images / ceil(products / PIECE))) for tensor in tensors), strict=True)


def _lines(x: Tensor) -> Tensor:
    """[N, C, h, w] as [N·h, C, 1, w], for PyTorch leaves a few images of 1×1 kernels to slower code."""
    n, channels, h, w = x.shape
    return x.permute(0, 2, 3, 1).reshape(n * h, 1, w, channels).permute(0, 3, 1, 2)


def _spread(products: Tensor, enlarged: Tensor) -> None:
    """Sum the products [n·h, 9·out, 1, w] of each pixel and its neighbours to ``enlarged`` [n, 2h, 2w, out]."""
    n, h, w, out = len(enlarged), enlarged.shape[1] // 2, enlarged.shape[2] // 2, enlarged.shape[3]
    of_taps = products.permute(0, 2, 3, 1).reshape(n, h, w, 3, 3, out)
    for i, row in enumerate(_doubled(*of_taps.unbind(3), dim=1)):
        for j, pixels in enumerate(_doubled(*row.unbind(3), dim=2)):
            enlarged[:, i::2, j::2] = pixels


def _collected(enlarged: Tensor) -> Tensor:
    """The transpose of :func:`_spread`."""
    w, out = enlarged.shape[2] // 2, enlarged.shape[3]
    rows = [_halved(enlarged[:, i::2, 0::2], enlarged[:, i::2, 1::2], dim=2) for i in (0, 1)]
    return _halved(*rows, dim=1).view(-1, 1, w, 9 * out).permute(0, 3, 1, 2)


def _doubled(first: Tensor, every: Tensor, last: Tensor, *, dim: int) -> tuple[Tensor, Tensor]:
    """Of what the first tap, all taps and the last make of each pixel, the two that it becomes in one direction."""
    even, odd, count = every - first, every - last, first.shape[dim] - 1
    even.narrow(dim, 1, count).add_(first.narrow(dim, 0, count))
    odd.narrow(dim, 0, count).add_(last.narrow(dim, 1, count))
    return even, odd


def _halved(even: Tensor, odd: Tensor, *, dim: int) -> Tensor:
    """The transpose of :func:`_doubled`, of [n, h, w, ...]; [n, h, w, 3, ...]."""
    products, count = even.new_empty(*even.shape[:3], 3, *even.shape[3:]), even.shape[dim] - 1
    first, every, last = products.unbind(3)
    torch.add(even, odd, out=every)
    torch.neg(even, out=first).narrow(dim, 0, count).add_(even.narrow(dim, 1, count))
    torch.neg(odd, out=last).narrow(dim, 1, count).add_(odd.narrow(dim, 0, count))
    return products
