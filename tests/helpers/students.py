"""Quantized students that no training made."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from nni_autorecon.export.description import Description
from nni_autorecon.quantization.insertion import quantize_network
from nni_autorecon.quantization.quantizers import observe_ranges
from nni_autorecon.quantization.specification import Quantization
from nni_autorecon.shapes import ImageShape
from nni_autorecon.teacher.sources import architecture
from tests.helpers.toys import CLASSES, IMAGE


def student_of(
    spec: str,
    weight_bits: int,
    activation_bits: int,
    image: ImageShape = IMAGE,
    num_classes: int = CLASSES,
    **more: Any,
) -> tuple[nn.Module, Description]:
    """A student with ranges from noise, its norms unlike their initial values, and its description."""
    torch.manual_seed(0)
    network = architecture(spec, num_classes)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(std=0.1)
            module.running_var.uniform_(0.5, 2)
    bits = Quantization(f"w{weight_bits}a{activation_bits}", **more)
    student, _ = quantize_network(network, bits, image=image)
    with torch.no_grad(), observe_ranges(student):
        student(torch.randn(7, *image))
    zeros, ones = (0.0,) * image.channels, (1.0,) * image.channels
    return student, Description(spec, num_classes, image, zeros, ones, bits, details={"generator": "noise"})
