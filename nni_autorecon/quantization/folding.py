"""BatchNorms are folded into the convolutions before them, in float and in integers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import NamedTuple, cast

import torch
from torch import Tensor, fx, nn
from torch.nn.utils import fuse_conv_bn_weights

from ..shapes import ImageShape
from .calls import BATCHNORMS, called
from .fake_quantize import per_channel
from .integers import IntegerWeight
from .tracing import WITHOUT_GRAPH, trace


def fold_norms(network: nn.Module, weights: dict[str, IntegerWeight]) -> None:
    """Fold each BatchNorm2d that alone follows a quantized Conv2d into its weight and bias, in place.

    ``weights`` maps the names of layers to their weights. Norms elsewhere stay as they are, and so do those of a
    network that is no ``fx.GraphModule``.
    """
    if not isinstance(network, fx.GraphModule):
        return
    for node, layer, norm_node, norm in list(normed_layers(network)):
        if (name := str(node.target)) in weights:
            factor, shift = affine_of(norm, torch.float64)
            bias = shift if layer.bias is None else shift + factor * layer.bias
            layer.bias = nn.Parameter(bias.float(), requires_grad=False)
            weights[name] = scaled(weights[name], factor)
            norm_node.replace_all_uses_with(node)
            network.graph.erase_node(norm_node)
    network.delete_all_unused_submodules()
    network.recompile()


def scaled(weight: IntegerWeight, factor: Tensor) -> IntegerWeight:
    """Return ``weight`` times ``factor`` [out], at the same bit width.

    A scale must be positive. If the factor is negative, codes are mirrored; if it is 0, all codes are those of zero.
    """
    largest = 2**weight.bits - 1
    scale = (weight.scale.double() * factor.abs()).float()
    dead = scale < torch.finfo(torch.float32).tiny
    zero_point = torch.where(factor < 0, largest - weight.zero_point, weight.zero_point)
    codes = torch.where(per_channel(factor < 0, weight.codes), largest - weight.codes, weight.codes)
    codes = torch.where(per_channel(dead, codes), per_channel(zero_point, codes), codes)
    return IntegerWeight(codes, scale.masked_fill(dead, 1.0), zero_point, weight.bits)


def folded(network: nn.Module, *, image: ImageShape | None = None) -> tuple[fx.GraphModule, dict[str, Normal]]:
    """Return a traced copy of ``network`` with BatchNorms folded, and the folded norms' outputs.

    image: the shape of one image, as :func:`~.tracing.trace` takes it.  Raises InputError if it cannot be traced.
    """
    traced = trace(network, remedy=WITHOUT_GRAPH, image=image)
    outputs = fold_batchnorms(traced)
    return traced, outputs


def fold_batchnorms(network: fx.GraphModule) -> dict[str, Normal]:
    """Fold every BatchNorm2d into the Conv2d before it, in place, and return the distribution of these layers' outputs.

    A BatchNorm is left alone if the layer's output has other uses, if either is called more than once, or if it keeps
    no running statistics. The result maps the layer's path to mean beta and standard deviation |gamma|.
    """
    outputs = {}
    for node, layer, norm_node, norm in list(normed_layers(network)):
        mean, variance = cast(Tensor, norm.running_mean), cast(Tensor, norm.running_var)
        layer.weight, layer.bias = fuse_conv_bn_weights(
            layer.weight, layer.bias, mean, variance, norm.eps, norm.weight, norm.bias
        )
        outputs[str(node.target)] = Normal(*(value.to(layer.weight) for value in batchnorm_output(norm)))
        norm_node.replace_all_uses_with(node)
        network.graph.erase_node(norm_node)
    network.delete_all_unused_submodules()
    network.recompile()
    return outputs


class Normal(NamedTuple):
    """A normal distribution for each channel: mean and standard deviation, both [C]."""

    mean: Tensor
    std: Tensor


def batchnorm_output(norm: nn.Module) -> Normal:
    """Return the distribution of a BatchNorm's output on its training data: mean beta, standard deviation |gamma|.

    Raises TypeError for any other layer.
    """
    if not isinstance(norm, BATCHNORMS):
        raise TypeError(
            f"{type(norm).__name__} is no BatchNorm; give one of {', '.join(b.__name__ for b in BATCHNORMS)}"
        )
    if norm.affine:
        return Normal(norm.bias.detach(), norm.weight.detach().abs())
    zeros = torch.zeros(norm.num_features)
    return Normal(zeros, zeros + 1)


def affine_of(norm: nn.BatchNorm2d, dtype: torch.dtype | None = None) -> tuple[Tensor, Tensor]:
    """Return the factor and shift, [C] each, that ``norm`` applies in eval mode; differentiable in its parameters."""
    mean, variance = (cast(Tensor, each).to(dtype=dtype) for each in (norm.running_mean, norm.running_var))
    factor = (variance + norm.eps).rsqrt()
    if norm.weight is not None:
        factor = factor * norm.weight
    return factor, (-factor * mean if norm.bias is None else torch.addcmul(norm.bias, factor, mean, value=-1))


class NormedLayer(NamedTuple):
    """A convolution and the BatchNorm after it, with their calls."""

    node: fx.Node
    layer: nn.Conv2d
    norm_node: fx.Node
    norm: nn.BatchNorm2d


def normed_layers(traced: fx.GraphModule) -> Iterator[NormedLayer]:
    """Find every Conv2d into which a BatchNorm2d can be folded, because it alone uses the layer's output.

    The BatchNorm keeps running statistics, and each of the two is called just once.
    """
    calls = Counter(called(traced, node)[0] for node in traced.graph.nodes)
    for node in traced.graph.nodes:
        layer, user = called(traced, node)[0], next(iter(node.users), None)
        if user is None or not isinstance(layer, nn.Conv2d) or len(node.users) > 1:
            continue
        norm = called(traced, user)[0]
        if isinstance(norm, nn.BatchNorm2d) and norm.running_var is not None and calls[layer] == calls[norm] == 1:
            yield NormedLayer(node, layer, user, norm)
