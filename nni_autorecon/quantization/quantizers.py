"""Fake quantization: values → range → scale and zero point → values on a grid."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from ..errors import DivergenceError

PERCENTILE = 0.999
"""Share of the values that lie at or above the low end, and at or below the high end, of a percentile range."""
SHRINKAGES = tuple(step / 50 for step in range(50, 9, -1))
"""Fractions of the min-max range among which an MSE range is the best: 1, 0.98 … 0.2."""
LARGEST_SAMPLE = 2**16
"""Values of a row, at most, by whose error an MSE range is chosen: a batch of activations has millions."""


def affine_qparams(low: Tensor, high: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    """Scale (float32) and zero point (int32) of asymmetric min-max quantization to the codes 0 .. 2**bits - 1.

        scale = (high - low) / (2**bits - 1),   zero_point = round(-low / scale)

    of the range widened to contain 0, which thus has a code. Worked example: -1 to 2 at 2 bits has scale 1, zero point
    1 and the values -1, 0, 1, 2. A range too narrow for a float32 scale, such as 0 to 0, has scale 1.

    low, high: any one shape, that of the results.  Raises ValueError unless 1 <= bits <= 8.
    """
    largest = _largest_code(bits)
    low, high = low.float().clamp(max=0.0), high.float().clamp(min=0.0)
    scale = (high - low).div_(largest)
    scale.masked_fill_(scale < torch.finfo(torch.float32).tiny, 1.0)  # 1 / scale must be finite, too
    return scale, low.div(scale).neg_().round_().clamp_(0, largest).to(torch.int32)


def minmax_range(values: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    """Minimum and maximum of each row. values: [rows, n]; returns low and high, both [rows]."""
    return values.amin(1), values.amax(1)  # aminmax(dim=1) would take up to ten times as long


def percentile_range(values: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    """The quantiles 1 − ``PERCENTILE`` and ``PERCENTILE`` of each row, interpolated. values: [rows, n]; two [rows]."""
    count = values.shape[1]
    whole, part = divmod((1 - PERCENTILE) * (count - 1), 1)  # of the distances between neighbours, from either end
    nearest = [1 + int(whole), min(2 + int(whole), count)]
    low, above_low = (values.kthvalue(k, dim=1).values for k in nearest)
    high, below_high = (values.kthvalue(count + 1 - k, dim=1).values for k in nearest)
    return low.lerp(above_low, part), high.lerp(below_high, part)


def mse_range(values: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    """Of the min-max range shrunk by each of ``SHRINKAGES``, the one with the least mean squared quantization error.

    Of a long row, the error is that of some values, always the same. values: [rows, n]; returns low and high, both
    [rows].
    """
    full = torch.stack(minmax_range(values, bits))  # [2, rows]
    if values.shape[1] > LARGEST_SAMPLE:  # drawn, for at equal distances they might be of the same pixels of each map
        generator = torch.Generator().manual_seed(0)
        drawn = torch.randint(values.shape[1], (LARGEST_SAMPLE,), generator=generator)
        values = values[:, drawn.to(values.device)]
    best, least = full.clone(), full.new_full(full.shape[1:], torch.inf)
    for fraction in SHRINKAGES:
        scale, zero_point = affine_qparams(fraction * full[0], fraction * full[1], bits)
        codes = torch.fake_quantize_per_channel_affine(values, scale, zero_point, 0, 0, _largest_code(bits))
        error = (codes - values).square().mean(1)  # [rows]
        best = torch.where(error < least, fraction * full, best)
        least = torch.minimum(error, least)
    return best[0], best[1]


RANGES = {"minmax": minmax_range, "percentile": percentile_range, "mse": mse_range}


def fake_quantize(
    values: Tensor,
    scale: Tensor,
    zero_point: Tensor,
    largest_code: int,
    log_factor: Tensor | None = None,
    *,
    rectify: bool = False,
) -> Tensor:
    """(clamp(round(x / scale) + zero_point, 0, largest_code) - zero_point) · scale; no gradient where clamped.

    With ``log_factor`` the scale is exp(log_factor) times as large, and the gradient for it is LSQ's (Esser et al.,
    ICLR 2020, eq. 3): dy / d log s = y - x where x passes, y where it is clamped. With ``rectify`` it is of relu(x).

    values: any shape; scale, zero_point, log_factor: [].  On the CPU faster than
    ``torch.fake_quantize_per_tensor_affine``, with the same values.
    """
    if values.device.type == "cpu" and not torch.compiler.is_compiling():
        factored = scale if log_factor is None else scale * log_factor.detach().exp()
        return cast(
            Tensor,
            _FakeQuantize.apply(values, log_factor, factored.item(), zero_point.item(), largest_code, rectify),
        )
    if rectify:
        values = values.relu()
    if log_factor is None:
        return torch.fake_quantize_per_tensor_affine(values, scale, zero_point, 0, largest_code)
    factor = log_factor.exp()
    return fake_quantize(values / factor, scale, zero_point, largest_code) * factor


class _FakeQuantize(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        values: Tensor,
        log_factor: Tensor | None,
        scale: float,
        zero_point: int,
        largest_code: int,
        rectify: bool,
    ) -> Tensor:
        highest = largest_code - zero_point
        lowest, least = (0, 0.0) if rectify else (-zero_point, (-zero_point - 0.5) * scale)
        ctx.scale, ctx.passing = scale, (least, (highest + 0.5) * scale)
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
        if gradient.stride() != values.stride():  # that of slices or a pooling; what comes below it would be slow
            gradient = torch.empty_like(values).copy_(gradient)
        passing = torch.ops.aten.hardtanh_backward(gradient, values, *ctx.passing)
        by_log = [ctx.scale * (gradient * each).sum() - (passing * values).sum() for each in codes]
        return passing, by_log[0] if by_log else None, None, None, None, None


def per_channel(values: Tensor, weight: Tensor) -> Tensor:
    """``values`` [out] shaped to broadcast over ``weight`` [out, ...]."""
    return values.view(-1, *[1] * (weight.ndim - 1))


class _FakeQuantizeChannels(torch.autograd.Function):
    """Fake quantization of each output channel to its own whole range, with the straight-through gradient."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, scale: Tensor, zero_point: Tensor, largest_code: int) -> Tensor:
        scale, zero_point = per_channel(scale, weight), per_channel(zero_point, weight)
        codes = weight.mul(scale.reciprocal()).round_().add_(zero_point).clamp_(0, largest_code)
        return codes.sub_(zero_point).mul_(scale)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        return gradient, None, None, None


class WeightQuantizer(nn.Module):
    """Parametrization of a weight [out, ...]: fake quantization to the range of each output channel.

    The range is taken anew at each forward. With min-max ranges the gradient passes unchanged, for nothing is clipped.
    (By half a step at most, where both ends of a range lie exactly midway between codes, as in -1 to 1.) With the
    others it is zero where a weight was clipped.

    ranges: one of ``RANGES``.  Raises ValueError for other names and unless 1 <= bits <= 8.
    """

    def __init__(self, bits: int, *, ranges: str = "minmax") -> None:
        super().__init__()
        self.bits = bits
        self.estimate = _estimator(ranges)
        self.largest_code = _largest_code(bits)

    def forward(self, weight: Tensor) -> Tensor:
        if self.estimate is minmax_range:
            return cast(Tensor, _FakeQuantizeChannels.apply(weight, *self.qparams(weight), self.largest_code))
        if not weight.isfinite().all():
            raise DivergenceError("weights of the student are no longer finite; lower the learning rate")
        return torch.fake_quantize_per_channel_affine(weight, *self.qparams(weight), 0, 0, self.largest_code)

    def qparams(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        """Scale and zero point of each output channel, both [out]. weight: [out, ...]."""
        weight = weight.detach()
        if weight.ndim == 4 and weight.is_contiguous(memory_format=torch.channels_last):
            weight = weight.permute(0, 2, 3, 1)  # as it lies in memory; otherwise flatten would copy it
        return affine_qparams(*self.estimate(weight.flatten(1), self.bits), self.bits)


class ActivationQuantizer(nn.Module):
    """Per-tensor asymmetric fake quantization; the gradient is zero where the input was clipped.

    While ``observing``, each forward first moves an exponential average of the batch's range. The buffers hold the
    raw averages, bias-corrected on reading only; in float64, so that constants come back unchanged. After
    :meth:`learn_range` the range has a factor that is trained.

    ranges: one of ``RANGES``.  Raises ValueError for other names and unless 1 <= bits <= 8.
    """

    averages: Tensor  # [2]: low, high
    observations: Tensor  # []
    log_factor: nn.Parameter | None  # []

    def __init__(self, bits: int, *, ranges: str = "minmax", decay: float = 0.9) -> None:
        super().__init__()
        self.bits = bits
        self.estimate = _estimator(ranges)
        self.largest_code = _largest_code(bits)
        self.decay = decay
        self.observing = False
        self._known: tuple[Tensor, int, tuple[Tensor, Tensor]] | None = None
        self.register_buffer("averages", torch.zeros(2, dtype=torch.float64))
        self.register_buffer("observations", torch.zeros((), dtype=torch.int64))
        self.register_parameter("log_factor", None)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_known": None}  # a copy's averages count their versions anew

    def learn_range(self) -> nn.Parameter:
        """Give the range, and so the scale, a factor to be trained, 1 at first; returns its logarithm, a scalar.

        The zero point stays. See :func:`fake_quantize`.
        """
        self.log_factor = nn.Parameter(torch.zeros((), device=self.averages.device))
        return self.log_factor

    def forward(self, activation: Tensor, *, rectify: bool = False) -> Tensor:
        """With ``rectify``, of relu(activation)."""
        if self.observing:
            activation, rectify = (activation.relu() if rectify else activation), False
            values = activation.detach().flatten()[None]  # [1, n]
            if not torch.stack(values.aminmax()).isfinite().all():
                raise DivergenceError("activations of the student are no longer finite; lower the learning rate")
            self.averages.lerp_(torch.cat(self.estimate(values, self.bits)).double(), 1 - self.decay)
            self.observations += 1
        if torch.is_grad_enabled():
            return fake_quantize(activation, *self._tracked(), self.largest_code, self.log_factor, rectify=rectify)
        return fake_quantize(activation, *self.qparams(), self.largest_code, rectify=rectify)

    def qparams(self) -> tuple[Tensor, Tensor]:
        """Scale and zero point of the present range, both []. Raises RuntimeError before the first observation."""
        scale, zero_point = self._tracked()
        return (scale if self.log_factor is None else scale * self.log_factor.detach().exp()), zero_point

    def _tracked(self) -> tuple[Tensor, Tensor]:
        """Scale and zero point of the range as tracked, computed anew only where the averages have changed."""
        now = self.averages, self.averages._version
        if self._known is None or self._known[0] is not now[0] or self._known[1] != now[1]:
            self._known = *now, affine_qparams(*self.range(), self.bits)
        return self._known[2]

    def set_range(self, low: float, high: float) -> None:
        """Make the range ``low`` to ``high``, as one observed batch with these extremes would. Raises ValueError unless
        both are finite and in order."""
        if not -math.inf < low <= high < math.inf:
            raise ValueError(f"a range from {low} to {high} cannot be quantized; give two finite numbers in order")
        self.averages.copy_((1 - self.decay) * self.averages.new_tensor([low, high]))
        self.observations.fill_(1)

    def range(self) -> tuple[Tensor, Tensor]:
        """The bias-corrected average low and high, as tracked. Raises RuntimeError before the first observation."""
        if (count := int(self.observations)) == 0:
            raise RuntimeError("an activation quantizer has no range yet; run batches within observe_ranges() first")
        low, high = (self.averages / (1 - self.decay**count)).float()
        return low, high


@contextmanager
def observe_ranges(network: nn.Module) -> Iterator[None]:
    """Within it every ActivationQuantizer of ``network`` tracks its range; outside, ranges never change."""
    before = {module: module.observing for module in network.modules() if isinstance(module, ActivationQuantizer)}
    try:
        for quantizer in before:
            quantizer.observing = True
        yield
    finally:
        for quantizer, observing in before.items():
            quantizer.observing = observing


def learn_ranges(network: nn.Module) -> list[nn.Parameter]:
    """Let every ActivationQuantizer of ``network`` learn its range; the logarithms of their factors."""
    return [module.learn_range() for module in network.modules() if isinstance(module, ActivationQuantizer)]


def _largest_code(bits: int) -> int:
    if not 1 <= bits <= 8:
        raise ValueError(f"{bits} bits are not supported; choose 1 to 8")
    return int(2**bits - 1)


def _estimator(ranges: str) -> Callable[[Tensor, int], tuple[Tensor, Tensor]]:
    if ranges not in RANGES:
        raise ValueError(f"ranges = {ranges!r}; choose one of {', '.join(RANGES)}")
    return RANGES[ranges]
