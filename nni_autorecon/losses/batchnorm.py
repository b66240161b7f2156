"""This module records the statistics of the input of each BatchNorm of a frozen network."""

from __future__ import annotations

import copy
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .. import accel

log = logging.getLogger(__name__)


class BatchNormStatistics(NamedTuple):
    """Per-channel statistics of one BatchNorm's input, and the running ones kept from training. All are [C]."""

    mean: Tensor
    var: Tensor
    running_mean: Tensor
    running_var: Tensor


@contextmanager
def record_bn_statistics(network: nn.Module) -> Iterator[list[BatchNormStatistics]]:
    """Record mean and biased variance of the input of every BatchNorm2d that keeps running statistics.

    The list fills during each forward pass inside the block, in execution order. The entries are part of the
    autograd graph. When the block ends, also by an exception, nothing stays in the network.
    """
    recorded: list[BatchNormStatistics] = []

    def hook(module: nn.Module, args: tuple[Tensor, ...], kwargs: dict[str, Tensor]) -> None:
        images = next(iter((*args, *kwargs.values())))
        var, mean = torch.var_mean(images, dim=(0, 2, 3), correction=0)  # both [C]
        recorded.append(BatchNormStatistics(mean, var, module.running_mean, module.running_var))  # type: ignore[arg-type]

    layers = recorded_norms(network)
    observed = [layer for layer in layers if accel.enabled and isinstance(layer, ObservedBatchNorm2d)]
    handles = [layer.register_forward_pre_hook(hook, with_kwargs=True) for layer in layers if layer not in observed]
    before = [layer.recorded for layer in observed]
    for layer in observed:
        layer.recorded = (*layer.recorded, recorded)
    try:
        yield recorded
    finally:
        for layer, earlier in zip(observed, before, strict=True):
            layer.recorded = earlier
        for handle in handles:
            handle.remove()


def recorded_norms(network: nn.Module) -> list[nn.BatchNorm2d]:
    """Return every BatchNorm2d of ``network`` that keeps running statistics."""
    return [m for m in network.modules() if isinstance(m, nn.BatchNorm2d) and m.running_mean is not None]


class ObservedBatchNorm2d(nn.BatchNorm2d):
    """A frozen BatchNorm2d that takes its input's statistics, and differentiates them, in one pass over the data."""

    recorded: tuple[list[BatchNormStatistics], ...] = ()

    def forward(self, input: Tensor) -> Tensor:
        """Normalize [N, C, H, W] by the running statistics, and append its own to every list that records them."""
        if not self.recorded:
            return super().forward(input)
        remembered = cast(Tensor, self.running_mean), cast(Tensor, self.running_var)
        y, mean, var = _NormAndStatistics.apply(input, *remembered, self.weight, self.bias, self.eps)
        for statistics in self.recorded:
            statistics.append(BatchNormStatistics(mean, var, *remembered))
        return y


class _NormAndStatistics(torch.autograd.Function):
    """BatchNorm2d in eval mode, and mean and biased variance of its input x [N, C, H, W]; differentiable in x alone.

    With n = N·H·W,  dx = dy · weight / sqrt(running_var + eps) + dmean / n + dvar · 2 (x - mean) / n.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        running_mean: Tensor,
        running_var: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        eps: float,
    ) -> tuple[Tensor, Tensor, Tensor]:
        mean, var = torch.batch_norm_update_stats(x, None, None, 0.0)
        factor = (running_var + eps).rsqrt()
        ctx.save_for_backward(x, mean, factor if weight is None else factor * weight)
        return F.batch_norm(x, running_mean, running_var, weight, bias, eps=eps), mean, var

    @staticmethod
    def backward(ctx: Any, dy: Tensor, dmean: Tensor, dvar: Tensor) -> tuple[Tensor | None, ...]:
        x, mean, factor = ctx.saved_tensors
        slope = dvar * (2 * mean.numel() / x.numel())  # [C]
        offset = dmean * (mean.numel() / x.numel()) - slope * mean
        dx = torch.addcmul(_channels(offset), x, _channels(slope)).addcmul_(dy, _channels(factor))
        return dx, None, None, None, None, None


def _channels(values: Tensor) -> Tensor:
    """Return values [C] as [C, 1, 1]."""
    return values.view(-1, 1, 1)


def has_own_forward(layer: nn.Module) -> bool:
    """Return True for a BatchNorm2d that computes something else than its class in ``torch.nn``."""
    ours = nn.BatchNorm2d.forward, ObservedBatchNorm2d.forward
    return isinstance(layer, nn.BatchNorm2d) and ("forward" in vars(layer) or type(layer).forward not in ours)


def observed(network: nn.Module) -> nn.Module:
    """Return a deep copy of a frozen network, in eval mode, whose statistics are fast to record.

    Subclasses of BatchNorm2d with a forward of their own stay what they are, and are recorded by hooks; a warning names
    them. Another warning names norms that are not matched.
    """
    twin = copy.deepcopy(network).eval().requires_grad_(False)
    hooked, left_out = [], []
    for layer in twin.modules():
        if has_own_forward(layer):
            hooked.append(type(layer).__name__)
        elif isinstance(layer, nn.BatchNorm2d):
            layer.__class__ = ObservedBatchNorm2d
        elif isinstance(getattr(layer, "running_mean", None), Tensor):
            left_out.append(type(layer).__name__)
    for names, fact in (
        (hooked, "hooks record the statistics of %d layers (%s), which is slower"),
        (left_out, "the statistics of %d layers (%s) are not matched, for they are no BatchNorm2d"),
    ):
        if names:
            log.warning(fact, len(names), ", ".join(dict.fromkeys(names)))
    return twin
