"""A quantized network in integers: the codes of its weights, packed bits, and the form in which it is used."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from ..errors import InputError
from .fake_quantize import fake_quantize, per_channel
from .quantizers import ActivationQuantizer, WeightQuantizer


@dataclass(frozen=True, eq=False)  # eq=False: tensors do not compare to one bool
class IntegerWeight:
    """A weight [out, ...] as (codes − zero point) · scale, per output channel."""

    codes: Tensor  # uint8 [out, ...]
    scale: Tensor  # float32 [out]
    zero_point: Tensor  # uint8 [out]
    bits: int

    def values(self) -> Tensor:
        """The weight in float32: bit for bit what fake quantization gives."""
        steps = self.codes.int() - per_channel(self.zero_point.int(), self.codes)
        return steps.float() * per_channel(self.scale, self.codes)

    @classmethod
    def of(cls, layer: nn.Module) -> IntegerWeight:
        """The weight of a layer that carries a ``WeightQuantizer``, on the CPU.

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
    """An activation quantizer whose range is settled: per-tensor asymmetric fake quantization."""

    scale: Tensor  # float32 []
    zero_point: Tensor  # int32 []

    def __init__(self, bits: int) -> None:
        super().__init__()
        self.largest_code = 2**bits - 1
        self.register_buffer("scale", torch.ones(()))
        self.register_buffer("zero_point", torch.zeros((), dtype=torch.int32))

    def forward(self, activation: Tensor) -> Tensor:
        return fake_quantize(activation, self.scale, self.zero_point, self.largest_code)


def pack(codes: Tensor, bits: int) -> Tensor:
    """Codes (uint8, any shape, below 2**bits) without gaps, lowest bit first: uint8 [⌈numel · bits / 8⌉]."""
    each = np.unpackbits(codes.numpy().reshape(-1, 1), axis=1, count=bits, bitorder="little")  # [numel, bits]
    return torch.from_numpy(np.packbits(each, bitorder="little"))


def unpack(packed: Tensor, bits: int, shape: tuple[int, ...]) -> Tensor:
    """The codes that were packed, uint8 of ``shape``. Raises ValueError if ``packed`` has not the size for them."""
    count = int(np.prod(shape))
    if packed.shape != (-(-count * bits // 8),):
        raise ValueError(f"{count} codes of {bits} bits do not fill {packed.numel()} bytes")
    each = np.unpackbits(packed.numpy(), count=count * bits, bitorder="little").reshape(count, bits)
    return torch.from_numpy(np.packbits(each, axis=1, bitorder="little").reshape(shape))


def quantized_layers(network: nn.Module) -> Iterator[tuple[str, Any]]:
    """The layers whose weight carries a ``WeightQuantizer``, and their names."""
    for name, module in network.named_modules():
        if parametrize.is_parametrized(module, "weight"):
            quantizers: Any = module.parametrizations["weight"]
            if isinstance(quantizers[-1], WeightQuantizer):
                yield name, module


def activation_quantizers(network: nn.Module) -> Iterator[tuple[str, ActivationQuantizer]]:
    """The activation quantizers and their names."""
    for name, module in network.named_modules():
        if isinstance(module, ActivationQuantizer):
            yield name, module


def to_inference_form(network: nn.Module) -> None:
    """Make plain weights and ``FixedQuantizer`` of all quantizers, in place, still to be filled; eval, no gradients."""
    for _, layer in list(quantized_layers(network)):
        parametrize.remove_parametrizations(layer, "weight", leave_parametrized=False)
    fixed = {quantizer: FixedQuantizer(quantizer.bits) for _, quantizer in activation_quantizers(network)}
    replace_modules(network, fixed)
    network.eval().requires_grad_(False)


def replace_modules(network: nn.Module, replacements: Mapping[Any, nn.Module]) -> None:
    """Put each replacement in its module's place, under every name that the module has."""
    for name, module in list(network.named_modules(remove_duplicate=False)):
        if module in replacements:
            network.set_submodule(name, replacements[module])
