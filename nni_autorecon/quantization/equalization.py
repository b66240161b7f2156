"""BatchNorm folding, cross-layer equalization and bias absorption: the same function with weights easier to quantize.

Nagel et al., "Data-Free Quantization Through Weight Equalization and Bias Correction" (ICCV 2019), section 4.1.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.nn.utils import fuse_conv_bn_weights
from torch.nn.utils.parametrize import type_before_parametrizations

from ..errors import InputError
from .activation_moments import Normal, batchnorm_output
from .tracing import QUANTIZED, called, is_in_place, is_plain, normed_layers, trace

_HOMOGENEOUS = re.compile(r"identity|dropout2?d?|relu|(adaptive)?(avg|max)pool2d")
"""f(s x) = s f(x) for s > 0, channel by channel."""


class Pair(NamedTuple):
    """Two layers, by path, of which the second alone uses what the first puts out."""

    first: str
    second: str
    relu: bool  # between them


def folded(network: nn.Module) -> tuple[fx.GraphModule, dict[str, Normal]]:
    """A traced copy of ``network`` with BatchNorms folded and every ReLU6 a ReLU, and the folded norms' outputs."""
    remedy = "choose a method that uses images"
    traced = trace(network, remedy=remedy)
    for path, layer in traced.named_modules():
        if isinstance(layer, QUANTIZED) and not is_plain(layer):
            kind = type_before_parametrizations(layer).__name__
            raise InputError(f"DFQ cannot change the weight of {path} ({kind}), which is not used as it is; {remedy}")
    outputs = fold_batchnorms(traced)
    replace_relu6(traced)
    return traced, outputs


def fold_batchnorms(network: fx.GraphModule) -> dict[str, Normal]:
    """Fold every BatchNorm2d into the Conv2d before it, in place, and say what these layers now put out.

    A BatchNorm is left alone if the layer's output has other uses, if either is called more than once, or if it keeps
    no running statistics. Returns beta and |gamma| by the layer's path.
    """
    outputs = {}
    for node, layer, norm_node, norm in list(normed_layers(network)):
        assert norm.running_mean is not None
        assert norm.running_var is not None
        layer.weight, layer.bias = fuse_conv_bn_weights(
            layer.weight, layer.bias, norm.running_mean, norm.running_var, norm.eps, norm.weight, norm.bias
        )
        outputs[str(node.target)] = Normal(*(value.to(layer.weight) for value in batchnorm_output(norm)))
        norm_node.replace_all_uses_with(node)
        network.graph.erase_node(norm_node)
    network.delete_all_unused_submodules()
    network.recompile()
    return outputs


def replace_relu6(network: fx.GraphModule) -> None:
    """Replace every ReLU6 by a ReLU, in place, so that its layers can be equalized (section 5.1).

    This changes the function wherever an activation exceeds 6; the paper loses 0.02 points by it on MobileNetV2.
    """
    for node in network.graph.nodes:
        if called(network, node)[1].removesuffix("_") == "relu6":
            source = node.all_input_nodes[0]
            if is_in_place(network, node):  # whoever uses its input from here on saw its output
                for user in [user for user in source.users if user > node]:
                    user.replace_input_with(source, node)
            node.op, node.target, node.args, node.kwargs = "call_function", F.relu, (source,), {}
    network.delete_all_unused_submodules()
    network.recompile()


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
