"""What every searched convolution is part of: an affine map per class, LeakyReLU, convolution; in one function.

It keeps nothing for its backward pass but its inputs: what it needs of them is computed again. Kernels to few channels,
as of images, are applied row by row.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce
from typing import Any, NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

LEAKY_SLOPE = 0.2


class ConvTerm(NamedTuple):
    """Σ_j m_j · conv_j(leaky_relu(scale · x + shift)), [N, C', h, w], not computed yet."""

    x: Tensor
    """[N, C, h, w]."""
    affine: Tensor
    """Scale and shift by image and channel, [N, 2, C]."""
    convs: Sequence[nn.Conv2d]
    """With biases, square kernels and paddings that keep the size; of each dilation the smallest kernel first."""
    weights: Tensor | None = None
    """m, [J]; or all are 1."""

    @property
    def form(self) -> tuple[Any, ...]:
        """Terms of the same form can be summed by one convolution."""
        return self.x.shape, *((conv.kernel_size, conv.dilation) for conv in self.convs), self.weights is None


def activated_conv(*terms: ConvTerm) -> Tensor:
    """The sum of terms of the same form: one convolution of all their channels for each dilation.

    Convolution is linear in its kernel: Σ_j m_j · conv_j(a) is the convolution with Σ_j m_j · kernel_j, smaller
    kernels padded by zeros.
    """
    x, affine = _joined([term.x for term in terms], 1), _joined([term.affine for term in terms], 2)
    kernels, bias = _merged(terms)
    return _ActivatedConv.apply(x, affine, bias, tuple(kernels), *kernels.values())


def _merged(terms: Sequence[ConvTerm]) -> tuple[dict[int, Tensor], Tensor]:
    """Kernels by dilation, [C', T·C, k, k], and a bias [C'] for all terms."""
    by_conv = list(zip(*(term.convs for term in terms), strict=True))  # J × T
    biases = [conv.bias for convs in by_conv for conv in convs]  # J·T times [C']
    kernels = [_joined([conv.weight for conv in convs], 1) for convs in by_conv]
    if terms[0].weights is None:
        bias = reduce(torch.add, biases)
    else:
        weights = torch.stack([term.weights for term in terms], 1)  # type: ignore[misc]  # [J, T]
        bias = weights.flatten() @ torch.stack(biases)
        channels = terms[0].x.shape[1]
        factors = weights[:, :, None].expand(-1, -1, channels).reshape(len(weights), -1, 1, 1)  # [J, T·C, 1, 1]
        kernels = [kernel * factor for kernel, factor in zip(kernels, factors.unbind(), strict=True)]
    merged: dict[int, Tensor] = {}
    for conv, kernel in zip(terms[0].convs, kernels, strict=True):
        dilation = conv.dilation[0]
        if dilation in merged:
            smaller = merged[dilation]
            kernel = kernel + F.pad(smaller, [(kernel.shape[-1] - smaller.shape[-1]) // 2] * 4)
        merged[dilation] = kernel
    return merged, bias


def _joined(parts: Sequence[Tensor], dim: int) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(list(parts), dim)


class _ActivatedConv(torch.autograd.Function):
    """Of x [N, C, h, w], ``affine`` [N, 2, C], ``bias`` [C'], and a kernel [C', C, k, k] for each dilation."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, affine: Tensor, bias: Tensor, dilations: tuple[int, ...], *kernels: Tensor
    ) -> Tensor:
        ctx.dilations = dilations
        ctx.save_for_backward(x, affine, *kernels)
        a = _activation(x, affine)
        y = _conv(a, kernels[0], bias, dilations[0])
        for kernel, dilation in zip(kernels[1:], dilations[1:], strict=True):
            y += _conv(a, kernel, None, dilation)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, affine, *kernels = ctx.saved_tensors
        of_x, of_affine, of_bias, _, *of_kernels = ctx.needs_input_grad
        a = _activation(x, affine)
        dkernels = [
            _kernel_gradient(dy, a, kernel, dilation) if wanted else None
            for kernel, dilation, wanted in zip(kernels, ctx.dilations, of_kernels, strict=True)
        ]
        dx = daffine = None
        if of_x or of_affine:
            da = _input_gradient(dy, a, kernels[0], ctx.dilations[0])
            for kernel, dilation in zip(kernels[1:], ctx.dilations[1:], strict=True):
                da += _input_gradient(dy, a, kernel, dilation)
            da = torch.ops.aten.leaky_relu_backward(da, a, LEAKY_SLOPE, True)  # a has the sign of what it comes from
            daffine = torch.stack([(da * x).sum((2, 3)), da.sum((2, 3))], 1) if of_affine else None
            dx = da.mul_(_pixels(affine[:, 0])) if of_x else None
        dbias = dy.sum((0, 2, 3)) if of_bias else None
        return dx, daffine, dbias, None, *dkernels


def _activation(x: Tensor, affine: Tensor) -> Tensor:
    """[N, C, h, w], in the layout of x."""
    scale, shift = _pixels(affine).unbind(1)
    return F.leaky_relu_(torch.addcmul(shift, x, scale), LEAKY_SLOPE)


def _pixels(values: Tensor) -> Tensor:
    """[..., C] as [..., C, 1, 1]."""
    return values.view(*values.shape, 1, 1)


def _padding(kernel: Tensor, dilation: int) -> list[int]:
    return [dilation * (kernel.shape[-1] - 1) // 2] * 2


def _conv(a: Tensor, kernel: Tensor, bias: Tensor | None, dilation: int) -> Tensor:
    if bias is not None and fits_by_rows(a, kernel, dilation):
        return conv_by_rows(a, kernel, bias)
    return F.conv2d(a, kernel, bias, padding=_padding(kernel, dilation), dilation=dilation)


def _input_gradient(dy: Tensor, a: Tensor, kernel: Tensor, dilation: int) -> Tensor:
    return conv_backward(dy, a, kernel, padding=_padding(kernel, dilation), dilation=dilation, of_kernel=False)[0]


def _kernel_gradient(dy: Tensor, a: Tensor, kernel: Tensor, dilation: int) -> Tensor:
    """That of a dilated kernel is slow on a CPU, but for this way: the pixels of an image form dilation² grids that do
    not touch one another, and on each the kernel is a plain one.
    """
    if fits_by_rows(a, kernel, dilation):
        return kernel_gradient_by_rows(dy, a, kernel)
    if a.device.type == "cpu" and dilation > 1 and a.shape[2] % dilation == 0 == a.shape[3] % dilation:
        dy, a, dilation = _grids(dy, dilation), _grids(a, dilation), 1
    return conv_backward(dy, a, kernel, padding=_padding(kernel, dilation), dilation=dilation, of_input=False)[1]


def _grids(x: Tensor, step: int) -> Tensor:
    """[N, C, h, w] as [step²·N, C, h / step, w / step]: every ``step``-th pixel."""
    n, c, h, w = x.shape
    grids = x.view(n, c, h // step, step, w // step, step).permute(3, 5, 0, 2, 4, 1)
    return grids.reshape(-1, h // step, w // step, c).permute(0, 3, 1, 2)


def conv_backward(
    dy: Tensor,
    x: Tensor,
    kernel: Tensor,
    *,
    padding: Sequence[int],
    dilation: int = 1,
    of_input: bool = True,
    of_kernel: bool = True,
) -> tuple[Tensor, Tensor]:
    """The gradients of a convolution of stride 1, for its input x and for its kernel, as far as they are wanted."""
    dx, dkernel, _ = torch.ops.aten.convolution_backward(
        dy, x, kernel, None, [1, 1], padding, [dilation] * 2, False, [0, 0], 1, [of_input, of_kernel, False]
    )
    return dx, dkernel


def fits_by_rows(x: Tensor, kernel: Tensor, dilation: int = 1) -> bool:
    """Whether a kernel [out, C, k, k] is a plain 3×3 one, and to so few channels that a CPU, whose convolutions are
    made for sixteen, is faster by its rows."""
    return x.device.type == "cpu" and (kernel.shape[2], dilation) == (3, 1) and 3 * len(kernel) <= 16


def conv_by_rows(x: Tensor, kernel: Tensor, bias: Tensor) -> Tensor:
    """The 3×3 convolution of padding 1, [N, out, h, w], of all rows of the kernel at once, and their sum."""
    above, y, below = F.conv2d(x, _rows(kernel), padding=(0, 1)).chunk(3, 1)
    y = y + bias[:, None, None]
    y[:, :, 1:] += above[:, :, :-1]
    y[:, :, :-1] += below[:, :, 1:]
    return y


def kernel_gradient_by_rows(dy: Tensor, x: Tensor, kernel: Tensor) -> Tensor:
    """That of :func:`conv_by_rows` for its kernel."""
    of_rows = torch.cat([F.pad(dy, (0, 0, -1, 1)), dy, F.pad(dy, (0, 0, 1, -1))], 1)
    of_rows = of_rows.contiguous(memory_format=torch.channels_last)
    rows = conv_backward(of_rows, x, _rows(kernel), padding=[0, 1], of_input=False)[1]
    return rows.unflatten(0, (3, -1)).squeeze(3).permute(1, 2, 0, 3)


def _rows(kernel: Tensor) -> Tensor:
    """[out, C, 3, 3] as [3·out, C, 1, 3]."""
    return kernel.permute(2, 0, 1, 3).flatten(0, 1).unsqueeze(2)


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
