"""A student of protocol ``integer`` becomes a network of ONNX operators that runtimes execute in integers.

Weights are INT8 with zero point 0, biases INT32 in the scale of the sums that they are added to, activations UINT8;
QuantizeLinear and DequantizeLinear stand around every operation, as runtimes expect it. Codes of fewer bits are spread
in INT8 by ``quantizers.container_factor``. An activation that only limits values, as ReLU does, is left out, because
the codes of the result are limited all the same; where they do not end with UINT8, a Clip of the codes stands.
"""

from __future__ import annotations

import copy
import re
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.nn.utils import parametrize

from ..quantization.calls import QUANTIZED, called, child_name
from ..quantization.fake_quantize import per_channel
from ..quantization.integers import FixedQuantizer, IntegerWeight, replace_modules
from ..quantization.operators import (
    CASTS,
    CLAMP,
    Lengths,
    averaged_axes,
    is_spatial,
    moves_values,
    padding,
    pooled_windows,
    sides,
    source_of,
)
from ..quantization.quantizers import bias_scale, container_factor
from .saved_network import SavedNetwork
from .symbolic import Rows, dequantized, onnx_operator, quantized

LARGEST = torch.finfo(torch.float32).max
NOTHING_MOVED = re.compile(
    rf"identity|\w*dropout[123]?d?|stochasticdepth|contiguous|clone|detach|{CASTS.pattern}|chunk|(tensor|[hvd])?split"
    "|splitwithsizes|unbind|max|min|median|topk|sort|(adaptive)?maxpool[123]dwithindices"
)
"""These operations leave nothing in a graph of ONNX, or return a tuple, of whose elements one is taken next."""


def integer_form(saved: SavedNetwork) -> nn.Module:
    """Return a copy of the network whose quantizers, weights and biases are ONNX operators, good only for tracing."""
    form: Any = copy.deepcopy(saved.simulated)
    _pad_before_convolutions(form)
    _pool_globally(form)
    limits = _take_clamps(form)
    again = _stored_again(form)
    _store_what_is_moved(form)
    replaced: dict[nn.Module, nn.Module] = {
        module: _Stored(module, *limits.get(module, (-LARGEST, LARGEST)), clips=module in again)
        for module in form.modules()
        if isinstance(module, FixedQuantizer)
    }
    inputs: dict[nn.Module, list[nn.Module | None]] = {}
    for node in form.graph.nodes:
        layer = called(form, node)[0]
        if isinstance(layer, QUANTIZED):
            inputs.setdefault(layer, []).append(called(form, source_of(form, node.all_input_nodes[0]))[0])
    for name, weight in saved.weights.items():
        layer = form.get_submodule(name)
        parametrize.register_parametrization(layer, "weight", _Weight(weight), unsafe=True)
        quantizers = inputs.get(layer, [])
        if layer.bias is not None and len(quantizers) == 1 and isinstance(quantizers[0], FixedQuantizer):
            bias = _Bias(layer.bias, bias_scale(quantizers[0].scale, weight.scale, weight.bits))
            parametrize.register_parametrization(layer, "bias", bias, unsafe=True)
        module = Rows(layer) if isinstance(layer, nn.Linear) else layer
        if layer.bias is not None and len(quantizers) > 1:
            module = _BiasApart(layer, module)
        if module is not layer:
            replaced[layer] = module
    replace_modules(form, replaced)
    return form.eval()


def _pad_before_convolutions(form: fx.GraphModule) -> None:
    """Let each convolution whose padding is no zeros be preceded by a call that pads, so that codes are padded."""
    for node in list(form.graph.nodes):
        layer = called(form, node)[0]
        if isinstance(layer, nn.Conv2d) and layer.padding_mode != "zeros":
            margins = list(layer._reversed_padding_repeated_twice)
            with form.graph.inserting_before(node):
                padded = form.graph.call_function(F.pad, (node.args[0], margins), {"mode": layer.padding_mode})
            node.args = (padded, *node.args[1:])
    for layer in form.modules():
        if isinstance(layer, nn.Conv2d) and layer.padding_mode != "zeros":
            layer.padding_mode, layer.padding = "zeros", (0, 0)
    form.recompile()


def _pool_globally(form: fx.GraphModule) -> None:
    """Let each mean over whole maps be a GlobalAveragePool, which runtimes compute in integers."""
    for node in list(form.graph.nodes):
        axes, windows = averaged_axes(form, node), pooled_windows(form, node)
        if axes is None and windows is None:
            continue
        name = f"global_means.{child_name(node)}"
        form.add_submodule(name, _Pool() if axes is None else _Mean(*axes))
        with form.graph.inserting_after(node):
            mean = form.graph.call_module(name, (node.all_input_nodes[0], *(windows or ())))
        node.replace_all_uses_with(mean)
        form.graph.erase_node(node)
    form.recompile()


def _take_clamps(form: fx.GraphModule) -> dict[nn.Module, tuple[float, float]]:
    """Remove each activation that only limits values before they are quantized, and return the limits by quantizer."""
    limits: dict[nn.Module, tuple[float, float]] = {}
    for node in list(form.graph.nodes):
        quantizer = called(form, node)[0]
        if not isinstance(quantizer, FixedQuantizer):
            continue
        clamp = node.all_input_nodes[0]
        module, kind = called(form, clamp)
        if CLAMP.fullmatch(kind) and len(clamp.users) == 1:
            limits[quantizer] = _limits(clamp, module, kind)
            node.replace_input_with(clamp, clamp.all_input_nodes[0])
            form.graph.erase_node(clamp)
    form.recompile()
    return limits


def _limits(clamp: fx.Node, module: nn.Module | None, kind: str) -> tuple[float, float]:
    """Return the least and the greatest value that an activation lets pass."""
    if kind != "hardtanh":
        return 0.0, 6.0 if kind == "relu6" else LARGEST
    if isinstance(module, nn.Hardtanh):
        return module.min_val, module.max_val
    given = dict(zip(("min_val", "max_val"), clamp.args[1:], strict=False)) | clamp.kwargs
    return float(given.get("min_val", -1.0)), float(given.get("max_val", 1.0))  # type: ignore[arg-type]


def _stored_again(form: fx.GraphModule) -> set[nn.Module]:
    """Return the quantizers of values that are stored already, in other codes."""
    found: set[nn.Module] = set()
    for node in form.graph.nodes:
        quantizer = called(form, node)[0]
        if isinstance(quantizer, FixedQuantizer):
            source = called(form, source_of(form, node.all_input_nodes[0]))[0]
            if isinstance(source, FixedQuantizer):
                found.add(quantizer)
    return found


def _store_what_is_moved(form: fx.GraphModule) -> None:
    """Quantize values again, to the same codes, after each operation that only moves them, so that it moves codes."""
    for node in list(form.graph.nodes):
        module, kind = called(form, node)
        returns_tuple = NOTHING_MOVED.fullmatch(kind) or getattr(module, "return_indices", False)
        if not moves_values(form, node) or returns_tuple or _pads_for_convolutions(form, node):
            continue
        source = called(form, source_of(form, node))[0]
        if isinstance(source, FixedQuantizer):
            name = f"activation_quantizers.{child_name(node)}"
            form.add_submodule(name, copy.deepcopy(source))
            with form.graph.inserting_after(node):
                stored = form.graph.call_module(name, (node,))
            node.replace_all_uses_with(stored)
            stored.args = (node,)
    form.recompile()


def _pads_for_convolutions(form: fx.GraphModule, node: fx.Node) -> bool:
    """Return True if a node adds zeros to the sides of what convolutions read: runtimes let these do it themselves."""
    sides, mode, value = padding(form, node) or ((), "", 0)
    at_sides = isinstance(sides, (tuple, list)) and len(sides) <= 4 and all(type(n) is int and n >= 0 for n in sides)
    zeros = mode == "constant" and value == 0 and at_sides
    return zeros and all(isinstance(called(form, user)[0], nn.Conv2d) for user in node.users)


class _Stored(nn.Module):
    """An activation quantizer as ONNX operators, for values that are limited to ``low`` .. ``high`` before.

    With ``clips`` a Clip stands behind it in any case: onnxruntime would merge two quantizers with nothing between
    them into one, which rounds once.
    """

    scale: Tensor  # []
    zero_point: Tensor  # uint8 []
    ends: Tensor  # uint8 [2]

    def __init__(self, quantizer: FixedQuantizer, low: float, high: float, *, clips: bool) -> None:
        super().__init__()
        self.least, self.greatest = (
            min(max(round(end / float(quantizer.scale)) + int(quantizer.zero_point), 0), quantizer.largest_code)
            for end in (low, high)
        )
        self.clips = clips or (self.least, self.greatest) != (0, 255)
        self.register_buffer("scale", quantizer.scale)
        self.register_buffer("zero_point", quantizer.zero_point.byte())
        self.register_buffer("ends", torch.tensor([self.least, self.greatest], dtype=torch.uint8))

    def forward(self, activation: Tensor) -> Tensor:
        codes = quantized(activation, self.scale, self.zero_point)
        if self.clips:
            codes = onnx_operator("Clip", (codes, *self.ends.unbind()), dtype=torch.uint8, shape=codes.shape)
        return dequantized(codes, self.scale, self.zero_point)


class _Mean(nn.Module):
    """A mean over some axes of its input; over the whole of maps [N, C, ...], it is an operator of its own in ONNX."""

    def __init__(self, axes: tuple[int, ...], keeps: bool) -> None:
        super().__init__()
        self.axes, self.keeps = axes, keeps

    def forward(self, activation: Tensor) -> Tensor:
        if not is_spatial(self.axes, activation):
            return activation.mean(self.axes, self.keeps)
        shape = (*activation.shape[:2], *[1] * (activation.ndim - 2))
        mean = onnx_operator("GlobalAveragePool", (activation,), dtype=torch.float32, shape=shape)
        return mean if self.keeps else mean.flatten(1)


class _Pool(nn.Module):
    """An average pooling without padding; its window may be the whole map."""

    def forward(self, activation: Tensor, kernel: Lengths, stride: Lengths) -> Tensor:
        if sides(kernel) == activation.shape[2:]:
            return _Mean((-2, -1), keeps=True)(activation)
        return F.avg_pool2d(activation, kernel, stride)


class _Weight(nn.Module):
    """A parametrization that makes a weight by DequantizeLinear from INT8."""

    codes: Tensor  # int8 [out, ...]
    scale: Tensor  # [out]
    zero_point: Tensor  # int8 [out]

    def __init__(self, weight: IntegerWeight) -> None:
        super().__init__()
        factor = container_factor(weight.bits)
        steps = weight.codes.int() - per_channel(weight.zero_point.int(), weight.codes)
        self.register_buffer("codes", (steps * factor).to(torch.int8))
        self.register_buffer("scale", weight.scale / factor)
        self.register_buffer("zero_point", torch.zeros_like(weight.zero_point, dtype=torch.int8))

    def forward(self, weight: Tensor) -> Tensor:
        return dequantized(self.codes, self.scale, self.zero_point, attrs={"axis": 0})


class _BiasApart(nn.Module):
    """A layer that is called on inputs of several scales: its bias in floating point is added after it.

    Within the layer runtimes round it to the scale of their sums of products, as PyTorch does not.
    """

    def __init__(self, layer: nn.Conv2d | nn.Linear, module: nn.Module) -> None:
        super().__init__()
        self.module, self.ahead = module, isinstance(layer, nn.Conv2d)
        self.bias, layer.bias = cast(nn.Parameter, layer.bias), None

    def forward(self, activation: Tensor) -> Tensor:
        result = self.module(activation)
        return result + (self.bias.view(-1, 1, 1) if self.ahead else self.bias)


class _Bias(nn.Module):
    """A parametrization that makes a bias [out] by DequantizeLinear from INT32. scale: [out]."""

    codes: Tensor  # int32 [out]
    scale: Tensor  # [out]
    zero_point: Tensor  # int32 [out]

    def __init__(self, bias: Tensor, scale: Tensor) -> None:
        super().__init__()
        self.register_buffer("codes", (bias.detach().double() / scale.double()).round().int())
        self.register_buffer("scale", scale)
        self.register_buffer("zero_point", torch.zeros_like(self.codes))

    def forward(self, bias: Tensor) -> Tensor:
        return dequantized(self.codes, self.scale, self.zero_point, attrs={"axis": 0})
