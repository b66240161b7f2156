"""Calls of ``conv2d``, ``linear`` and ``batch_norm`` are made into layers with the same weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def _conv2d(
    input: Any, weight: Any, bias: Any = None, stride: Any = 1, padding: Any = 0, dilation: Any = 1, groups: int = 1
) -> nn.Module | None:
    if not isinstance(weight, Tensor):
        return None
    out_channels, in_channels, *kernel = weight.shape
    layer = nn.utils.skip_init(
        nn.Conv2d,
        in_channels * groups,
        out_channels,
        tuple(kernel),
        stride=stride,
        padding=padding,
        dilation=dilation,
        groups=groups,
        bias=bias is not None,
    )
    return _with(layer, weight=weight, bias=bias)


def _linear(input: Any, weight: Any, bias: Any = None) -> nn.Module | None:
    if not isinstance(weight, Tensor) or weight.ndim != 2:
        return None
    layer = nn.utils.skip_init(nn.Linear, *weight.shape[::-1], bias=bias is not None)
    return _with(layer, weight=weight, bias=bias)


def _batch_norm(
    input: Any,
    running_mean: Any,
    running_var: Any,
    weight: Any = None,
    bias: Any = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> nn.Module | None:
    dimensions = getattr(input, "ndim", None)
    if training or not isinstance(running_mean, Tensor) or (weight is None) != (bias is None) or dimensions != 4:
        return None
    layer = nn.BatchNorm2d(len(running_mean), eps=eps, momentum=momentum, affine=weight is not None)
    layer.running_mean, layer.running_var = running_mean, running_var
    return _with(layer, weight=weight, bias=bias)


def _with(layer: nn.Module, **tensors: Tensor | None) -> nn.Module:
    """Give a layer these parameters, which it shares with others if they are parameters already."""
    for name, tensor in tensors.items():
        if tensor is not None:
            own = tensor if isinstance(tensor, nn.Parameter) else nn.Parameter(tensor.detach().clone())
            layer.register_parameter(name, own)
    return layer.eval()


LAYERS: Mapping[Any, Callable[..., nn.Module | None]] = {
    torch.conv2d: _conv2d,
    F.linear: _linear,
    F.batch_norm: _batch_norm,
}
"""Each function makes the layer that does to ``input`` what a call of the key does; None if there is no such layer.

All arguments but ``input`` are constants.
"""
