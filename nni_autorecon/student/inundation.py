"""Steps of a quantized network are enlarged until they reach its integers."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from ..quantization.fake_quantize import per_channel
from ..quantization.quantizers import WeightQuantizer


@contextmanager
def inundation(network: nn.Module, *, share: float, decay: float = 0.0) -> Iterator[None]:
    """Enlarge the optimizer's step on each quantized weight inside the block until a ``share`` of its codes changes.

    This is gradient inundation, on the whole step instead of the gradient (Choi et al., AIT, CVPR 2022). The optimizer
    sees weights of 0, beside which no step is too small for float32. The true weights, times ``decay``, are added
    to the gradients. An exception restores the weights.
    """
    weights = list(_quantized_weights(network))
    before = [weight.detach().clone() for weight, _ in weights]
    with torch.no_grad():
        for (weight, _), old in zip(weights, before, strict=True):
            if weight.grad is not None:
                weight.grad.add_(old, alpha=decay)
            weight.zero_()
    try:
        yield
    except BaseException:
        with torch.no_grad():
            for (weight, _), old in zip(weights, before, strict=True):
                weight.copy_(old)
        raise
    with torch.no_grad():
        for (weight, quantizer), old in zip(weights, before, strict=True):
            scale, zero_point = (per_channel(values, weight) for values in quantizer.qparams(old))
            codes, update = old / scale + zero_point, weight / scale
            factor = flipping_factor(codes, update, share=share, largest_code=quantizer.largest_code)
            weight.copy_(torch.addcmul(old, weight, factor))


def _quantized_weights(network: nn.Module) -> Iterator[tuple[nn.Parameter, WeightQuantizer]]:
    for module in network.modules():
        if parametrize.is_parametrized(module, "weight"):
            weight = module.get_submodule("parametrizations.weight")
            yield weight.get_parameter("original"), cast(WeightQuantizer, weight.get_submodule("0"))


def flipping_factor(codes: Tensor, update: Tensor, *, share: float, largest_code: int) -> Tensor:
    """Return the least factor, at least 1, of ``update`` that turns a ``share`` of the codes over; a scalar.

    ``codes`` are weights in steps of their quantizer before rounding, w / scale + zero point. ``update`` is added to
    them; both have the same shape, which may be any. The factor is 1 if none suffices. Choi et al. (AIT, CVPR 2022)
    raise the gradient step by step until as many integer weights flip; with the ranges held fixed, the factor is a
    quantile.
    """
    rounded = codes.round().clamp(0, largest_code)
    up = update > 0
    distance = torch.where(up, rounded + 0.5 - codes, codes - rounded + 0.5)
    distance = distance.masked_fill(torch.where(up, rounded >= largest_code, rounded <= 0), torch.inf)
    factors = torch.where(update == 0, torch.inf, distance / update.abs())
    needed = factors.flatten().kthvalue(max(1, math.ceil(share * factors.numel()))).values
    return torch.where(needed.isfinite(), needed.clamp(min=1.0), 1.0)
