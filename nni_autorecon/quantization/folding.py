"""BatchNorm folded into the scales of integer weights: gamma · (conv(x) − mean) / sqrt(variance + eps) + beta."""

from __future__ import annotations

import torch
from torch import Tensor, fx, nn

from .fusion import affine_of
from .integers import IntegerWeight
from .quantizers import per_channel
from .tracing import normed_layers


def fold_norms(network: nn.Module, weights: dict[str, IntegerWeight]) -> None:
    """Fold each BatchNorm2d that alone follows a quantized Conv2d into its weight and bias, in place.

    ``weights`` are by the name of the layer. Norms elsewhere, and those of a network that is no ``fx.GraphModule``,
    stay as they are.
    """
    if not isinstance(network, fx.GraphModule):
        return
    for node, layer, norm_node, norm in list(normed_layers(network)):
        if (name := str(node.target)) in weights:
            factor, shift = affine_of(norm, torch.float64)
            bias = shift if layer.bias is None else shift + factor * layer.bias
            layer.bias = nn.Parameter(bias.float(), requires_grad=False)
            weights[name] = scaled(weights[name], factor)
            network.set_submodule(str(norm_node.target), nn.Identity())


def scaled(weight: IntegerWeight, factor: Tensor) -> IntegerWeight:
    """``weight`` times ``factor`` [out], at the same bit width.

    A scale must be positive: where the factor is negative codes are mirrored, where it is 0 they are all the zero's.
    """
    largest = 2**weight.bits - 1
    scale = (weight.scale.double() * factor.abs()).float()
    dead = scale < torch.finfo(torch.float32).tiny
    zero_point = torch.where(factor < 0, largest - weight.zero_point, weight.zero_point)
    codes = torch.where(per_channel(factor < 0, weight.codes), largest - weight.codes, weight.codes)
    codes = torch.where(per_channel(dead, codes), per_channel(zero_point, codes), codes)
    return IntegerWeight(codes, scale.masked_fill(dead, 1.0), zero_point, weight.bits)
