"""DFQ quantizes a network from its weights alone (Nagel et al., ICCV 2019)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import fx, nn

from ..errors import InputError
from ..shapes import ImageShape
from .activation_moments import DEVIATIONS, channel_mean, image_moments, input_moments
from .calls import BATCHNORMS, QUANTIZED
from .coverage import Coverage
from .equalization import absorb_high_biases, add_to_bias, constant_response, equalization_pairs, equalize
from .folding import Normal, folded
from .insertion import quantize_network
from .moments import Moments
from .quantizers import ActivationQuantizer
from .specification import Quantization


def dfq(
    network: nn.Module,
    image: ImageShape,
    quantization: Quantization,
    *,
    pixel_range: tuple[Sequence[float], Sequence[float]] | None = None,
    deviations: float = DEVIATIONS,
) -> tuple[nn.Module, Coverage]:
    """Return a quantized copy of ``network`` and its coverage, as ``quantize_network`` does; all ranges are set.

    No image is used. BatchNorms are folded, the layers are equalized and high biases are absorbed. Activation ranges
    are beta ± ``deviations`` gamma, clipped by the activation function. Biases are corrected for the mean error that
    weight quantization causes.

    The paper quantizes weights per tensor. Here they are quantized per output channel, as in all other methods. The
    paper makes every ReLU6 a ReLU, so that layers can be equalized across it. Here it stays: networks whose activations
    reach 6 would become other functions (EfficientNet-Lite0 loses 37 points by it, before any quantization).

    image: the shape of the images that the network takes. They are assumed to be standardized (mean 0, variance 1).
    pixel_range: the least and the largest value of each channel; None means ± ``deviations``.
    quantization: what ``quantize_network`` takes.

    Raises InputError if the network cannot be traced, has no BatchNorm, or has a part that cannot be quantized (with
    ``allow_partial`` that part is skipped).
    """
    float_network, outputs = equalized(network, image)
    student, coverage = quantize_network(float_network, quantization)
    student = student.to(next(network.parameters()).device)
    if not isinstance(student, fx.GraphModule):  # quantize_network could not trace the folded network
        raise InputError(f"{type(network).__name__} cannot be traced twice; choose a method that uses images")
    images = image_moments(image, pixel_range, deviations=deviations, device=next(student.parameters()).device)
    inputs = input_moments(student, images, float_network=float_network, outputs=outputs, deviations=deviations)
    set_ranges(student, inputs)
    correct_biases(student, float_network, inputs)
    return student, coverage


def equalized(network: nn.Module, image: ImageShape) -> tuple[fx.GraphModule, dict[str, Normal]]:
    """Return the network that DFQ quantizes, in floating point, and the outputs of its layers that are known, by path.

    BatchNorms are folded, the layers are equalized and high biases are absorbed (section 4.1).

    Raises InputError if the network cannot be traced or has no BatchNorm.
    """
    float_network, outputs = folded(network, image=image)
    if not outputs and not any(isinstance(module, BATCHNORMS) for module in float_network.modules()):
        raise InputError(
            f"{type(network).__name__} has no BatchNorm to take ranges from; choose another method than dfq"
        )
    pairs = equalization_pairs(float_network)
    outputs = equalize(float_network, pairs, outputs)
    return float_network, absorb_high_biases(float_network, pairs, outputs)


def set_ranges(student: nn.Module, inputs: Mapping[str, Sequence[Moments]]) -> None:
    """Set the range of every ActivationQuantizer to the widest range over all its calls. inputs: lists by path."""
    for path, moments in inputs.items():
        quantizer = student.get_submodule(path)
        if isinstance(quantizer, ActivationQuantizer):
            quantizer.set_range(min(float(x.low.min()) for x in moments), max(float(x.high.max()) for x in moments))


@torch.no_grad()
def correct_biases(student: nn.Module, float_network: nn.Module, inputs: Mapping[str, Sequence[Moments]]) -> None:
    """Correct the bias of every layer of ``student``: b <- b - (W_q - W) E[x], summed over the kernel (section 4.2)."""
    for path, moments in inputs.items():
        layer = student.get_submodule(path)
        if isinstance(layer, QUANTIZED):
            error = layer.weight - float_network.get_parameter(f"{path}.weight")
            mean = torch.stack([channel_mean(layer, x.mean) for x in moments]).mean(0)  # [C]
            add_to_bias(layer, -constant_response(error, mean.to(error)))
