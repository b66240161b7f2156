"""Integers of a quantized network: the codes of its weights, their packing into bytes, and the form for inference."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from ..errors import InputError
from .fake_quantize import fake_quantize, per_channel
from .quantizers import ActivationQuantizer, WeightQuantizer


@dataclass(frozen=True, eq=False)  # eq=False, because comparing tensors does not give one bool
class IntegerWeight:
    """A weight [out, ...] in integers; its value is (codes − zero_point) · scale, per output channel."""

    codes: Tensor  # uint8 [out, ...]
    scale: Tensor  # float32 [out]
    zero_point: Tensor  # uint8 [out]
    bits: int

    def values(self) -> Tensor:
        """Return the weight in float32, [out, ...]; it equals the fake-quantized weight bit for bit."""
        steps = self.codes.int() - per_channel(self.zero_point.int(), self.codes)
        return steps.float() * per_channel(self.scale, self.codes)

    @classmethod
    def of(cls, layer: nn.Module) -> IntegerWeight:
        """Return the weight of a layer that carries a ``WeightQuantizer``, on the CPU.

        Raises InputError if its codes do not give the fake-quantized weight back bit for bit.
        """
        parametrization: Any = layer.parametrizations
        (quantizer,) = parametrization.weight
        with torch.no_grad():
            fake: Tensor = layer.weight  # type: ignore[assignment]
            scale, zero_point = quantizer.qparams(parametrization.weight.original)
            codes = torch.round(fake / per_channel(scale, fake)) + per_channel(zero_point, fake)
        weight = cls(codes.byte().cpu(), scale.cpu(), zero_point.byte().cpu(), quantizer.bits)
        if not torch.equal(weight.values(), fake.cpu()):
            raise InputError(f"a {type(layer).__name__}'s weight has no exact codes; weights must be finite float32")
        return weight


class FixedQuantizer(nn.Module):
    """An activation quantizer whose range no longer changes: per-tensor asymmetric fake quantization."""

    scale: Tensor  # float32 []
    zero_point: Tensor  # int32 []

    def __init__(self, bits: int) -> None:
        super().__init__()
        self.largest_code = 2**bits - 1
        self.register_buffer("scale", torch.ones(()))
        self.register_buffer("zero_point", torch.zeros((), dtype=torch.int32))

    def extra_repr(self) -> str:
        return f"bits={self.largest_code.bit_length()}, ranges=fixed"

    def forward(self, activation: Tensor) -> Tensor:
        return fake_quantize(activation, self.scale, self.zero_point, self.largest_code)


def pack(codes: Tensor, bits: int) -> Tensor:
    """Pack codes into bytes without gaps, the lowest bit first; return uint8 [⌈numel · bits / 8⌉].

    codes: uint8 of any shape, on the CPU, each below 2**bits.
    """
    each = np.unpackbits(codes.numpy().reshape(-1, 1), axis=1, count=bits, bitorder="little")  # [numel, bits]
    return torch.from_numpy(np.packbits(each, bitorder="little"))


def unpack(packed: Tensor, bits: int, shape: tuple[int, ...]) -> Tensor:
    """Return the codes that :func:`pack` packed, uint8 of ``shape``.

    Raises ValueError if ``packed`` does not have the size for that shape.
    """
    count = int(np.prod(shape))
    if packed.shape != (-(-count * bits // 8),):
        raise ValueError(f"{count} codes of {bits} bits do not fill {packed.numel()} bytes")
    each = np.unpackbits(packed.numpy(), count=count * bits, bitorder="little").reshape(count, bits)
    return torch.from_numpy(np.packbits(each, axis=1, bitorder="little").reshape(shape))


def weight_bytes(shape: Sequence[int], bits: int) -> int:
    """Return the bytes of a weight [out, ...] in a file: packed codes, and scale and zero point of each channel."""
    return -(-math.prod(shape) * bits // 8) + 5 * shape[0]


def quantized_layers(network: nn.Module) -> Iterator[tuple[str, Any]]:
    """Yield the name and the module of each layer whose weight carries a ``WeightQuantizer``."""
    for name, module in network.named_modules():
        if parametrize.is_parametrized(module, "weight"):
            quantizers: Any = module.parametrizations["weight"]
            if isinstance(quantizers[-1], WeightQuantizer):
                yield name, module


def activation_quantizers(network: nn.Module) -> Iterator[tuple[str, ActivationQuantizer]]:
    """Yield the name and the module of each activation quantizer."""
    for name, module in network.named_modules():
        if isinstance(module, ActivationQuantizer):
            yield name, module


def to_inference_form(network: nn.Module) -> None:
    """Replace all quantizers, in place: plain weights and biases and ``FixedQuantizer``s take their places.

    The new weights, biases and quantizers still have to be filled. The network is in eval mode and takes no gradients.
    """
    for _, layer in list(quantized_layers(network)):
        for tensor in list(layer.parametrizations):
            parametrize.remove_parametrizations(layer, tensor, leave_parametrized=False)
    fixed = {quantizer: FixedQuantizer(quantizer.bits) for _, quantizer in activation_quantizers(network)}
    replace_modules(network, fixed)
    network.eval().requires_grad_(False)


def replace_modules(network: nn.Module, replacements: Mapping[Any, nn.Module]) -> None:
    """Put each replacement in the place of its module, under every name that the module has.

    The parts of a module, which a graph may call by themselves, are parts of its replacement, too.
    """
    for name, module in list(network.named_modules(remove_duplicate=False)):
        if module in replacements:
            replacement = replacements[module]
            for part, child in module.named_children():
                if part != "parametrizations" and not hasattr(replacement, part):
                    replacement.add_module(part, child)
            network.set_submodule(name, replacement)
