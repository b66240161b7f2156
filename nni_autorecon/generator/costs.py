"""The multiply-accumulates (MACs) of searched and human-designed generators are counted here without running them."""

from __future__ import annotations

from collections.abc import Mapping

from ..shapes import ImageShape
from .genotype import Genotype
from .topology import (
    CONVOLUTIONS,
    EDGES,
    IDENTITY,
    INTERPOLATIONS,
    NONE,
    NUM_BLOCKS,
    Edge,
    Node,
    latent_split,
    node_size,
)


def operation_macs(name: str, edge: Edge, *, width: int, image: ImageShape) -> int:
    """Count the multiply-accumulates of one operation of Table 1 for one image.

    The convolution counts at the size of the edge's target, although :class:`.operations.UpOperation` computes it at
    the size of the source if it repeats pixels last. Norms and interpolation do not count.
    """
    height, width_pixels = node_size(edge.target, image)
    taps = {NONE: 0, IDENTITY: 0, **dict.fromkeys(INTERPOLATIONS, 1)}
    taps |= {conv: kernel**2 for conv, (kernel, _) in CONVOLUTIONS.items()}
    return taps[name] * width**2 * height * width_pixels


def fixed_macs(*, width: int, image: ImageShape, latent_dim: int) -> int:
    """Count the multiply-accumulates outside the edges: the three linear maps of z and the convolution to the image."""
    sizes = [node_size(Node(block, 1), image) for block in range(1, NUM_BLOCKS + 1)]
    stems = sum(dim * width * h * w for dim, (h, w) in zip(latent_split(latent_dim), sizes, strict=True))
    return stems + 9 * width * image.channels * image.height * image.width


def generator_macs(choices: Mapping[str, str], *, width: int, image: ImageShape, latent_dim: int) -> int:
    """Count the multiply-accumulates of the derived generator for one image. choices: operations by edge label."""
    edges = sum(operation_macs(choices[edge.label], edge, width=width, image=image) for edge in EDGES)
    return edges + fixed_macs(width=width, image=image, latent_dim=latent_dim)


def equal_macs_width(genotype: str, *, image: ImageShape, latent_dim: int) -> int:
    """Return the width at which GDFQ's generator comes closest to the MACs of the generator in file ``genotype``.

    image: the shape of both generators' images; latent_dim: that of GDFQ's generator.
    Raises InputError if the file is not a genotype.
    """
    found = Genotype.load(genotype)
    goal = generator_macs(found.choices, width=found.width, image=image, latent_dim=found.latent_dim)
    too_wide = 2
    while gdfq_macs(width=too_wide, image=image, latent_dim=latent_dim) < goal:
        too_wide *= 2
    widths = range(1, too_wide + 1)
    return min(widths, key=lambda width: abs(gdfq_macs(width=width, image=image, latent_dim=latent_dim) - goal))


def gdfq_macs(*, width: int, image: ImageShape, latent_dim: int) -> int:
    """Count the multiply-accumulates of GDFQ's generator for one image."""
    (h0, w0), (h1, w1), (h2, w2) = gdfq_sizes(image)
    narrow = max(width // 2, 1)
    convolutions = width * width * h1 * w1 + (width * narrow + narrow * image.channels) * h2 * w2
    return latent_dim * width * h0 * w0 + 9 * convolutions


def gdfq_sizes(image: ImageShape) -> list[tuple[int, int]]:
    """Return height and width of the generator's three stages: a quarter of the image, half and all, rounded up."""
    return [(-(-image.height // f), -(-image.width // f)) for f in (4, 2, 1)]
