"""The agreement of an exported network with the one in PyTorch is measured here, in view of what rounding changes."""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..quantization.integers import FixedQuantizer, replace_modules

CLOSE = 1e-4
"""Logits are close if they differ by no more than this fraction of the image's largest logit."""
ALIKE = 0.85
"""This fraction of the images must have logits within the tolerance; rounding differs, and one code moves others."""
LARGEST_TOLERANCE = 0.2
"""The tolerance is at most this fraction of an image's largest logit, however much rounding may change.

It must be so large because of means over few integers that keep the integers' scale, as in networks from DFQ. Such a
mean often lies midway between two codes, and rounding alone decides. So do many codes that are quantized again.
"""
DECISIONS = 0.99
"""This fraction of the decisions must be equal, among images with a clear decision."""
MARGIN = 0.01
"""A decision is clear if the two largest logits differ by more than this fraction of the largest logit."""


@dataclass(frozen=True)
class Agreement:
    """The agreement of ONNX in onnxruntime with the network in PyTorch.

    Differences between logits are fractions of the image's largest logit.
    """

    images: int
    decisions: float
    """Fraction of the images on which both decide for the same class."""
    clear_decisions: float
    """Fraction of equal decisions among the images whose two largest logits differ clearly."""
    close: float
    """Fraction of the images whose logits differ by at most 1e-4."""
    alike: float
    """Fraction of the images whose logits differ by at most ``tolerance``."""
    tolerance: float
    """4 times the change that other rounding makes in PyTorch on 85 % of the images, within 1e-4 to 0.2.

    The other ways to round are quantizers that divide by their scale, in float32, and the same in float64.
    """
    largest_difference: float

    def holds(self) -> bool:
        """Return True if the two agree well enough for an export."""
        return self.alike >= ALIKE and self.clear_decisions >= DECISIONS

    def summary(self) -> str:
        """Return one line for people."""
        return (
            f"onnxruntime and PyTorch decide alike on {self.decisions:.2%} of {self.images} images; "
            f"logits within {CLOSE:g} on {self.close:.2%}, largest difference {self.largest_difference:.1e}"
        )


@torch.no_grad()
def measure_agreement(network: nn.Module, onnx: nn.Module, images: Tensor, *, batch_size: int = 64) -> Agreement:
    """Measure how well ``onnx`` agrees with ``network`` on ``images`` [N, C, H, W]; all are on the CPU."""
    dividing = copy.deepcopy(network)
    quantizers = [module for module in dividing.modules() if isinstance(module, FixedQuantizer)]
    replace_modules(dividing, {quantizer: _Dividing(quantizer) for quantizer in quantizers})
    precise = copy.deepcopy(dividing).double()
    batches = images.split(batch_size)
    logits = torch.cat([network(batch) for batch in batches])  # [N, K]
    onnx_logits = torch.cat([onnx(batch) for batch in batches])
    others = [
        torch.cat([dividing(batch) for batch in batches]),
        torch.cat([precise(batch.double()) for batch in batches]),
    ]
    largest = logits.abs().amax(1).clamp(min=torch.finfo(logits.dtype).tiny)  # [N]
    difference = (onnx_logits - logits).abs().amax(1) / largest
    rounding = torch.stack([(other - logits).abs().amax(1) / largest for other in others]).amax(0)  # [N]
    tolerance = min(max(CLOSE, 4 * rounding.quantile(ALIKE).item()), LARGEST_TOLERANCE)
    decisions = onnx_logits.argmax(1) == logits.argmax(1)
    first, second = logits.topk(2).values.unbind(1)
    clear = (first - second) / largest > max(MARGIN, 2 * tolerance)
    return Agreement(
        images=len(images),
        decisions=decisions.double().mean().item(),
        clear_decisions=decisions[clear].double().mean().item() if clear.any() else 1.0,
        close=(difference <= CLOSE).double().mean().item(),
        alike=(difference <= tolerance).double().mean().item(),
        tolerance=tolerance,
        largest_difference=difference.max().item(),
    )


class _Dividing(nn.Module):
    """An activation quantizer that divides by its scale, as onnxruntime does.

    PyTorch multiplies by the inverse instead, which decides otherwise about values midway between two codes.
    """

    scale: Tensor  # []

    def __init__(self, quantizer: FixedQuantizer) -> None:
        super().__init__()
        self.register_buffer("scale", quantizer.scale)
        self.lowest = -int(quantizer.zero_point)
        self.highest = self.lowest + quantizer.largest_code

    def forward(self, activation: Tensor) -> Tensor:
        return (activation / self.scale).round().clamp(self.lowest, self.highest) * self.scale
