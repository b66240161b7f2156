"""The feature maps by which a student is compared with its teacher inside."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from ..errors import InputError
from ..quantization.operators import is_activation, is_addition
from ..quantization.quantizers import ActivationQuantizer
from ..quantization.tracing import called, trace


class Outputs(NamedTuple):
    """What a network says of images: logits [N, K], and features, [N, C, H, W] or [N, C], at some places inside."""

    logits: Tensor
    features: tuple[Tensor, ...] = ()


def with_features(network: nn.Module) -> nn.Module:
    """``network``, its parameters and all, returning a pair: logits, and the features at the end of each residual
    block, as they leave its activation and their quantizer.

    Without residual blocks, those behind every activation function. Raises InputError if the network cannot be traced
    or has neither.
    """
    remedy = "feature_weight needs that; leave it out"
    traced = network if isinstance(network, fx.GraphModule) else trace(network, remedy=remedy)
    graph = fx.Graph()
    copies: dict[fx.Node, fx.Node] = {}
    logits = graph.graph_copy(traced.graph, copies)
    places = _ends(traced, is_addition) or _ends(traced, is_activation)
    if not places:
        raise InputError(f"{type(network).__name__} has neither residual blocks nor activation functions; {remedy}")
    graph.output((logits, tuple(copies[node] for node in places)))
    return fx.GraphModule(traced, graph).eval()


def _ends(traced: fx.GraphModule, joins: Callable[[fx.GraphModule, fx.Node], bool]) -> list[fx.Node]:
    """Where the results of the nodes of one kind have settled, each once."""
    return list(dict.fromkeys(_settled(traced, node) for node in traced.graph.nodes if joins(traced, node)))


def _settled(traced: fx.GraphModule, node: fx.Node) -> fx.Node:
    """Where what ``node`` computes has passed the activation and the quantizer behind it."""
    while len(node.users) == 1:
        (user,) = node.users
        if not (is_activation(traced, user) or isinstance(called(traced, user)[0], ActivationQuantizer)):
            break
        node = user
    return node


def feature_alignment_loss(student: Sequence[Tensor], teacher: Sequence[Tensor]) -> Tensor:
    """Σ_l mean over images and channels of (a_s - a_t)², a being the mean over pixels of F², of unit length in each
    image: attention transfer (Zagoruyko & Komodakis, 2017) between channels (Li et al., HAST, CVPR 2023). Their
    weights of 1000 to 4000 are for this mean; of a sum over channels it is the C-th part.

    Features [N, C, H, W], or [N, C], of as many places l in both networks.
    """

    def attention(features: Tensor) -> Tensor:
        return F.normalize(features.square().flatten(2).mean(2) if features.ndim > 2 else features.square())  # [N, C]

    gaps = [F.mse_loss(attention(s), attention(t)) for s, t in zip(student, teacher, strict=True)]
    return torch.stack(gaps).sum()
