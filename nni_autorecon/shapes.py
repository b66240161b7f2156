"""All sub-packages share the shape of an image and the largest size."""

from __future__ import annotations

from typing import NamedTuple

LARGEST_SIZE = 2**16
"""Nodes have at most so many channels, latent vectors at most so many dimensions; larger numbers are typing errors."""


class ImageShape(NamedTuple):
    """Channels, height and width of one image, in pixels."""

    channels: int
    height: int
    width: int
