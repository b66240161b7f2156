"""Layers that compute what a BatchNorm does, by code of their own, become one: frozen ones, and those of a person."""

from __future__ import annotations

import copy
import logging
from collections import Counter

import torch
from torch import Tensor, nn

from ..losses.batchnorm import has_own_forward, record_bn_statistics, recorded_norms
from ..shapes import ImageShape
from .locating import equal_within

STATISTICS = (("running_mean", "running_var"), ("moving_mean", "moving_var"))
"""Layers keep the statistics of their training data under these names."""
EXACT = 1e-4
"""A layer is a BatchNorm if its answers differ by no more than this share of the largest one."""

_log = logging.getLogger(__name__)


@torch.no_grad()
def with_batchnorms(network: nn.Module, images: Tensor, logits: Tensor, *, quiet: bool = False) -> nn.Module:
    """Return a frozen network whose norms are of ``torch.nn.BatchNorm2d``; the network itself if all of them are.

    A layer with ``STATISTICS`` (torchvision's FrozenBatchNorm2d) whose answers are those of a BatchNorm2d is replaced
    in a copy, and a message says so unless ``quiet``. The copy counts if it answers ``images`` [N, C, H, W] by
    the same ``logits`` [N, K]: code may read more of a layer than it has then.
    """
    norms = {path: norm for path, layer in network.named_modules() if (norm := _batchnorm_of(layer)) is not None}
    if not norms or "" in norms:
        return network
    twin = copy.deepcopy(network)
    for path, norm in norms.items():
        _replace(twin, twin.get_submodule(path), norm)
    try:
        same = equal_within(logits, twin(images), EXACT)
    except Exception:  # the person's code may raise anything
        same = False
    if not same:
        return network
    kinds = Counter(type(network.get_submodule(path)).__name__ for path in norms)
    level = logging.DEBUG if quiet else logging.INFO
    _log.log(level, "taken as BatchNorms: %s", ", ".join(f"{count} {kind}" for kind, count in kinds.items()))
    return twin


@torch.no_grad()
def calls_batchnorms(network: nn.Module, image: ImageShape) -> bool:
    """Return True if a BatchNorm2d with running statistics is called for an image of this shape."""
    with record_bn_statistics(network) as statistics:
        network(torch.zeros(1, *image, device=next(network.parameters()).device))
    return bool(statistics)


def needs_graph(network: nn.Module, graph: nn.Module, image: ImageShape) -> bool:
    """Return True if statistics are better recorded in the graph of a network than in the network itself."""
    merged = any(has_own_forward(layer) for layer in network.modules())
    return merged or len(recorded_norms(graph)) > len(recorded_norms(network)) or _computes_again(network, image)


def _computes_again(network: nn.Module, image: ImageShape) -> bool:
    """Return True if parts of a frozen network run again in its backward pass, as ``torch.utils.checkpoint`` does."""
    calls: list[nn.Module] = []
    twin = copy.deepcopy(network)  # it may keep a part of the graph
    for layer in twin.modules():
        layer.register_forward_pre_hook(lambda layer, _: calls.append(layer))
    images = torch.zeros(1, *image, device=next(twin.parameters()).device, requires_grad=True)
    with torch.enable_grad():
        logits = twin(images * 1)
        before = len(calls)
        logits.sum().backward()
    return len(calls) > before


def _batchnorm_of(layer: nn.Module) -> nn.BatchNorm2d | None:
    """Return a BatchNorm2d that answers as ``layer`` does, if it is none and there is one.

    Its weight and bias follow from two answers, whatever the layer calls its own, and whatever its eps is.
    """
    hooked = layer._forward_hooks or layer._forward_pre_hooks
    found = [
        getattr(layer, name) for names in STATISTICS for name in names if isinstance(getattr(layer, name, None), Tensor)
    ]
    if isinstance(layer, nn.modules.batchnorm._NormBase) or hooked or len(found) != 2:
        return None
    mean, var = (each.detach().flatten().clone() for each in found)  # both [C]
    norm = nn.BatchNorm2d(len(mean)).to(mean).eval().requires_grad_(False)
    generator = torch.Generator().manual_seed(0)
    x = 3 * torch.randn(3, len(mean), 3, 3, generator=generator).to(mean)
    x[0], x[1] = 0, 1
    try:
        norm.running_mean, norm.running_var = mean, var
        x = mean.view(-1, 1, 1) + x * (var + norm.eps).sqrt().view(-1, 1, 1)
        answer = layer(x.clone())
        norm.bias.copy_(answer[0, :, 0, 0])
        norm.weight.copy_(answer[1, :, 0, 0] - norm.bias)
        same = equal_within(answer, norm(x), EXACT)
    except Exception:  # the person's code may raise anything
        same = False
    return norm if same else None


def _replace(network: nn.Module, layer: nn.Module, other: nn.Module) -> None:
    """Put ``other`` wherever ``network`` holds ``layer``, in place."""
    for path in [path for path, module in network.named_modules(remove_duplicate=False) if module is layer]:
        network.set_submodule(path, other)
