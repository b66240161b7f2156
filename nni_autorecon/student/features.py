"""A student is compared with its teacher by feature maps inside the two networks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from ..errors import InputError
from ..quantization.calls import called
from ..quantization.operators import is_activation, is_addition
from ..quantization.quantizers import ActivationQuantizer
from ..quantization.tracing import trace


class Outputs(NamedTuple):
    """A network's outputs: logits [N, K], and features, [N, C, H, W] or [N, C], at some places inside."""

    logits: Tensor
    features: tuple[Tensor, ...] = ()


def with_features(network: nn.Module) -> nn.Module:
    """Return ``network`` with the same parameters and two outputs: logits, and the features after each residual block.

    These features have passed the block's activation and their quantizer. A network without residual blocks gives the
    features after every activation function. Raises InputError if the network cannot be traced or has neither.
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
    """Return the nodes that the results of one kind of node reach after activation and quantizer, each once."""
    return list(dict.fromkeys(_settled(traced, node) for node in traced.graph.nodes if joins(traced, node)))


def _settled(traced: fx.GraphModule, node: fx.Node) -> fx.Node:
    """Return the node at which the result of ``node`` has passed the activation and the quantizer after it."""
    while len(node.users) == 1:
        (user,) = node.users
        if not (is_activation(traced, user) or isinstance(called(traced, user)[0], ActivationQuantizer)):
            break
        node = user
    return node


def feature_alignment_loss(student: Sequence[Tensor], teacher: Sequence[Tensor]) -> Tensor:
    """Return Σ_l mean over images and channels of (a_s - a_t)², a scalar, where a is a place's attention, [N, C].

    The attention is the mean over pixels of F², scaled to unit length in each image. This is attention transfer
    (Zagoruyko & Komodakis, 2017) between channels (Li et al., HAST, CVPR 2023). HAST's weights of 1000 to 4000 are for
    this mean, which is the C-th part of a sum over channels.

    Features are [N, C, H, W] or [N, C], at equally many places l in both networks.
    """

    def attention(features: Tensor) -> Tensor:
        return F.normalize(features.square().flatten(2).mean(2) if features.ndim > 2 else features.square())  # [N, C]

    gaps = [F.mse_loss(attention(s), attention(t)) for s, t in zip(student, teacher, strict=True)]
    return torch.stack(gaps).sum()
