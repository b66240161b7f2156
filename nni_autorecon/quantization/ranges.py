"""Range estimators take the range of given values; ``affine_qparams`` turns a range into scale and zero point."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # settings choose from RANGES, and a help text must not take seconds
    from torch import Tensor

LEAST_SCALE = 2.0**-126
"""The least normal float32: the inverse of any scale above it is finite."""

LEAST_RATIO = 2.0**-12
"""The least step of a channel of weights held in INT8, as a part of the layer's largest."""

LARGEST_PAIR = 127
"""The most that two neighbouring weights may come to, in steps; rounding may add one step more."""

PERCENTILE = 0.999
"""A percentile range has this share of the values at or above its low end, and this share at or below its high end."""
SHRINKAGES = tuple(step / 50 for step in range(50, 4, -1))
"""An MSE range is smaller than the min-max range by the best of these fractions: 1, 0.98 … 0.1."""
LARGEST_SAMPLE = 2**13
"""An MSE range is chosen by the error of at most so many values of a row, as a batch of activations has millions."""


def affine_qparams(low: Tensor, high: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    """Return scale (float32) and zero point (int32) of asymmetric quantization to the codes 0 .. 2**bits - 1.

        scale = (high - low) / (2**bits - 1),   zero_point = round(-low / scale)

    The range is first widened to contain 0, which thus has a code. Worked example: -1 to 2 at 2 bits has scale 1, zero
    point 1 and the values -1, 0, 1, 2. A range too narrow for a float32 scale, such as 0 to 0, has scale 1.

    low, high: tensors of any one shape; both results have that shape.  Raises ValueError unless 1 <= bits <= 8.
    """
    largest = highest_code(bits)
    low, high = low.float().clamp(max=0.0), high.float().clamp(min=0.0)
    scale = (high - low).div_(largest)
    scale.masked_fill_(scale < LEAST_SCALE, 1.0)  # 1 / scale must be finite, too
    return scale, low.div(scale).neg_().round_().clamp_(0, largest).int()


def contained_qparams(low: Tensor, high: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    """Return scale and zero point of output channels, as :func:`affine_qparams` does, for weights held in INT8.

    Codes less their zero point must fit into INT8. Those of up to 6 bits always do; at 7 and 8 bits quantization is
    symmetric, with the integers -2**(bits - 1) to 2**(bits - 1) - 1. A channel whose weights are next to nothing beside
    the others' has a step of at least ``LEAST_RATIO`` times the layer's largest one, because its bias is counted in
    that step times the input's, in 32 bits.

    low, high: [out]; so are both results.  Raises ValueError unless 1 <= bits <= 8.
    """
    scale, zero_point = affine_qparams(low, high, bits)
    if bits > 6:
        half = 2 ** (bits - 1)
        scale = (low.float() / -half).maximum(high.float() / (half - 1))
        zero_point = zero_point.new_full(zero_point.shape, half)
    scale = scale.where((low < 0) | (high > 0), 0.0)
    return scale.clamp(min=scale.max() * LEAST_RATIO).masked_fill_(scale.max() < LEAST_SCALE, 1.0), zero_point


def pair_scale(weight: Tensor) -> Tensor:
    """Return the least step of each output channel at which INT8 weights can be added in pairs, [out].

    Where a processor lacks VNNI, onnxruntime multiplies UINT8 by INT8 and adds the products of two neighbours in 16
    bits, which saturate: two codes of equal sign may come to 128. Neighbours are the columns 2j and 2j + 1 of a row of
    weights in the order of height, width, input channel.

    weight: [out, in] or [out, in, height, width].
    """
    import torch.nn.functional as F

    rows = weight.movedim(1, -1).flatten(1)
    pairs = F.pad(rows, (0, rows.shape[1] % 2)).unflatten(1, (-1, 2)).sum(2)
    return pairs.abs().amax(1) / LARGEST_PAIR


def minmax_range(values: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    """Return the minimum and the maximum of each row. values: [rows, n]; low and high: [rows]. ``bits`` is not used."""
    return values.amin(1), values.amax(1)  # aminmax(dim=1) would take up to ten times as long


def percentile_range(values: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    """Return the quantiles 1 − ``PERCENTILE`` and ``PERCENTILE`` of each row, interpolated linearly.

    values: [rows, n]; low and high: [rows]. ``bits`` is not used.
    """
    count = values.shape[1]
    whole, part = divmod((1 - PERCENTILE) * (count - 1), 1)  # ranks between the quantile and its end of the sorted row
    nearest = [1 + int(whole), min(2 + int(whole), count)]
    low, above_low = (values.kthvalue(k, dim=1).values for k in nearest)
    high, below_high = (values.kthvalue(count + 1 - k, dim=1).values for k in nearest)
    return low.lerp(above_low, part), high.lerp(below_high, part)


def mse_range(values: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    """Return the range with the least mean squared quantization error at ``bits`` bits.

    The candidates are the min-max range times each of ``SHRINKAGES``, and the same range cut off, below and above, at
    each of them times the largest magnitude, so that the short side of a SiLU stays whole. The error of a row longer
    than ``LARGEST_SAMPLE`` is measured on a random sample of it, which is the same at each call.

    values: [rows, n]; low and high: [rows].  Raises ValueError unless 1 <= bits <= 8.
    """
    import torch

    full = torch.stack(minmax_range(values, bits))  # [2, rows]
    if values.shape[1] > LARGEST_SAMPLE:
        # Values at equal distances could all come from the same pixels of each feature map, so the sample is random.
        generator = torch.Generator().manual_seed(0)
        drawn = torch.randint(values.shape[1], (LARGEST_SAMPLE,), generator=generator)
        values = values[:, drawn.to(values.device)]
    largest = full.abs().amax(0)
    best, least = full, full.new_full(largest.shape, torch.inf)
    one_sided = bool((full[0] >= 0).all() or (full[1] <= 0).all())  # then both kinds are the same
    for fraction in SHRINKAGES:
        cut_off = full.clamp(-fraction * largest, fraction * largest)
        for ends in (cut_off,) if one_sided else (cut_off, fraction * full):
            scale, zero_point = (each.float()[:, None] for each in affine_qparams(ends[0], ends[1], bits))
            codes = values.mul(scale.reciprocal()).round_().clamp_(-zero_point, highest_code(bits) - zero_point)
            error = torch.linalg.vector_norm(codes.mul_(scale).sub_(values), dim=1)  # [rows]
            best = torch.where(error < least, ends, best)
            least = torch.minimum(error, least)
    return best[0], best[1]


def range_by_bits(values: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    """Return the MSE range below 8 bits; 8 are enough for the outliers of real images, which others lack: the min-max.

    values: [rows, n]; low and high: [rows].
    """
    return (mse_range if bits < 8 else minmax_range)(values, bits)


RANGES = {"minmax": minmax_range, "percentile": percentile_range, "mse": mse_range, "by-bits": range_by_bits}
"""The settings name a range estimator by these keys."""


def highest_code(bits: int) -> int:
    """Return 2**bits - 1. Raises ValueError unless 1 <= bits <= 8."""
    if not 1 <= bits <= 8:
        raise ValueError(f"{bits} bits are not supported; choose 1 to 8")
    return int(2**bits - 1)


def range_estimator(ranges: str) -> Callable[[Tensor, int], tuple[Tensor, Tensor]]:
    """Return the function that ``RANGES`` holds under this name. Raises ValueError, listing the names, for others."""
    if ranges not in RANGES:
        raise ValueError(f"ranges = {ranges!r}; choose one of {', '.join(RANGES)}")
    return RANGES[ranges]
