"""A coverage report lists which parts of a network are quantized, for people and for files."""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Quantized:
    """A weight or an activation that is quantized."""

    name: str  # the path of the layer, or the name of the call in the traced graph
    kind: str  # the type of the layer, or the name of the function, method or module called
    bits: int
    shape: tuple[int, ...] | None = None  # the shape of a weight; None for an activation


@dataclass(frozen=True)
class Gap:
    """A part of a network that is not quantized, and the reason."""

    name: str
    reason: str


@dataclass(frozen=True)
class Coverage:
    """The quantized weights and activations of a network, and the parts of it that stay in floating point."""

    weights: tuple[Quantized, ...]
    activations: tuple[Quantized, ...]
    float_inputs: tuple[Gap, ...] | None  # layers whose input is not quantized; None if the graph is not known
    gaps: tuple[Gap, ...]  # parts that could not be quantized at all

    def summary(self) -> str:
        """Return one line each of counted weights, activations and unquantized inputs, and one line for every gap."""
        inputs = "unknown" if self.float_inputs is None else _count(gap.reason for gap in self.float_inputs)
        lines = [
            f"quantized weights: {_count(f'{each.kind} at {each.bits} bits' for each in self.weights)}",
            f"quantized activations: {_count(f'{each.kind} at {each.bits} bits' for each in self.activations)}",
            f"inputs left unquantized: {inputs}",
        ]
        return "\n".join(lines + [f"not quantized: {gap.name} ({gap.reason})" for gap in self.gaps])

    def mean_bits(self) -> float:
        """Return the bits of a quantized weight on average, over all numbers in the weights."""
        counts = [math.prod(each.shape or ()) for each in self.weights]
        bits = sum(count * each.bits for count, each in zip(counts, self.weights, strict=True))
        return bits / max(sum(counts), 1)

    def to_dict(self) -> dict[str, Any]:
        """Return the same in dicts and tuples, for JSON."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Coverage:
        """Undo :meth:`to_dict`."""
        weights = tuple(Quantized(**{**each, "shape": tuple(each["shape"])}) for each in values["weights"])
        activations = tuple(Quantized(**each) for each in values["activations"])
        inputs = values["float_inputs"]
        gaps = tuple(Gap(**each) for each in values["gaps"])
        return cls(weights, activations, inputs if inputs is None else tuple(Gap(**each) for each in inputs), gaps)


def _count(items: Iterable[str]) -> str:
    return ", ".join(f"{number} {item}" for item, number in Counter(items).items()) or "none"
