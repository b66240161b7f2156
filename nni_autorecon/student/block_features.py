"""Features go through a block in parts that keep to the caches, and coins decide from whom each element comes."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx, nn

from .large_tensors import joined

LARGEST_BATCH, LARGEST_TENSOR = 16, 2**21
"""So many images, or elements of a block's largest tensor, are computed at once on the CPU."""
SHIFTS = 4096
"""Rows of coins differ by where they begin."""


class Coins:
    """Coins for every element of features. To draw them all anew would take longer than a block's own work.

    Each row is another part of a few more coins than a row has elements.
    """

    def __init__(self, like: Tensor, generator: torch.Generator) -> None:
        self._generator = generator
        self._last = like.ndim == 4 and like.is_contiguous(memory_format=torch.channels_last)
        self._shape = (*like.shape[2:], like.shape[1]) if self._last else like.shape[1:]
        coins = torch.rand(like.numel() + SHIFTS - 1, generator=generator) < 0.5
        self._rows = coins.to(like.device).unfold(0, like.numel(), 1)  # [SHIFTS, elements of a row]

    def toss(self, count: int) -> Tensor:
        """Return coins [count, ...], True or False, in the shape and in the layout of the features."""
        which = torch.randint(SHIFTS, (count,), generator=self._generator)
        coins = self._rows[which].view(count, *self._shape)
        return coins.permute(0, 3, 1, 2) if self._last else coins


@torch.no_grad()
def outputs(block: nn.Module, inputs: Tensor) -> Tensor:
    """Return what a block makes of ``inputs`` [N, ...], batch by batch."""
    return joined((block(batch) for batch in inputs.split(at_once(block, inputs))), len(inputs))


@torch.no_grad()
def at_once(block: nn.Module, inputs: Tensor) -> int:
    """Return how many of ``inputs`` [N, ...] go through a block together.

    On the CPU, larger tensors would leave the caches and the memory that the C library keeps, and take several times as
    long.
    """
    sizes = _Sizes(block)
    sizes.run(inputs[:1])
    return min(max(LARGEST_TENSOR // sizes.largest, 1), LARGEST_BATCH)


class _Sizes(fx.Interpreter):
    """An interpreter that notes the number of elements of the largest tensor."""

    largest = 1

    def run_node(self, n: fx.Node) -> Any:
        result = super().run_node(n)
        if isinstance(result, Tensor):
            self.largest = max(self.largest, result.numel())
        return result
