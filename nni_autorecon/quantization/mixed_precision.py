"""Bits are shared out among layers by the harm that few bits do to each (ZeroQ; Cai et al., CVPR 2020, section 3.2).

The harm of a choice of bits is the sum of what its layers do one by one, and so is its size. Choices to which no other
is both as small and as harmless form the Pareto frontier, on which the best choice for any size lies.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

CANDIDATES = (2, 3, 4, 5, 6, 8)
"""A layer's weights have one of these bits."""
MOST_CHOICES = 2000
"""So many choices are kept of the layers so far, for each layer that is added."""


class Choice(NamedTuple):
    """The bits of each layer, in the layers' order, with the bytes that they take and the harm that they do."""

    bits: tuple[int, ...]
    bytes: int
    harm: float
    """The divergence that the bits cause, in nats."""


def pareto_frontier(
    harms: Sequence[Mapping[int, float]], sizes: Sequence[Mapping[int, int]], *, most: int = MOST_CHOICES
) -> list[Choice]:
    """Return the choices of which none is both as small and as harmless as another, from the smallest to the largest.

    Layer after layer, each choice so far is continued by each of the layer's bits, and what is dominated goes, because
    it stays so whatever follows. This is exact while there are at most ``most`` choices. Of more, only the least
    harmful one in each of ``most`` - 1 equal intervals of bytes is kept, and the smallest. Each thinning can cost as
    many bytes as an interval has: the best choice within a size is at least as harmless as any that is smaller by the
    sum of these.

    harms, sizes: for each layer, nats and bytes by bits. Worked example: with harms {2: 3, 4: 1} and {2: 5, 4: 0} in 1
    byte at 2 bits and 2 at 4 there are (2, 2) of 2 bytes, (2, 4) of 3 and (4, 4) of 4; (4, 2) does more harm.
    """
    found = [Choice((), 0, 0.0)]
    for harm, size in zip(harms, sizes, strict=True):
        longer = [Choice((*one.bits, n), one.bytes + size[n], one.harm + harm[n]) for one in found for n in harm]
        found = thinned(_undominated(longer), most)
    return found


def best_within(frontier: Iterable[Choice], size: int) -> Choice | None:
    """Return the least harmful choice of a frontier that takes at most ``size`` bytes; None if none does."""
    return max((one for one in frontier if one.bytes <= size), key=lambda one: one.bytes, default=None)


def thinned(frontier: Sequence[Choice], most: int) -> list[Choice]:
    """Return at most ``most`` choices of a frontier, both ends among them, spread over their bytes. most: 2 or more."""
    if len(frontier) <= most:
        return list(frontier)
    smallest = frontier[0].bytes
    width = (frontier[-1].bytes - smallest) / (most - 1)
    return list({math.ceil((one.bytes - smallest) / width): one for one in frontier}.values())


def _undominated(choices: Iterable[Choice]) -> list[Choice]:
    kept: list[Choice] = []
    for one in sorted(choices, key=lambda one: (one.bytes, one.harm)):
        if not kept or one.harm < kept[-1].harm:
            kept.append(one)
    return kept
