"""A student is made of the teacher before anything is trained, and so is its counterpart in floating point."""

from __future__ import annotations

import torch
from torch import nn

from ..config.compress import CompressConfig
from ..export.description import Description
from ..quantization.coverage import Coverage
from ..quantization.dfq import dfq, equalized
from ..quantization.equalization import add_to_bias
from ..quantization.insertion import quantize_network
from ..quantization.integers import quantized_layers
from ..quantization.specification import Quantization
from ..teacher.loading import Teacher


def make_student(config: CompressConfig, teacher: Teacher, quantization: Quantization) -> tuple[nn.Module, Coverage]:
    """Return the student at its start, and its coverage. Raises InputError if a part cannot be quantized."""
    if config.method == "dfq":
        student, coverage = dfq(teacher.graph, teacher.image, quantization, pixel_range=teacher.pixel_range)
    else:
        student, coverage = quantize_network(teacher.graph, quantization, image=teacher.image)
    return student.to(teacher.device).to(memory_format=teacher.memory_format), coverage


def make_counterpart(
    config: CompressConfig, teacher: Teacher, quantization: Quantization
) -> tuple[nn.Module, Coverage]:
    """Return a network with the student's layers and scales, whose activations have no ranges, and its coverage.

    Within ``in_floating_point`` it computes what the teacher does, because method ``dfq`` corrects no biases here.
    """
    network = teacher.graph
    if config.method == "dfq":
        network, _ = equalized(network, teacher.image)
    student, coverage = quantize_network(network, quantization, image=teacher.image)
    for _, layer in quantized_layers(student) if config.method == "dfq" else ():
        add_to_bias(layer, torch.zeros(layer.weight.shape[0], device=layer.weight.device))  # as the correction does
    return student.to(teacher.device).to(memory_format=teacher.memory_format), coverage


def describe(
    config: CompressConfig, teacher: Teacher, quantization: Quantization, *, bits: str, accuracy: float | None
) -> Description:
    """Return what the student's file says of it; ``bits`` is a name for all its bit widths."""
    generator = config.generator_spec and str(config.generator_spec)
    details = {"bits": bits, "method": config.method, "seed": config.seed, "generator": generator, "accuracy": accuracy}
    return Description.of(teacher, quantization, folded=config.method == "dfq", **details)
