"""Operators of ONNX stand in a network for tracing; it can no longer compute with them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


def onnx_operator(name: str, *arguments: Any, **named: Any) -> Tensor:
    """Return the result of an operator of ONNX by its name, as ``torch.onnx.ops.symbolic`` takes it."""
    import torch.onnx.ops  # slow to import

    return torch.onnx.ops.symbolic(name, *arguments, **named)


def quantized(activation: Tensor, scale: Tensor, zero_point: Tensor) -> Tensor:
    """Return the codes of an activation, UINT8, by QuantizeLinear. scale: []; zero_point: uint8 []."""
    inputs = (activation, scale, zero_point)
    return onnx_operator("QuantizeLinear", inputs, dtype=torch.uint8, shape=activation.shape)


def dequantized(codes: Tensor, scale: Tensor, zero_point: Tensor, **named: Any) -> Tensor:
    """Return the values of codes, float32, by DequantizeLinear; ``named`` goes to the operator."""
    inputs = (codes, scale, zero_point)
    return onnx_operator("DequantizeLinear", inputs, dtype=torch.float32, shape=codes.shape, **named)


class Rows(nn.Module):
    """A linear layer as a product of two matrices, a Gemm, whatever the shape [..., in] of its input."""

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, activation: Tensor) -> Tensor:
        if activation.ndim == 2:
            return self.layer(activation)
        rows = self.layer(activation.flatten(0, -2))  # [M, out]
        return rows.view(*activation.shape[:-1], -1)
