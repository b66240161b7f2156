"""Fake quantization maps values to the nearest value on a grid, with the straight-through gradient."""

from __future__ import annotations

from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from .. import accel


def fake_quantize(
    values: Tensor, scale: Tensor, zero_point: Tensor, largest_code: int, log_factor: Tensor | None = None
) -> Tensor:
    """Return (clamp(round(x / scale) + zero_point, 0, largest_code) - zero_point) · scale; no gradient if clamped.

    With ``log_factor`` the scale is exp(log_factor) times as large, and the gradient for it is LSQ's (Esser et al.,
    ICLR 2020, eq. 3): dy / d log s = y - x where x passes, y where it is clamped.

    values: any shape; scale, zero_point, log_factor: [].  On the CPU the accelerated code is faster than
    ``torch.fake_quantize_per_tensor_affine``, with the same values.
    """
    if accel.enabled and values.device.type == "cpu" and not torch.compiler.is_compiling():
        factored = scale if log_factor is None else scale * log_factor.detach().exp()
        return cast(Tensor, _FakeQuantize.apply(values, log_factor, factored.item(), zero_point.item(), largest_code))
    if log_factor is None:
        return torch.fake_quantize_per_tensor_affine(values, scale, zero_point, 0, largest_code)
    factor = log_factor.exp()
    return fake_quantize(values / factor, scale, zero_point, largest_code) * factor


class _FakeQuantize(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, values: Tensor, log_factor: Tensor | None, scale: float, zero_point: int, largest_code: int
    ) -> Tensor:
        lowest, highest = -zero_point, largest_code - zero_point
        ctx.scale, ctx.passing = scale, ((lowest - 0.5) * scale, (highest + 0.5) * scale)
        inverse = float(np.float32(1) / np.float32(scale))
        codes = values.mul(inverse).round_().clamp_(lowest, highest)
        if log_factor is None:
            ctx.save_for_backward(values)
            return codes.mul_(scale)
        ctx.save_for_backward(values, codes)
        return codes.mul(scale)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        values, *codes = ctx.saved_tensors
        if gradient.stride() != values.stride():  # after slices or a pooling; else later steps are slow
            gradient = torch.empty_like(values).copy_(gradient)
        passing = torch.ops.aten.hardtanh_backward(gradient, values, *ctx.passing)
        by_log = [ctx.scale * _dot(gradient, each) - _dot(passing, values) for each in codes]
        return passing, by_log[0] if by_log else None, None, None, None


def _dot(one: Tensor, other: Tensor) -> Tensor:
    """Return the sum of the products of two tensors' elements, without a copy if both are in one of the layouts."""
    if one.ndim == 4 and one.is_contiguous(memory_format=torch.channels_last):
        one, other = (each.permute(0, 2, 3, 1) for each in (one, other))
    return torch.dot(one.flatten(), other.flatten())


def round_through(values: Tensor) -> Tensor:
    """Return the nearest integers to ``values``, of any shape, with the straight-through gradient."""
    return cast(Tensor, _RoundThrough.apply(values))


class _RoundThrough(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:
        return values.round()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient


def per_channel(values: Tensor, weight: Tensor) -> Tensor:
    """Return ``values`` [out] in a shape that broadcasts over ``weight`` [out, ...]."""
    return values.view(-1, *[1] * (weight.ndim - 1))


class FakeQuantizeChannels(torch.autograd.Function):
    """Fake quantization of each output channel to its whole range, with the straight-through gradient."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, scale: Tensor, zero_point: Tensor, largest_code: int) -> Tensor:
        scale, zero_point = per_channel(scale, weight), per_channel(zero_point, weight)
        codes = weight.mul(scale.reciprocal()).round_().add_(zero_point).clamp_(0, largest_code)
        return codes.sub_(zero_point).mul_(scale)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        return gradient, None, None, None


class FakeQuantizeLearnedChannels(torch.autograd.Function):
    """Fake quantization of each output channel whose scale has a factor that is trained; ``scale`` is the product.

    A weight has the straight-through gradient unless its code is the least or the largest one: what is at an end of the
    range stays there, and only the factor moves it. The gradient for the factor's logarithm is LSQ's, as in
    :func:`fake_quantize`. Beside the weight and the result only a flag for each weight is kept for the backward pass.
    """

    @staticmethod
    def forward(
        ctx: Any, weight: Tensor, log_factor: Tensor, scale: Tensor, zero_point: Tensor, largest_code: int
    ) -> Tensor:
        scale, zero_point = per_channel(scale, weight), per_channel(zero_point, weight)
        codes = weight.div(scale).round_().add_(zero_point).clamp_(0, largest_code)
        inside = codes.gt(0).logical_and_(codes.lt(largest_code))
        values = codes.sub_(zero_point).mul_(scale)
        ctx.save_for_backward(weight, values, inside)
        return values

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        weight, values, inside = ctx.saved_tensors
        passing = gradient.mul(inside)
        by_log = gradient.mul(values).sub_(passing.mul(weight)).sum(tuple(range(1, weight.ndim)))
        return passing, by_log, None, None, None
