"""A quantized student as it is trained: the same function, in fewer passes over its features."""

from __future__ import annotations

import logging
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.nn.utils.parametrize import type_before_parametrizations

from .quantizers import ActivationQuantizer, per_channel
from .tracing import called, normed_layers

log = logging.getLogger(__name__)

_RELUS = (F.relu, torch.relu, torch.relu_, "relu", "relu_")


def fused(student: nn.Module) -> nn.Module:
    """``student``, its parameters and all, with BatchNorms in the kernels before them and ReLUs in their quantizers.

    For eval mode: BatchNorms use their running statistics. What cannot be fused stays as it is, as does a network that
    is no ``fx.GraphModule``; layers of a kind of their own, and such a network, are logged.
    """
    if not isinstance(student, fx.GraphModule):
        log.warning("the student is no graph of layers, so that none are fused in training, which is slower")
        return student
    graph = fx.Graph()
    graph.output(graph.graph_copy(student.graph, {}))
    twin = fx.GraphModule(student, graph)
    others = []
    for node, layer, norm_node, norm in list(normed_layers(twin)):
        if type(layer).forward is not nn.Conv2d.forward:
            others.append(type_before_parametrizations(layer).__name__)
        else:
            name = f"normed_convs.{norm_node.name}"
            twin.add_submodule(name, NormedConv(layer, norm))
            with graph.inserting_before(node):
                convolved = graph.call_module(name, node.args, node.kwargs)
            norm_node.replace_all_uses_with(convolved)
            graph.erase_node(norm_node)
            graph.erase_node(node)
    if others:
        kinds = ", ".join(dict.fromkeys(others))
        log.warning("%d layers (%s) are not one with their BatchNorm in training, which is slower", len(others), kinds)
    for node in list(graph.nodes):
        if isinstance(called(twin, node)[0], ActivationQuantizer):
            relu = node.all_input_nodes[0]
            if _is_relu(twin, relu) and len(relu.users) == 1:
                (source,) = relu.all_input_nodes
                if len(source.users) == 1:  # another might change in place what the quantizer is going to need
                    node.args, node.kwargs = (source,), {"rectify": True}
                    graph.erase_node(relu)
    twin.recompile()
    return twin.eval()


class NormedConv(nn.Module):
    """A Conv2d and the BatchNorm2d after it, in eval mode, as one convolution; they stay what they are and train."""

    def __init__(self, layer: nn.Conv2d, norm: nn.BatchNorm2d) -> None:
        super().__init__()
        self.layer, self.norm = layer, norm

    def forward(self, input: Tensor) -> Tensor:
        weight, bias = self.layer.weight, self.layer.bias
        factor, shift = affine_of(self.norm)
        if bias is not None:
            shift = torch.addcmul(shift, factor, bias)
        return self.layer._conv_forward(input, weight * per_channel(factor, weight), shift)


def affine_of(norm: nn.BatchNorm2d, dtype: torch.dtype | None = None) -> tuple[Tensor, Tensor]:
    """The factor and the shift, both [C], that ``norm`` is in eval mode; differentiable in its parameters."""
    mean, variance = (cast(Tensor, each).to(dtype=dtype) for each in (norm.running_mean, norm.running_var))
    factor = (variance + norm.eps).rsqrt()
    if norm.weight is not None:
        factor = factor * norm.weight
    return factor, (-factor * mean if norm.bias is None else torch.addcmul(norm.bias, factor, mean, value=-1))


def _is_relu(traced: fx.GraphModule, node: fx.Node) -> bool:
    if node.op == "call_module":  # its name may be any
        return type(called(traced, node)[0]) is nn.ReLU
    return node.op.startswith("call") and node.target in _RELUS
