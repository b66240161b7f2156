"""What every searched convolution is part of: an affine map per class, LeakyReLU, convolution; in one function.

It keeps nothing for its backward pass but its input, which many edges share: what they need of it is computed again.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

LEAKY_SLOPE = 0.2


Affine = tuple[Tensor, Tensor]
"""Scale and shift by image and channel, both [N, C]."""


def activated_conv(x: Tensor, affine: Affine, bias: Tensor, kernels: Mapping[int, Tensor]) -> Tensor:
    """Σ_d conv_d(leaky_relu(scale · x + shift), kernel_d) + bias: [N, C', h, w] from ``x`` [N, C, h, w].

    ``bias`` [C']; ``kernels`` by dilation d, each [C', C, k, k] with an odd k.
    """
    if torch.compiler.is_compiling():
        return plain_activated_conv(x, affine, bias, kernels)
    return _ActivatedConv.apply(x, *affine, bias, tuple(kernels), *kernels.values())


def plain_activated_conv(x: Tensor, affine: Affine, bias: Tensor, kernels: Mapping[int, Tensor]) -> Tensor:
    """The same, as an expression."""
    scale, shift = affine
    a = F.leaky_relu(torch.addcmul(_pixels(shift), x, _pixels(scale)), LEAKY_SLOPE)
    parts = [F.conv2d(a, k, padding=_padding(k, d), dilation=d) for d, k in kernels.items()]
    return sum(parts, bias[:, None, None])


class _ActivatedConv(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor, shift: Tensor, bias: Tensor, dilations: tuple[int, ...],
                *kernels: Tensor) -> Tensor:  # fmt: skip
        ctx.dilations = dilations
        ctx.save_for_backward(x, scale, shift, *kernels)
        a = _activation(x, scale, shift)
        y = _conv(a, kernels[0], bias, dilations[0])
        for kernel, dilation in zip(kernels[1:], dilations[1:], strict=True):
            y += _conv(a, kernel, None, dilation)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, scale, shift, *kernels = ctx.saved_tensors
        of_x, of_scale, of_shift, of_bias, _, *of_kernels = ctx.needs_input_grad
        a = _activation(x, scale, shift)
        dkernels = [
            _kernel_gradient(dy, a, kernel, dilation) if wanted else None
            for kernel, dilation, wanted in zip(kernels, ctx.dilations, of_kernels, strict=True)
        ]
        dx = dscale = dshift = None
        if of_x or of_scale or of_shift:
            da = _input_gradient(dy, a, kernels[0], ctx.dilations[0])
            for kernel, dilation in zip(kernels[1:], ctx.dilations[1:], strict=True):
                da += _input_gradient(dy, a, kernel, dilation)
            da = torch.ops.aten.leaky_relu_backward(da, a, LEAKY_SLOPE, True)  # a has the sign of what it comes from
            dscale = (da * x).sum((2, 3)) if of_scale else None
            dshift = da.sum((2, 3)) if of_shift else None
            dx = da.mul_(_pixels(scale)) if of_x else None
        dbias = dy.sum((0, 2, 3)) if of_bias else None
        return dx, dscale, dshift, dbias, None, *dkernels


def _activation(x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    return F.leaky_relu_(torch.addcmul(_pixels(shift), x, _pixels(scale)), LEAKY_SLOPE)


def _pixels(values: Tensor) -> Tensor:
    """[N, C] as [N, C, 1, 1]."""
    return values.view(*values.shape, 1, 1)


def _padding(kernel: Tensor, dilation: int) -> int:
    return dilation * (kernel.shape[-1] - 1) // 2


def _conv(a: Tensor, kernel: Tensor, bias: Tensor | None, dilation: int) -> Tensor:
    return F.conv2d(a, kernel, bias, padding=_padding(kernel, dilation), dilation=dilation)


def _input_gradient(dy: Tensor, a: Tensor, kernel: Tensor, dilation: int) -> Tensor:
    return _conv_backward(dy, a, kernel, dilation, of_input=True)[0]


def _kernel_gradient(dy: Tensor, a: Tensor, kernel: Tensor, dilation: int) -> Tensor:
    """That of a dilated kernel is slow on a CPU, but for this way: the pixels of an image form dilation² grids that do
    not touch one another, and on each the kernel is a plain one.
    """
    if a.device.type == "cpu" and dilation > 1 and a.shape[2] % dilation == 0 == a.shape[3] % dilation:
        dy, a, dilation = _grids(dy, dilation), _grids(a, dilation), 1
    return _conv_backward(dy, a, kernel, dilation, of_input=False)[1]


def _grids(x: Tensor, step: int) -> Tensor:
    """[N, C, h, w] as [step²·N, C, h / step, w / step]: every ``step``-th pixel."""
    n, c, h, w = x.shape
    grids = x.view(n, c, h // step, step, w // step, step).permute(3, 5, 0, 2, 4, 1)
    return grids.reshape(-1, h // step, w // step, c).permute(0, 3, 1, 2)


def _conv_backward(dy: Tensor, a: Tensor, kernel: Tensor, dilation: int, *, of_input: bool) -> tuple[Tensor, Tensor]:
    pair, padding = [dilation] * 2, [_padding(kernel, dilation)] * 2
    mask = [of_input, not of_input, False]
    da, dkernel, _ = torch.ops.aten.convolution_backward(
        dy, a, kernel, None, [1, 1], padding, pair, False, [0, 0], 1, mask
    )
    return da, dkernel
