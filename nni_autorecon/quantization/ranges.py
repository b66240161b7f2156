"""From values to a range, and from a range to scale and zero point."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # settings choose from RANGES, and a help text must not take seconds
    from torch import Tensor

LEAST_SCALE = 2.0**-126
"""The least normal float32: the inverse of any scale above it is finite."""

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
    largest = highest_code(bits)
    low, high = low.float().clamp(max=0.0), high.float().clamp(min=0.0)
    scale = (high - low).div_(largest)
    scale.masked_fill_(scale < LEAST_SCALE, 1.0)  # 1 / scale must be finite, too
    return scale, low.div(scale).neg_().round_().clamp_(0, largest).int()


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
    import torch

    full = torch.stack(minmax_range(values, bits))  # [2, rows]
    if values.shape[1] > LARGEST_SAMPLE:  # drawn, for at equal distances they might be of the same pixels of each map
        generator = torch.Generator().manual_seed(0)
        drawn = torch.randint(values.shape[1], (LARGEST_SAMPLE,), generator=generator)
        values = values[:, drawn.to(values.device)]
    best, least = full.clone(), full.new_full(full.shape[1:], torch.inf)
    for fraction in SHRINKAGES:
        scale, zero_point = affine_qparams(fraction * full[0], fraction * full[1], bits)
        codes = torch.fake_quantize_per_channel_affine(values, scale, zero_point, 0, 0, highest_code(bits))
        error = (codes - values).square().mean(1)  # [rows]
        best = torch.where(error < least, fraction * full, best)
        least = torch.minimum(error, least)
    return best[0], best[1]


RANGES = {"minmax": minmax_range, "percentile": percentile_range, "mse": mse_range}


def highest_code(bits: int) -> int:
    if not 1 <= bits <= 8:
        raise ValueError(f"{bits} bits are not supported; choose 1 to 8")
    return int(2**bits - 1)


def range_estimator(ranges: str) -> Callable[[Tensor, int], tuple[Tensor, Tensor]]:
    if ranges not in RANGES:
        raise ValueError(f"ranges = {ranges!r}; choose one of {', '.join(RANGES)}")
    return RANGES[ranges]
