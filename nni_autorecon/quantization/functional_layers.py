"""Calls of ``conv2d``, ``linear``, ``einsum``, ``batch_norm`` and the like become layers with the same weights."""

from __future__ import annotations

import operator
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


def _conv1d(
    input: Any, weight: Any, bias: Any = None, stride: Any = 1, padding: Any = 0, dilation: Any = 1, groups: int = 1
) -> nn.Module | None:
    """Return a convolution of [N, C, 1, L]."""
    if not isinstance(weight, Tensor):
        return None
    stride, dilation = ((1, *each) if isinstance(each, (tuple, list)) else (1, each) for each in (stride, dilation))
    if not isinstance(padding, str):
        padding = (0, *padding) if isinstance(padding, (tuple, list)) else (0, padding)
    return _conv2d(input, weight.detach().unsqueeze(2), bias, stride, padding, dilation, groups)


def _matmul(input: Any, other: Any) -> nn.Module | None:
    if not isinstance(other, Tensor) or other.ndim != 2 or getattr(input, "ndim", 0) < 2:
        return None
    return _linear(input, other.t())


def _addmm(bias: Any, input: Any, mat2: Any, *, beta: Any = 1, alpha: Any = 1) -> nn.Module | None:
    if not isinstance(mat2, Tensor) or not isinstance(bias, Tensor) or bias.ndim != 1:
        return None
    return _linear(input, alpha * mat2.t(), beta * bias)


def _einsum(equation: Any, input: Any, weight: Any) -> nn.Module | None:
    """Return a layer for "...i,oi->...o", whatever the letters, or a 1×1 convolution for "nihw,oi->nohw"."""
    if not isinstance(equation, str) or not isinstance(weight, Tensor) or weight.ndim != 2:
        return None
    given, _, result = equation.replace(" ", "").partition("->")
    indices, _, of_weight = given.partition(",")
    if len(of_weight) != 2:
        return None
    for matrix, out, summed in ((weight, *of_weight), (weight.t(), *of_weight[::-1])):
        if indices.count(summed) == 1 and out not in indices and result == indices.replace(summed, out):
            if indices.endswith(summed):
                return _linear(input, matrix)
            if len(indices) == 4 and indices[1] == summed:
                return _conv2d(input, matrix.detach()[:, :, None, None])
    return None


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


def attention(
    query: Any,
    key: Any,
    value: Any,
    attn_mask: Any = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Any:
    """Return softmax(Q K' / sqrt(d)) V by two products, Q, K, V: [..., L, d]; None if anything else is asked for."""
    if attn_mask is not None or dropout_p or is_causal or enable_gqa:
        return None
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    return torch.matmul(torch.softmax(torch.matmul(query, key.transpose(-2, -1)) * scale, -1), value)


LAYERS: Mapping[Any, Callable[..., nn.Module | None]] = {
    torch.conv2d: _conv2d,
    torch.conv1d: _conv1d,
    F.linear: _linear,
    F.batch_norm: _batch_norm,
    **dict.fromkeys((torch.matmul, torch.mm, operator.matmul, "matmul", "mm", "__matmul__"), _matmul),
    torch.addmm: _addmm,
    torch.einsum: _einsum,
}
"""Each function makes the layer that does to ``input`` what a call of the key does; None if there is no such layer.

All arguments but ``input`` are constants.
"""


def takes_place(layer: nn.Module, module: nn.Module) -> bool:
    """Return True if a layer that was made of a call within ``module`` computes what ``module`` is there for."""
    alike = isinstance(module, type(layer)) or (isinstance(layer, nn.Conv2d) and isinstance(module, nn.Conv1d))
    weights = [getattr(each, "weight", None) for each in (layer, module)]
    return alike and len({each.numel() for each in weights if each is not None}) < 2


def are_equal(one: nn.Module, other: nn.Module) -> bool:
    """Return True if two layers of the same kind have the same settings and parameters."""
    ours, theirs = one.state_dict(), other.state_dict()
    alike = str(one) == str(other) and ours.keys() == theirs.keys()
    return alike and all(torch.equal(ours[key], theirs[key]) for key in ours)
