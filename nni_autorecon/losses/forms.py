"""The forms that terms of a loss can have, by the names that settings choose from. Light: nothing is imported."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

    from .batchnorm import BatchNormStatistics


def variance_gap(s: BatchNormStatistics) -> Tensor:
    """(μ_b - μ_r)² + (σ_b² - σ_r²)² of each channel (Xu et al., 2020, eq. 4); [C]."""
    return (s.mean - s.running_mean).square() + (s.var - s.running_var).square()


def deviation_gap(s: BatchNormStatistics, *, eps: float = 1e-6) -> Tensor:
    """The same with standard deviations sqrt(var + ``eps``), as ZeroQ compares them (Cai et al., 2020)."""
    deviations = (s.var + eps).sqrt() - (s.running_var + eps).sqrt()
    return (s.mean - s.running_mean).square() + deviations.square()


def divergence_gap(s: BatchNormStatistics, *, eps: float = 1e-6) -> Tensor:
    """KL(N(batch) ‖ N(running)), log(σ_r / σ_b) + (σ_b² + (μ_b - μ_r)²) / 2σ_r² - 1/2, of each channel, [C], σ² being
    var + ``eps``: the divergence of two normal distributions, as DFC compares them (Haroush et al., 2020)."""
    var, running_var = s.var + eps, s.running_var + eps
    return ((running_var / var).log() + (var + (s.mean - s.running_mean).square()) / running_var - 1) / 2


GAPS: dict[str, Callable[[BatchNormStatistics], Tensor]] = {
    "var": variance_gap,
    "std": deviation_gap,
    "kl": divergence_gap,
}
"""What is between the statistics of a batch and those remembered, in each channel."""

REDUCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "mean": lambda terms: terms.mean(),
    "batchmean": lambda terms: terms.sum(1).mean(),
}
"""How terms [N, K] of a divergence become a scalar: the mean over all, which divides by the class count K, too, as
GDFQ's formula does in practice, or the mean over the batch of the sum over classes, as the divergence is defined."""
