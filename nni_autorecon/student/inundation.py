"""Steps of a quantized network that are large enough to reach its integers."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import cast

import torch
from torch import nn
from torch.nn.utils import parametrize

from ..losses.game import flipping_factor
from ..quantization.quantizers import WeightQuantizer, per_channel


@contextmanager
def inundation(network: nn.Module, *, share: float, decay: float = 0.0) -> Iterator[None]:
    """Within it, what an optimizer adds to each quantized weight is enlarged until a ``share`` of its codes changes:
    gradient inundation, on the whole step instead of the gradient (Choi et al., AIT, CVPR 2022).

    The optimizer finds weights of 0, beside which no step is too small for float32, and gradients with the weight
    ``decay`` of the true ones.
    """
    weights = list(_quantized_weights(network))
    before = [weight.detach().clone() for weight, _ in weights]
    with torch.no_grad():
        for (weight, _), old in zip(weights, before, strict=True):
            if weight.grad is not None:
                weight.grad.add_(old, alpha=decay)
            weight.zero_()
    yield
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
