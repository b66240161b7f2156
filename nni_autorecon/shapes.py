"""All sub-packages share the shape of an image and the largest size."""

from __future__ import annotations

import math
from typing import NamedTuple

LARGEST_SIZE = 2**16
"""Nodes have at most so many channels, latent vectors at most so many dimensions; larger numbers are typing errors."""


class ImageShape(NamedTuple):
    """Channels, height and width of one image, in pixels."""

    channels: int
    height: int
    width: int


def measured_at_once(image: tuple[int, ...]) -> int:
    """Return how many images of a shape [C, H, W] go through a network at once where nothing depends on their number.

    They are 8 to 256, some million numbers: features of larger batches leave the caches and the memory that the C
    library keeps, which takes three times as long at 224×224 pixels.
    """
    return int(min(max(2**20 // math.prod(image), 8), 256))
