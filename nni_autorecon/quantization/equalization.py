"""Cross-layer equalization and bias absorption keep the function of a network and make its weights easier to quantize.

Nagel et al., "Data-Free Quantization Through Weight Equalization and Bias Correction" (ICCV 2019), section 4.1.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, fx, nn
from torch.nn.utils import parametrize

from .calls import QUANTIZED, called
from .folding import Normal

_HOMOGENEOUS = re.compile(r"identity|dropout2?d?|relu|leakyrelu|prelu|pad|zeropad2d|(adaptive)?(avg|max)pool2d")
"""These operations satisfy f(s x) = s f(x) for s > 0 in each channel."""


class Pair(NamedTuple):
    """The paths of two layers; the second is the only user of the first one's output."""

    first: str
    second: str
    relu: bool  # True if there is a ReLU between them


def equalization_pairs(network: fx.GraphModule) -> list[Pair]:
    """Return the pairs of two Conv2d or two Linear with only what is homogeneous between them.

    That is ReLU, also leaky or parametric, pooling, padding with zeros, dropout or identity.
    Each tensor between the two has one use, and each layer is called once.
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
            if not _HOMOGENEOUS.fullmatch(kinds[-1]) or (kinds[-1] == "pad" and _pads_with_a_constant(current)):
                break
    return pairs


def _pads_with_a_constant(node: fx.Node) -> bool:
    """Return True if a call pad(x, widths, mode, value) adds a constant other than 0."""
    value = node.kwargs.get("value", node.args[3] if len(node.args) > 3 else None)
    return value not in (None, 0)


@torch.no_grad()
def equalize(
    network: nn.Module,
    pairs: Sequence[Pair],
    outputs: Mapping[str, Normal],
    *,
    tolerance: float = 1e-3,
    rounds: int = 100,
) -> dict[str, Normal]:
    """Equalize each channel between the layers of a pair, in place: its weights get the same range in both layers.

        s_i = sqrt(r1_i r2_i) / r2_i,   W1_i <- W1_i / s_i,   b1_i <- b1_i / s_i,   W2_i <- W2_i s_i     (section 4.1)

    r1_i is the largest absolute weight that makes channel i, and r2_i the largest that uses it. If either is 0, s_i is
    1. The pairs are equalized one after the other, again and again, until all |log s_i| < ``tolerance``, but at most
    ``rounds`` times. The network computes the same function throughout.

    outputs: the layers' outputs from ``fold_batchnorms``, by path; the result holds them in the new scale.
    Raises TypeError if a pair names anything but Conv2d and Linear.
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
    """Equalize one pair of layers, in place; return s, [C]."""
    if not isinstance(first, QUANTIZED) or not isinstance(second, QUANTIZED):
        kinds = f"{type(first).__name__} and {type(second).__name__}"
        raise TypeError(f"{kinds} cannot be equalized; give pairs of Conv2d or of Linear layers")
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
    """Move a high bias of a pair's first layer into the bias of its second layer, in place.

        c = max(0, beta - 3 gamma),   b1 <- b1 - c,   b2 <- b2 + W2 c                                  (section 4.1)

    This is done in pairs that have a ReLU between the layers and whose first layer's output is known. There,
    relu(x) - c = relu(x - c) wherever x > c, which is so in 99.87 % of all cases. The equation does not hold at the
    border of a zero-padded convolution, where fewer weights see c.

    outputs: the layers' outputs by path, from ``fold_batchnorms``; the result holds them after the move.
    deviations: the number of standard deviations gamma, 3 in the formula.
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
    """Return the output of a layer without bias, away from the border, for an input that is constant in each channel.

    weight: [out, C / groups, ...]; constant: [C]; the result: [out].
    """
    summed = _by_group(weight, len(constant)).sum(3)  # [G, out / G, C / G]
    return (summed @ constant.view(len(summed), -1, 1)).flatten()


@torch.no_grad()
def add_to_bias(layer: nn.Module, change: Tensor) -> None:
    """Add ``change`` [out] to the bias of a layer; a layer without bias gets ``change`` as its bias."""
    if parametrize.is_parametrized(layer, "bias"):
        layer.parametrizations.bias.original.data += change  # type: ignore[operator, union-attr]
        return
    layer.bias = nn.Parameter(change.clone() if layer.bias is None else layer.get_parameter("bias") + change)


def _by_group(weight: Tensor, channels: int) -> Tensor:
    """Return a weight [out, channels / G, ...] as [G, out / G, channels / G, kernel]."""
    return weight.reshape(channels // weight.shape[1], -1, weight.shape[1], weight[0, 0].numel())


def _calls(network: fx.GraphModule) -> Counter[object]:
    """Count the calls of each module, function or method, by target."""
    return Counter(node.target for node in network.graph.nodes)
