"""Sizes that everything shares: of an image, and what no size exceeds."""

from __future__ import annotations

from typing import NamedTuple

LARGEST_SIZE = 2**16
"""Of channels of a node and of dimensions of a latent vector: more is a slip of the pen."""


class ImageShape(NamedTuple):
    """Channels, height and width of one image, in pixels."""

    channels: int
    height: int
    width: int
