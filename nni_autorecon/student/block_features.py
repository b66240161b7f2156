"""Features go through a block in parts that keep to the caches, and coins decide from whom each element comes."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.utils import parametrize

from .large_tensors import joined

LARGEST_BATCH, LARGEST_TENSOR = 16, 2**21
"""So many images, or elements of a block's largest tensor, are computed at once on the CPU."""
SHIFTS = 4096
"""Rows of coins differ by where they begin."""
INTEGERS = {2: torch.int16, 4: torch.int32, 8: torch.int64}
"""Integers have so many bytes."""


class Coins:
    """Coins for every element of features. To draw them all anew would take longer than a block's own work.

    Each row is another part of a few more coins than a row has elements. A coin is an integer of all bits or of none:
    ``torch.where`` takes five times as long as operations on bits.

    like: the features of one image, [1, ...].
    """

    def __init__(self, like: Tensor, generator: torch.Generator) -> None:
        self._generator, self._size = generator, like.numel()
        self._last = is_channels_last(like)
        self._shape = (*like.shape[2:], like.shape[1]) if self._last else like.shape[1:]
        coins = torch.rand(self._size + SHIFTS - 1, generator=generator) < 0.5
        self._coins = -coins.to(like.device, INTEGERS[like.element_size()])

    def mix(self, one: Tensor, other: Tensor) -> Tensor:
        """Return features [n, ...] of which each element is that of ``one`` or that of ``other``, by a coin."""
        first = torch.randint(SHIFTS, (len(one),), generator=self._generator).tolist()
        coins = torch.cat([self._coins[k : k + self._size] for k in first]).view(-1, *self._shape)
        coins = coins.permute(0, 3, 1, 2) if self._last else coins
        bits, others = one.view(coins.dtype), other.view(coins.dtype)
        return (bits ^ others).bitwise_and_(coins).bitwise_xor_(others).view(one.dtype)


def picked(features: Tensor, which: Tensor) -> Tensor:
    """Return the rows ``which`` [n] of features [N, ...]. They are copied whole; an index goes element by element."""
    rows = features.permute(0, 2, 3, 1) if (last := is_channels_last(features)) else features
    rows = rows.index_select(0, which.to(rows.device))
    return rows.permute(0, 3, 1, 2) if last else rows


def is_channels_last(features: Tensor) -> bool:
    """Return True for features [N, C, H, W] whose channels are neighbours in memory."""
    return features.ndim == 4 and features.is_contiguous(memory_format=torch.channels_last)


@torch.no_grad()
@parametrize.cached()
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
