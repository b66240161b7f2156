"""Cross-layer equalization and bias absorption: the same function with weights that are easier to quantize.

Nagel et al., "Data-Free Quantization Through Weight Equalization and Bias Correction" (ICCV 2019), section 4.1.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, fx, nn

from .folding import Normal
from .tracing import QUANTIZED, called

_HOMOGENEOUS = re.compile(r"identity|dropout2?d?|relu|(adaptive)?(avg|max)pool2d")
"""f(s x) = s f(x) for s > 0, channel by channel."""


class Pair(NamedTuple):
    """Two layers, by path, of which the second alone uses what the first puts out."""

    first: str
    second: str
    relu: bool  # between them


def equalization_pairs(network: fx.GraphModule) -> list[Pair]:
    """Conv2d and Conv2d, or Linear and Linear, with nothing between them but ReLU, pooling, dropout or identity.

    Each tensor on the way has one use, and each layer is called once.
    """
    pairs, calls = [], _calls(network)
    for node in network.graph.nodes:
        first, kinds, current = called(network, node)[0], [], node
        if not isinstance(first, QUANTIZED) or calls[node.target] > 1:
            continue
        while len(current.users) == 1:
            (current,) = current.users
            second, kind = called(network, current)
            if isinstance(second, QUANTIZED):
                if calls[current.target] == 1 and isinstance(second, nn.Conv2d) == isinstance(first, nn.Conv2d):
                    pairs.append(Pair(str(node.target), str(current.target), "relu" in kinds))
                break
            kinds.append(kind.removesuffix("_"))
            if not _HOMOGENEOUS.fullmatch(kinds[-1]):
                break
    return pairs


@torch.no_grad()
def equalize(
    network: nn.Module,
    pairs: Sequence[Pair],
    outputs: Mapping[str, Normal],
    *,
    tolerance: float = 1e-3,
    rounds: int = 100,
) -> dict[str, Normal]:
    """Cross-layer equalization, in place: the channels between the layers of a pair get the same range in both.

        s_i = sqrt(r1_i r2_i) / r2_i,   W1_i <- W1_i / s_i,   b1_i <- b1_i / s_i,   W2_i <- W2_i s_i     (section 4.1)

    with r1_i, r2_i the largest absolute weight that makes and that uses channel i; a channel without any keeps s_i = 1.
    The pairs are passed through again and again until all |log s_i| < ``tolerance``, ``rounds`` times at most; what
    the network computes stays the same throughout. Returns the ``outputs`` of ``fold_batchnorms`` in the new scale.
    """
    outputs = dict(outputs)
    for _ in range(rounds):
        largest = 0.0
        for pair in pairs:
            scale = _equalize_pair(network.get_submodule(pair.first), network.get_submodule(pair.second))  # [C]
            if pair.first in outputs:
                mean, std = outputs[pair.first]
                outputs[pair.first] = Normal(mean / scale, std / scale)
            largest = max(largest, float(scale.log().abs().max()))
        if largest < tolerance:
            break
    return outputs


def _equalize_pair(first: nn.Module, second: nn.Module) -> Tensor:
    assert isinstance(first, QUANTIZED)
    assert isinstance(second, QUANTIZED)
    makes = first.weight.flatten(1)  # [C, fan-in]
    uses = _by_group(second.weight, len(makes))  # [G, out / G, C / G, kernel]
    r1, r2 = makes.abs().amax(1), uses.abs().amax((1, 3)).flatten()  # both [C]
    scale = torch.where((r1 > 0) & (r2 > 0), (r1 / r2).sqrt(), 1.0)
    first.weight = nn.Parameter((makes / scale[:, None]).view_as(first.weight))
    if first.bias is not None:
        first.bias = nn.Parameter(first.bias / scale)
    second.weight = nn.Parameter((uses * scale.view(len(uses), 1, -1, 1)).view_as(second.weight))
    return scale


@torch.no_grad()
def absorb_high_biases(
    network: nn.Module, pairs: Sequence[Pair], outputs: Mapping[str, Normal], *, deviations: float = 3.0
) -> dict[str, Normal]:
    """Move what a channel has in excess from the first layer of a pair into the second one's bias, in place.

        c = max(0, beta - 3 gamma),   b1 <- b1 - c,   b2 <- b2 + W2 c                                  (section 4.1)

    for pairs with a ReLU between, whose first layer's output is known: relu(x) - c = relu(x - c) wherever x > c, in
    99.87 % of all cases. At the border of a zero-padded convolution, where fewer weights see c, it does not hold.
    Returns the ``outputs`` of ``fold_batchnorms`` after the move.
    """
    outputs = dict(outputs)
    for pair in pairs:
        if not pair.relu or pair.first not in outputs:
            continue
        first, second = network.get_submodule(pair.first), network.get_submodule(pair.second)
        mean, std = outputs[pair.first]
        excess = (mean - deviations * std).clamp(min=0)  # [C]
        add_to_bias(first, -excess)
        add_to_bias(second, constant_response(second.get_parameter("weight"), excess))
        outputs[pair.first] = Normal(mean - excess, std)
    return outputs


def constant_response(weight: Tensor, constant: Tensor) -> Tensor:
    """What a layer without bias answers, away from the border, to an input that is constant in each channel: [out].

    weight: [out, C / groups, ...]; constant: [C].
    """
    summed = _by_group(weight, len(constant)).sum(3)  # [G, out / G, C / G]
    return (summed @ constant.view(len(summed), -1, 1)).flatten()


@torch.no_grad()
def add_to_bias(layer: nn.Module, change: Tensor) -> None:
    """Give a layer the bias that it has, if any, plus ``change`` [out]."""
    layer.bias = nn.Parameter(change.clone() if layer.bias is None else layer.get_parameter("bias") + change)


def _by_group(weight: Tensor, channels: int) -> Tensor:
    """A weight [out, channels / G, ...] as [G, out / G, channels / G, kernel]."""
    return weight.reshape(channels // weight.shape[1], -1, weight.shape[1], weight[0, 0].numel())


def _calls(network: fx.GraphModule) -> Counter[object]:
    """How often each module, function or method is called, by target."""
    return Counter(node.target for node in network.graph.nodes)
