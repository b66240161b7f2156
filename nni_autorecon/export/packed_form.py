"""A student becomes a network of ONNX operators for the smallest file: weights of 8, 4 or 2 bits, all else in float.

The graph is made for onnxruntime and avoids four faults of version 1.32. First, onnxruntime rounds a bias between
quantizers to int32 at the product of their scales, which is coarse at few bits; biases are Add nodes here. Second, it
fails on activations of fewer than 8 bits; their codes are UINT8 behind a Clip here. Third, it fuses a Gemm, or a
convolution without bias, with the quantizers around it to an operator that cannot have 2-bit weights; only the weights
of convolutions with a bias (or a folded norm) are UINT2 here. Fourth, it fuses a MatMul with the dequantizer of its
weight to an operator that also rounds the activations; linear layers are Gemms of rows here.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from ..quantization.folding import fold_norms
from ..quantization.integers import FixedQuantizer, IntegerWeight, replace_modules
from .saved_network import SavedNetwork
from .symbolic import Rows, dequantized, quantized


def packed_form(saved: SavedNetwork, narrowest: int) -> nn.Module:
    """Return a copy of the network whose quantizers and weights are ONNX operators; it is only good for tracing.

    Weights have 8, 4 or ``narrowest`` bits.
    """
    assert saved.simulated is not None
    form, weights = copy.deepcopy(saved.simulated), dict(saved.weights)
    fold_norms(form, weights)
    replaced: dict[nn.Module, nn.Module] = {
        module: _QuantizeDequantize(module) for module in form.modules() if isinstance(module, FixedQuantizer)
    }
    for name, weight in weights.items():
        layer: Any = form.get_submodule(name)
        parametrize.register_parametrization(layer, "weight", PackedWeight(name, weight, layer, narrowest), unsafe=True)
        module = Rows(layer) if isinstance(layer, nn.Linear) else layer
        if layer.bias is not None:
            module, layer.bias = _Biased(module, layer.bias, is_map=isinstance(layer, nn.Conv2d)), None
        if module is not layer:
            replaced[layer] = module
    replace_modules(form, replaced)
    return form.eval()


class PackedWeight(nn.Module):
    """A parametrization that makes a weight by DequantizeLinear from its codes."""

    codes: Tensor  # uint8 [out, ...]
    scale: Tensor  # [out]
    zero_point: Tensor  # uint8 [out]

    def __init__(self, name: str, weight: IntegerWeight, layer: nn.Module, narrowest: int) -> None:
        super().__init__()
        has_bias = isinstance(layer, nn.Conv2d) and layer.bias is not None
        bits = 8 if weight.bits > 4 else 4 if weight.bits > 2 or not has_bias else narrowest
        self.note = {"weight": f"{name}.weight", "type": f"UINT{bits}"}  # _narrow_weights reads it in the graph
        for part in ("codes", "scale", "zero_point"):
            self.register_buffer(part, getattr(weight, part))

    def forward(self, weight: Tensor) -> Tensor:
        return dequantized(self.codes, self.scale, self.zero_point, attrs={"axis": 0}, metadata_props=self.note)


class _QuantizeDequantize(nn.Module):
    """An activation quantizer as ONNX operators: Clip to the range of the codes, QuantizeLinear, DequantizeLinear."""

    scale: Tensor  # []
    zero_point: Tensor  # uint8 []

    def __init__(self, quantizer: FixedQuantizer) -> None:
        super().__init__()
        ends = torch.tensor([0, quantizer.largest_code]) - quantizer.zero_point
        self.low, self.high = (ends * quantizer.scale).tolist()
        self.register_buffer("scale", quantizer.scale)
        self.register_buffer("zero_point", quantizer.zero_point.byte())

    def forward(self, activation: Tensor) -> Tensor:
        codes = quantized(activation.clamp(self.low, self.high), self.scale, self.zero_point)
        return dequantized(codes, self.scale, self.zero_point)


class _Biased(nn.Module):
    """A layer whose bias [C] is an addition of its own; ``is_map`` is True where it returns [N, C, H, W]."""

    def __init__(self, layer: nn.Module, bias: Tensor, *, is_map: bool) -> None:
        super().__init__()
        self._layer = layer
        self.register_buffer("_bias", bias.detach().view(-1, 1, 1) if is_map else bias.detach())

    def forward(self, activation: Tensor) -> Tensor:
        return self._layer(activation) + self._bias
