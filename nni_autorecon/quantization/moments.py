"""Moments are the mean, variance and range of an activation; formulas here say how operations change them."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

_NODES = torch.linspace(-6, 6, 65, dtype=torch.float64)
"""These equally spaced nodes are as exact as Gauss and Hermite's for smooth functions, and more exact at a kink."""


def clipped_normal_moments(mean: Tensor, var: Tensor, low: float, high: float) -> tuple[Tensor, Tensor]:
    """Return mean and variance of min(max(X, low), high) for X ~ N(mean, var) (Nagel et al., appendix C).

    Let t be (X - mean) / std clipped to a .. b, and phi and Phi the standard normal density and distribution:

        E[t]  = a Phi(a) + b Phi(-b) + phi(a) - phi(b)
        E[t²] = a² Phi(a) + b² Phi(-b) + Phi(b) - Phi(a) + a phi(a) - b phi(b)

    mean, var: tensors of any one shape; both results have that shape.
    """
    std = var.sqrt()
    scale = std.clamp(min=torch.finfo(std.dtype).tiny)
    a, b = ((bound - mean).div(scale).clamp(-40, 40) for bound in (low, high))  # Phi(-40) is 0 even in float64

    def density(x: Tensor) -> Tensor:
        return torch.exp(-x * x / 2) / math.sqrt(2 * math.pi)

    below, above = torch.special.ndtr(a), torch.special.ndtr(-b)
    first = a * below + b * above + density(a) - density(b)
    second = a * a * below + b * b * above + (1 - above - below) + a * density(a) - b * density(b)
    return (mean + std * first).clamp(low, high), var * (second - first * first).clamp(min=0)


@dataclass(frozen=True)
class Moments:
    """Mean and variance of each element of an activation [1, ...] over the data, and a range that holds its values."""

    mean: Tensor
    var: Tensor
    low: Tensor
    high: Tensor

    @classmethod
    def normal(cls, mean: Tensor, var: Tensor, deviations: float) -> Moments:
        """Return moments with the range mean ± ``deviations`` standard deviations. mean, var: [1, ...]."""
        reach = deviations * var.sqrt()
        return cls(mean, var, mean - reach, mean + reach)

    @classmethod
    def constant(cls, value: Tensor) -> Moments:
        """Return the moments of a tensor that is the same for all data."""
        return cls(value, torch.zeros_like(value), value, value)

    def each(self, function: Callable[[Tensor], Tensor]) -> Moments:
        """Return the moments whose four tensors are ``function`` of these."""
        return Moments(*(function(part) for part in (self.mean, self.var, self.low, self.high)))

    def clipped(self, low: float, high: float) -> Moments:
        """Return the moments of the activation clipped to ``low`` .. ``high``, as if it were normal.

        Elements whose range lies within these bounds stay as they are.
        """
        stays = (self.low >= low) & (self.high <= high)
        mean, var = clipped_normal_moments(self.mean, self.var, low, high)
        mean, var = torch.where(stays, self.mean, mean), torch.where(stays, self.var, var)
        return Moments(mean, var, self.low.clamp(low, high), self.high.clamp(low, high))

    def through(self, function: Callable[[Tensor], Tensor]) -> Moments:
        """Return the moments of ``function`` of the activation, as if it were normal and clipped to its range.

        The integral is a sum over nodes. The range is that of the function at these nodes and on a grid over the
        activation's range, so that a minimum inside is found. Points at which the function is not finite, such as
        1 / 0, are left out.

        function: an elementwise function. Its argument has size 1 in dimensions beyond the second over which the
            moments repeat.
        """
        once = self._without_repetition()
        std, pivot = once.var.sqrt(), function(once.mean.clamp(once.low, once.high)).nan_to_num(0, 0, 0)

        def change(x: Tensor) -> Tensor:
            value = function(x.clamp(once.low, once.high)) - pivot  # a difference, lest a small variance be lost
            return torch.where(value.isfinite(), value, 0)

        first, second, least, largest = (torch.zeros_like(pivot) for _ in range(4))
        density = torch.exp(-_NODES.square() / 2)
        for node, weight in zip(_NODES.tolist(), (density / density.sum()).tolist(), strict=True):
            value = change(once.mean + node * std)
            first, second = first + weight * value, second + weight * value.square()
            least, largest = torch.minimum(least, value), torch.maximum(largest, value)
        grid = [torch.lerp(once.low, once.high, share) for share in torch.linspace(0, 1, 9).tolist()]
        for point in (*grid, torch.zeros_like(once.mean)):  # 0 is the usual place of a kink
            value = change(point)
            least, largest = torch.minimum(least, value), torch.maximum(largest, value)
        var = (second - first.square()).clamp(min=0)
        result = Moments(pivot + first, var, pivot + least, pivot + largest)
        shape = torch.broadcast_shapes(pivot.shape, self.mean.shape)
        return result.each(lambda part: part.expand(shape))

    def _without_repetition(self) -> Moments:
        """Return the moments with size 1 in those dimensions beyond the second that ``expand`` made."""
        parts = self.mean, self.var, self.low, self.high
        repeated = [dim > 1 and all(part.stride(dim) == 0 for part in parts) for dim in range(self.mean.ndim)]
        once = tuple(slice(0, 1) if each else slice(None) for each in repeated)
        return self.each(lambda part: part[once])

    def through_affine(self, function: Callable[[Tensor], Tensor]) -> Moments:
        """Return the exact moments of ``function`` of the activation; ``function`` is elementwise and affine."""
        slope = function(torch.ones_like(self.mean)) - function(torch.zeros_like(self.mean))
        ends = function(self.low), function(self.high)
        return Moments(function(self.mean), slope.square() * self.var, torch.minimum(*ends), torch.maximum(*ends))

    def plus(self, other: Moments, deviations: float) -> Moments:
        """Return the moments of the sum of two independent activations.

        The range is mean ± ``deviations`` standard deviations, but no wider than the sum of the two ranges.
        """
        total = Moments.normal(self.mean + other.mean, self.var + other.var, deviations)
        low, high = self.low + other.low, self.high + other.high
        return Moments(total.mean, total.var, torch.maximum(total.low, low), torch.minimum(total.high, high))

    def times(self, other: Moments) -> Moments:
        """Return the moments of the product of two independent activations.

            var(X Y) = var X var Y + var X E[Y]² + E[X]² var Y

        The range is that of the four products of the ends of the two ranges.
        """
        var = self.var * other.var + self.var * other.mean.square() + self.mean.square() * other.var
        corners = torch.stack([a * b for a in (self.low, self.high) for b in (other.low, other.high)])
        return Moments(self.mean * other.mean, var, *corners.aminmax(dim=0))
