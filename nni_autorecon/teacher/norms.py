"""Layers that compute what a BatchNorm does, by code of their own, become one: frozen ones, and those of a person."""

from __future__ import annotations

import copy
import logging
from collections import Counter

import torch
from torch import Tensor, nn

from ..losses.batchnorm import record_bn_statistics
from ..shapes import ImageShape
from .locating import equal_within

EXACT = 1e-4
"""A layer is a BatchNorm if its answers differ by no more than this share of the largest one."""

_log = logging.getLogger(__name__)


@torch.no_grad()
def with_batchnorms(network: nn.Module, images: Tensor, logits: Tensor) -> nn.Module:
    """Return a frozen network whose norms are of ``torch.nn.BatchNorm2d``; the network itself if all of them are.

    A layer with ``running_mean`` and ``running_var`` (torchvision's FrozenBatchNorm2d) whose answers are those of a
    BatchNorm2d is replaced in a copy, and a message says so. The copy counts if it answers ``images`` [N, C, H, W] by
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
    _log.info("taken as BatchNorms: %s", ", ".join(f"{count} {kind}" for kind, count in kinds.items()))
    return twin


@torch.no_grad()
def calls_batchnorms(network: nn.Module, image: ImageShape) -> bool:
    """Return True if a BatchNorm2d with running statistics is called for an image of this shape."""
    with record_bn_statistics(network) as statistics:
        network(torch.zeros(1, *image, device=next(network.parameters()).device))
    return bool(statistics)


def computes_again(network: nn.Module, image: ImageShape) -> bool:
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
    """Return a BatchNorm2d that answers as ``layer`` does, if it is none and there is one."""
    statistics = [getattr(layer, name, None) for name in ("running_mean", "running_var")]
    mean, var = (each if isinstance(each, Tensor) and each.ndim == 1 else None for each in statistics)
    hooked = layer._forward_hooks or layer._forward_pre_hooks
    if isinstance(layer, nn.modules.batchnorm._NormBase) or mean is None or var is None or mean.shape != var.shape:
        return None
    weight, bias = (getattr(layer, name, None) for name in ("weight", "bias"))
    eps = getattr(layer, "eps", None)
    norm = nn.BatchNorm2d(len(mean), eps=eps if isinstance(eps, float) else 1e-5).to(mean)
    norm.running_mean, norm.running_var = mean.clone(), var.clone()
    for own, value in ((norm.weight, weight), (norm.bias, bias)):
        if isinstance(value, Tensor) and value.numel() == len(mean):
            own.copy_(value.reshape(-1))
    norm.eval().requires_grad_(False)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, len(mean), 3, 3, generator=generator).to(mean)
    x = norm.running_mean.view(-1, 1, 1) + 3 * x * norm.running_var.sqrt().view(-1, 1, 1)
    try:
        same = not hooked and equal_within(norm(x), layer(x.clone()), EXACT)
    except Exception:  # the person's code may raise anything
        same = False
    return norm if same else None


def _replace(network: nn.Module, layer: nn.Module, other: nn.Module) -> None:
    """Put ``other`` wherever ``network`` holds ``layer``, in place."""
    for path in [path for path, module in network.named_modules(remove_duplicate=False) if module is layer]:
        network.set_submodule(path, other)
