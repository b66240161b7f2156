"""The forms that terms of a loss can have, by the names that settings choose from. Light: nothing is imported."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

    from .batchnorm import BatchNormStatistics


def variance_gap(s: BatchNormStatistics) -> Tensor:
    """Return (μ_b - μ_r)² + (σ_b² - σ_r²)² of each channel, [C] (Xu et al., 2020, eq. 4)."""
    return (s.mean - s.running_mean).square() + (s.var - s.running_var).square()


def deviation_gap(s: BatchNormStatistics, *, eps: float = 1e-6) -> Tensor:
    """Return (μ_b - μ_r)² + (σ_b - σ_r)² of each channel, [C], as ZeroQ compares them (Cai et al., 2020).

    σ is sqrt(var + ``eps``), whose gradient is finite even in a constant channel.
    """
    deviations = (s.var + eps).sqrt() - (s.running_var + eps).sqrt()
    return (s.mean - s.running_mean).square() + deviations.square()


def divergence_gap(s: BatchNormStatistics, *, eps: float = 1e-6) -> Tensor:
    """Return the divergence KL(N(batch) ‖ N(running)) of each channel, [C], as DFC does (Haroush et al., 2020).

        log(σ_r / σ_b) + (σ_b² + (μ_b - μ_r)²) / 2σ_r² - 1/2

    σ² is var + ``eps``.
    """
    var, running_var = s.var + eps, s.running_var + eps
    return ((running_var / var).log() + (var + (s.mean - s.running_mean).square()) / running_var - 1) / 2


GAPS: dict[str, Callable[[BatchNormStatistics], Tensor]] = {
    "var": variance_gap,
    "std": deviation_gap,
    "kl": divergence_gap,
}
"""Each gap compares the statistics of a batch with the running ones, channel by channel."""

REDUCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "mean": lambda terms: terms.mean(),
    "batchmean": lambda terms: terms.sum(1).mean(),
}
"""Each makes a scalar of the terms [N, K] of a divergence: the mean over all, which divides by the class count K, too,
as GDFQ's formula does in practice, or the mean over the batch of the sum over classes, as the divergence is defined."""
