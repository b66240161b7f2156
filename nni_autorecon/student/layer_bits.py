"""The bits of each layer are chosen for a size of the file, by the harm that few bits do in this layer alone."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, fx, nn

from ..config.compress import CompressConfig
from ..errors import InputError
from ..export.student_file import student_bytes
from ..losses.student import distillation_loss
from ..quantization.blocks import blocks
from ..quantization.coverage import Coverage
from ..quantization.insertion import quantize_network
from ..quantization.integers import activation_quantizers, quantized_layers, weight_bytes
from ..quantization.mixed_precision import CANDIDATES, Choice, best_within, pareto_frontier, thinned
from ..quantization.quantizers import in_floating_point, quantized_alone
from ..quantization.specification import Bits, Quantization
from ..shapes import measured_at_once
from ..teacher.loading import Teacher
from .agreement import BUDGET
from .making import describe, make_counterpart
from .noise import pixel_noise

_log = logging.getLogger(__name__)

IMAGES, FEWEST_IMAGES = 32, 8
"""Harms are measured on so many images of noise, and on fewer where they would cost more than ``BUDGET``."""
TEMPERATURE = 4.0
"""At this temperature the divergence depends on all logits; at 1, a few images that lie near a border decide."""
SPARE = 64
"""Bytes of a file are left for the digits of its accuracy, and for what they shift."""
SHOWN = 50
"""A result holds so many choices of the frontier."""

Harms = Mapping[str, Mapping[int, float]]
"""The harms in nats, by the path of a layer and by the bits of its weights."""


@dataclass(frozen=True)
class MixedPrecision:
    """The bits of each layer, chosen for a size, and what they were chosen from. Bytes are those of the whole file."""

    size: int
    harms: Harms
    chosen: Choice
    frontier: tuple[Choice, ...]
    """Some choices of the Pareto frontier, the smallest and the largest file among them."""
    uniform: tuple[Choice, ...]
    """The choices with the same bits in all layers, but for the first and the last one if these have bits given."""

    @property
    def layer_bits(self) -> dict[str, int]:
        """Return the bits by the path of the layer."""
        return dict(zip(self.harms, self.chosen.bits, strict=True))

    def to_dict(self) -> dict[str, Any]:
        """Return the same for JSON and for a snapshot; the bits of a choice are digits, in the order of the layers."""
        return {
            "size": self.size,
            "layer_bits": self.layer_bits,
            "harms": {name: {str(bits): nats for bits, nats in harm.items()} for name, harm in self.harms.items()},
            "chosen": _to_dict(self.chosen),
            "frontier": [_to_dict(each) for each in self.frontier],
            "uniform": [_to_dict(each) for each in self.uniform],
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> MixedPrecision:
        """Undo :meth:`to_dict`."""
        harms = {name: {int(bits): nats for bits, nats in harm.items()} for name, harm in values["harms"].items()}
        frontier, uniform = (tuple(map(_from_dict, values[name])) for name in ("frontier", "uniform"))
        return cls(int(values["size"]), harms, _from_dict(values["chosen"]), frontier, uniform)

    def summary(self) -> str:
        """Return the choice in one line."""
        counts = sorted(Counter(self.chosen.bits).items())
        listed = ", ".join(f"{count} layer{'s' if count > 1 else ''} at {bits} bits" for bits, count in counts)
        return f"weights within {_kilobytes(self.size)}: {listed}; harm {self.chosen.harm:.3g} nats"


def choose_layer_bits(config: CompressConfig, teacher: Teacher) -> MixedPrecision:
    """Return the bits of each layer with which the student's file has at most ``config.size`` and does the least harm.

    Harms are measured on smooth noise, in the network as the method quantizes it. ``first_bits`` and ``last_bits`` stay
    as they are given. No random number is drawn but from ``config.seed``.

    Raises InputError if the file is larger even at 2 bits.
    """
    assert config.size is not None
    network, coverage = make_counterpart(config, teacher, _with_weight_bits(config, 8))
    layers = _candidates(config, teacher, coverage)
    beside = _bytes_beside_weights(config, teacher, network, coverage)
    sizes = [{n: weight_bytes(each.shape or (), n) for n in layers[each.name]} for each in coverage.weights]
    least, most = (beside + sum(end(size.values()) for size in sizes) for end in (min, max))
    if config.size.bytes < least:
        raise InputError(
            f"size {config.size} is {_kilobytes(least - config.size.bytes)} too small: this student's file has "
            f"{_kilobytes(least)} at 2 bits to {_kilobytes(most)} at 8 bits; give at least {least}B"
        )
    images = pixel_noise(teacher, _affordable_images(layers, teacher), seed=config.seed)
    _log.info("choosing the bits of %d layers for %s, by %d images of noise", len(layers), config.size, len(images))
    harms = layer_harms(network, images, layers)
    frontier = [each._replace(bytes=beside + each.bytes) for each in pareto_frontier([*harms.values()], sizes)]
    uniform = tuple(_uniform(bits, [*harms.values()], sizes, beside) for bits in CANDIDATES)
    chosen = best_within(frontier, config.size.bytes)
    if config.size.bytes >= most:
        chosen = uniform[-1]
        _log.info("8 bits everywhere are within the size: the file has %s", _kilobytes(most))
    assert chosen is not None  # the smallest choice is never dropped
    mixed = MixedPrecision(config.size.bytes, harms, chosen, tuple(thinned(frontier, SHOWN)), uniform)
    _log.info("%s", mixed.summary())
    return mixed


@torch.no_grad()
def layer_harms(network: nn.Module, images: Tensor, layers: Mapping[str, Sequence[int]]) -> Harms:
    """Return the harm of each of a layer's bits, while all else is in floating point.

    It is the distillation loss T² KL(p || q), in nats, with T = ``TEMPERATURE``: p is what the softmax says in floating
    point, q what it says with the weights of this layer quantized, on the mean over the images. The mean error of each
    channel of the layer's output does not count, because biases make up for it once they are corrected or trained. What
    comes before the layer's block is computed once.

    network: a student, traced or not; images: [N, C, H, W]; layers: bits by the path of the layer.
    """
    parts = blocks(network) if isinstance(network, fx.GraphModule) else [network]
    harms = {name: dict.fromkeys(bits, 0.0) for name, bits in layers.items()}
    with in_floating_point(network):
        for batch in images.split(measured_at_once(images.shape[1:])):
            inputs = [batch]
            for part in parts:
                inputs.append(part(inputs[-1]))
            for index, part in enumerate(parts):
                for name, layer in quantized_layers(part):
                    for bits in layers[name]:
                        with _with_means_kept(layer, bits):
                            logits = nn.Sequential(*parts[index:])(inputs[index])
                        harms[name][bits] += len(batch) / len(images) * divergence(inputs[-1], logits)
    return harms


def divergence(logits: Tensor, others: Tensor) -> float:
    """Return the mean of T² KL(softmax(logits / T) || softmax(others / T)), in float64. Both are [N, K]."""
    return float(distillation_loss(others.double(), logits.double(), temperature=TEMPERATURE, reduction="batchmean"))


@contextmanager
def _with_means_kept(layer: Any, bits: int) -> Iterator[None]:
    """Quantize one layer of a network in floating point within the block; its output keeps the mean of each channel."""
    (quantizer,) = layer.parametrizations.weight

    def keep_means(_: nn.Module, inputs: tuple[Tensor], output: Tensor) -> Tensor:
        quantizer.bypassed = True
        error = output - layer.forward(*inputs)  # which calls no hooks
        quantizer.bypassed = False
        dims = (0, 2, 3) if isinstance(layer, nn.Conv2d) else tuple(range(output.ndim - 1))
        return output - error.mean(dims, keepdim=True)

    hook = layer.register_forward_hook(keep_means)
    try:
        with quantized_alone(quantizer, bits):
            yield
    finally:
        hook.remove()


def _with_weight_bits(config: CompressConfig, bits: int) -> Quantization:
    return replace(config.quantization, bits=Bits(f"w{bits}a{config.bits.activations}"))


def _candidates(config: CompressConfig, teacher: Teacher, coverage: Coverage) -> dict[str, Sequence[int]]:
    """Return the bits that each layer may have: one alone where ``first_bits`` or ``last_bits`` holds."""
    _, narrow = quantize_network(teacher.graph, _with_weight_bits(config, 2), image=teacher.image)
    least = {each.name: each.bits for each in narrow.weights}
    return {each.name: (each.bits,) if least[each.name] == each.bits else CANDIDATES for each in coverage.weights}


def _bytes_beside_weights(config: CompressConfig, teacher: Teacher, network: nn.Module, coverage: Coverage) -> int:
    """Return the most bytes that the student's file has beside codes, scales and zero points of weights."""
    for _, quantizer in activation_quantizers(network):
        quantizer.set_range(0.0, 1.0)  # any will do
    layer_bits = {each.name: each.bits for each in coverage.weights}
    quantization = replace(config.quantization, layer_bits=layer_bits)
    content = student_bytes(network, describe(config, teacher, quantization, bits=config.bits, accuracy=None))
    return len(content) + SPARE - sum(weight_bytes(each.shape or (), each.bits) for each in coverage.weights)


def _affordable_images(layers: Mapping[str, Sequence[int]], teacher: Teacher) -> int:
    """Return on how many images harms are measured; half of the network, on average, comes after a layer."""
    passes = sum(map(len, layers.values())) / 2
    return min(IMAGES, max(int(BUDGET / (passes * max(teacher.macs, 1))), FEWEST_IMAGES))


def _uniform(
    bits: int, harms: Sequence[Mapping[int, float]], sizes: Sequence[Mapping[int, int]], beside: int
) -> Choice:
    """Return the choice of the same bits in all layers, but for those that have no choice."""
    own = tuple(bits if bits in harm else next(iter(harm)) for harm in harms)
    size = sum(size[n] for size, n in zip(sizes, own, strict=True))
    return Choice(own, beside + size, sum(harm[n] for harm, n in zip(harms, own, strict=True)))


def _kilobytes(size: int) -> str:
    return f"{size / 1000:.1f} kB"


def _to_dict(choice: Choice) -> dict[str, Any]:
    return {**choice._asdict(), "bits": "".join(map(str, choice.bits))}


def _from_dict(values: Mapping[str, Any]) -> Choice:
    return Choice(tuple(map(int, values["bits"])), int(values["bytes"]), float(values["harm"]))
