"""The agreement of an exported network with the one in PyTorch is measured here, in view of what rounding changes."""

from __future__ import annotations

import copy
import io
import time
from collections.abc import Callable
from contextlib import redirect_stderr
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..quantization.integer_arithmetic import Dividing
from ..quantization.integers import FixedQuantizer, replace_modules

CLOSE = 1e-4
"""Logits are close if they differ by no more than this fraction of the image's largest logit."""
BATCH = 8
"""So many images are compared at once, because few networks of 224×224 pixels leave memory for more."""
ALIKE = 0.85
"""This fraction of the images must have logits within the tolerance; rounding differs, and one code moves others."""
FRAGILE = 0.2
"""If rounding alone changes logits by more than this fraction of the largest, the summary says so.

It comes to that in networks whose weights are random, and with few bits: a mean over few integers often lies midway
between two codes, and so do many codes that are quantized again.
"""
MIDWAY = 2.0**-21
"""Values nearer than this fraction to the middle between two codes go either way."""
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
    """The fraction of the images on which both decide for the same class."""
    clear_decisions: float
    """The fraction of equal decisions among the images whose two largest logits differ clearly."""
    close: float
    """The fraction of the images whose logits differ by at most 1e-4."""
    alike: float
    """The fraction of the images whose logits differ by at most ``tolerance``."""
    tolerance: float
    """The change that other rounding makes in PyTorch on 85 % of the images, times 4, and at least 1e-4.

    The other ways to round are quantizers that divide by their scale and a little more or less, so that what lies
    midway between two codes goes either way, and the same in float64, if the network does not insist on float32.
    """
    largest_difference: float
    own_decisions: float
    """The fraction of the images on which PyTorch decides alike, however it rounds."""

    def holds(self) -> bool:
        """Return True if the two agree well enough for an export."""
        return self.alike >= ALIKE and self.clear_decisions >= DECISIONS

    def summary(self) -> str:
        """Return one line for people."""
        fragile = (
            f"; rounding decides much in this student: PyTorch itself, rounding otherwise, decides alike on "
            f"{self.own_decisions:.2%}"
        )
        return (
            f"onnxruntime and PyTorch decide alike on {self.decisions:.2%} of {self.images} images; "
            f"logits within {CLOSE:g} on {self.close:.2%}, largest difference {self.largest_difference:.1e}"
        ) + (fragile if self.tolerance > FRAGILE else "")


@torch.no_grad()
def measure_agreement(
    network: nn.Module, onnx: nn.Module, images: Tensor, *, seconds: float | None = None
) -> Agreement:
    """Measure how well ``onnx`` agrees with ``network`` on ``images`` [N, C, H, W]; all are on the CPU.

    After ``seconds`` no other batch is begun, so that fewer images may be compared, but at least ``BATCH``.
    """
    started = time.perf_counter()
    ways: list[Callable[[Tensor], Tensor]] = [_dividing(network, 1 + nudge) for nudge in (-MIDWAY, MIDWAY)]
    ways += _in_float64(network, images[:1])
    found = []
    for batch in images.split(BATCH):
        found.append([network(batch), onnx(batch), *(way(batch) for way in ways)])
        if seconds is not None and time.perf_counter() - started > seconds:
            break
    logits, onnx_logits, *others = (torch.cat(each) for each in zip(*found, strict=True))  # [N, K]
    largest = logits.abs().amax(1).clamp(min=torch.finfo(logits.dtype).tiny)  # [N]
    difference = (onnx_logits - logits).abs().amax(1) / largest
    rounding = torch.stack([(other - logits).abs().amax(1) / largest for other in others]).amax(0)  # [N]
    tolerance = max(CLOSE, 4 * rounding.quantile(ALIKE).item())
    own_decisions = torch.stack([other.argmax(1) == logits.argmax(1) for other in others]).all(0)
    decisions = onnx_logits.argmax(1) == logits.argmax(1)
    first, second = logits.topk(2).values.unbind(1)
    clear = (first - second) / largest > max(MARGIN, 2 * tolerance)
    return Agreement(
        images=len(logits),
        decisions=decisions.double().mean().item(),
        clear_decisions=decisions[clear].double().mean().item() if clear.any() else 1.0,
        close=(difference <= CLOSE).double().mean().item(),
        alike=(difference <= tolerance).double().mean().item(),
        tolerance=tolerance,
        largest_difference=difference.max().item(),
        own_decisions=own_decisions.double().mean().item(),
    )


def _in_float64(network: nn.Module, image: Tensor) -> list[Callable[[Tensor], Tensor]]:
    """Return ``network`` in float64 as the only element; none if its code insists on float32. image: [1, C, H, W]."""
    precise = _dividing(network, 1.0).double()
    try:
        with redirect_stderr(io.StringIO()):  # a graph prints where it fails
            precise(image.double())
    except RuntimeError:
        return []
    return [lambda batch: precise(batch.double())]


def _dividing(network: nn.Module, factor: float) -> nn.Module:
    """Return a copy of ``network`` whose quantizers divide by ``factor`` times their scale.

    onnxruntime divides, too. PyTorch multiplies by the inverse instead, which decides otherwise about values midway
    between two codes. What is computed in integers is rounded in one way alone.
    """
    twin = copy.deepcopy(network)
    quantizers = [module for module in twin.modules() if isinstance(module, FixedQuantizer)]
    replace_modules(twin, {quantizer: Dividing(quantizer) for quantizer in quantizers})
    for module in twin.modules():
        if isinstance(module, Dividing):
            module.factor = factor
    return twin
