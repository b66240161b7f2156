"""Quantization from the weights alone: DFQ (Nagel et al., ICCV 2019)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, fx, nn

from ..errors import InputError
from ..shapes import ImageShape
from .activation_moments import Moments, input_moments
from .coverage import Coverage
from .equalization import absorb_high_biases, add_to_bias, constant_response, equalization_pairs, equalize
from .folding import folded
from .insertion import quantize_network
from .quantizers import ActivationQuantizer
from .specification import Quantization
from .tracing import BATCHNORMS, QUANTIZED


def dfq(
    network: nn.Module,
    image: ImageShape,
    quantization: Quantization,
    *,
    pixel_range: tuple[Sequence[float], Sequence[float]] | None = None,
    deviations: float = 6.0,
) -> tuple[nn.Module, Coverage]:
    """A quantized copy of ``network`` as ``quantize_network`` makes it, with all ranges set and no image used.

    BatchNorms are folded, every ReLU6 becomes a ReLU, the layers are equalized and high biases absorbed; activation
    ranges are beta ± ``deviations`` gamma, clipped by the activation function; biases are corrected for the mean of
    what weight quantization adds. ``image`` is the shape of the images that the network takes, standardized (mean 0
    and variance 1), ``pixel_range`` the least and the largest value of each channel (default: ± ``deviations``).

    Where the paper quantizes weights per tensor, here they are quantized per output channel, as in all other methods.

    Raises InputError if the network cannot be traced, has no BatchNorm, or computes anything ``input_moments`` cannot
    follow, or cannot be quantized (``quantize_network``; ``allow_partial`` then skips that part).
    """
    if not any(isinstance(module, BATCHNORMS) for module in network.modules()):
        raise InputError(
            f"{type(network).__name__} has no BatchNorm to take ranges from; choose another method than DFQ"
        )
    float_network, outputs = folded(network)
    pairs = equalization_pairs(float_network)
    outputs = equalize(float_network, pairs, outputs)
    outputs = absorb_high_biases(float_network, pairs, outputs)
    student, coverage = quantize_network(float_network, quantization)
    student = student.to(next(network.parameters()).device)
    assert isinstance(student, fx.GraphModule)  # what could be traced once can be traced again
    device = next(student.parameters()).device
    mean = torch.zeros(1, *image, dtype=torch.float64, device=device)  # [1, C, H, W]
    images = Moments.normal(mean, mean + 1, deviations)
    if pixel_range is not None:
        low, high = (mean + mean.new_tensor(ends).view(-1, 1, 1) for ends in pixel_range)
        images = Moments(mean, mean + 1, low, high)
    inputs = input_moments(student, images, float_network=float_network, outputs=outputs, deviations=deviations)
    set_ranges(student, inputs)
    correct_biases(student, float_network, inputs)
    return student, coverage


def set_ranges(student: nn.Module, inputs: Mapping[str, Sequence[Moments]]) -> None:
    """Give every ActivationQuantizer the widest range of what enters it."""
    for path, moments in inputs.items():
        quantizer = student.get_submodule(path)
        if isinstance(quantizer, ActivationQuantizer):
            quantizer.set_range(min(float(x.low.min()) for x in moments), max(float(x.high.max()) for x in moments))


@torch.no_grad()
def correct_biases(student: nn.Module, float_network: nn.Module, inputs: Mapping[str, Sequence[Moments]]) -> None:
    """b <- b - (W_q - W) E[x], summed over the kernel, in every layer of ``student`` (section 4.2)."""
    for path, moments in inputs.items():
        layer = student.get_submodule(path)
        if isinstance(layer, QUANTIZED):
            error = layer.weight - float_network.get_parameter(f"{path}.weight")
            mean = torch.stack([_channel_mean(layer, x.mean) for x in moments]).mean(0)  # [C]
            add_to_bias(layer, -constant_response(error, mean.to(error)))


def _channel_mean(layer: nn.Module, mean: Tensor) -> Tensor:
    """[C], of [1, C, H, W] for a convolution or [1, ..., C] for a linear layer."""
    return mean.mean((0, 2, 3)) if isinstance(layer, nn.Conv2d) else mean.flatten(0, -2).mean(0)
