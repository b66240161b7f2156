"""What of a network is quantized and what is not, for people and for files."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Quantized:
    name: str  # of the layer, or of the call in the traced graph
    kind: str  # the layer's type, or the function, method or module called
    bits: int
    shape: tuple[int, ...] | None = None  # of a weight


@dataclass(frozen=True)
class Gap:
    name: str
    reason: str


@dataclass(frozen=True)
class Coverage:
    """What of a network is quantized and what is not."""

    weights: tuple[Quantized, ...]
    activations: tuple[Quantized, ...]
    float_inputs: tuple[Gap, ...] | None  # layers whose input arrives unquantized; None: the graph is unknown
    gaps: tuple[Gap, ...]  # parts that could not be quantized at all

    def summary(self) -> str:
        """A line each for weights, activations and unquantized inputs, counted, and one for every gap."""
        inputs = "unknown" if self.float_inputs is None else _count(gap.reason for gap in self.float_inputs)
        lines = [
            f"quantized weights: {_count(f'{each.kind} at {each.bits} bits' for each in self.weights)}",
            f"quantized activations: {_count(f'{each.kind} at {each.bits} bits' for each in self.activations)}",
            f"inputs left unquantized: {inputs}",
        ]
        return "\n".join(lines + [f"not quantized: {gap.name} ({gap.reason})" for gap in self.gaps])

    def to_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)


def _count(items: Iterable[str]) -> str:
    return ", ".join(f"{number} {item}" for item, number in Counter(items).items()) or "none"
