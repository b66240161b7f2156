"""From a latent vector and a label to an image: searched generators, and whichever a person names."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from ..accel.convolution import ConvTerm, activated_conv
from ..errors import InputError
from .gdfq import GDFQ_WIDTH, LATENT_DIM, GDFQGenerator, gdfq_macs
from .genotype import Genotype, generator_macs, published_genotype, random_choices, uniform_choices
from .operations import ClassAffine, EdgeShape, Features, Part, make_operation, node_sum
from .topology import (
    EDGES,
    LARGEST_SIZE,
    NUM_BLOCKS,
    Edge,
    ImageShape,
    Node,
    incoming,
    latent_split,
    node_size,
)

EdgeFactory = Callable[[Edge, EdgeShape], nn.Module]
"""Makes what stands on an edge: one operation of a genotype, or NNI's choice between all of them."""


class Generator(nn.Module):
    """The macro-architecture of Figure 2; ``make_edge`` decides what stands on its 33 edges.

    An edge is a module that maps the :class:`Features` of a node and labels [N] to a tensor for its target node, or to
    several parts of its sum.

    Images are standardized per channel by the last BatchNorm, that is, they are already what the teacher
    expects of a normalized input.
    """

    def __init__(
        self, make_edge: EdgeFactory, *, image: ImageShape, num_classes: int, width: int, latent_dim: int
    ) -> None:
        super().__init__()
        self.image, self.num_classes, self.width, self.latent_dim = image, num_classes, width, latent_dim
        self.choices: Mapping[str, str] = {}  # of a genotype; a space has none
        self.latent_split = latent_split(latent_dim)
        block_inputs = [node_size(Node(block, 1), image) for block in range(1, NUM_BLOCKS + 1)]
        self.stems = nn.ModuleList(
            nn.Linear(dim, width * h * w) for dim, (h, w) in zip(self.latent_split, block_inputs, strict=True)
        )
        shapes = {edge: EdgeShape(width, node_size(edge.target, image), num_classes) for edge in EDGES}
        self.edges = nn.ModuleDict({edge.label: make_edge(edge, shape) for edge, shape in shapes.items()})
        self.to_rgb = ToImage(width, image.channels, num_classes)
        self.to(memory_format=torch.channels_last)

    def macs(self) -> int:
        """Multiply-accumulates for one image, of a generator with a genotype."""
        return generator_macs(self.choices, width=self.width, image=self.image, latent_dim=self.latent_dim)

    def forward(self, z: Tensor, labels: Tensor) -> Tensor:
        """Images [N, C, H, W] for latent vectors z [N, latent_dim] and labels [N], or probabilities [N, K]."""
        chunks = z.split(self.latent_split, dim=1)
        nodes: dict[Node, Features] = {}
        for block, (stem, chunk) in enumerate(zip(self.stems, chunks, strict=True), start=1):
            x = stem(chunk).view(-1, self.width, *node_size(Node(block, 1), self.image))  # [N, width, h, w]
            x = x.contiguous(memory_format=torch.channels_last)
            nodes[Node(block, 1)] = Features(x if block == 1 else nodes[Node(block - 1, 5)].x + x)
            for index in (2, 3, 4, 5):
                node = Node(block, index)
                parts: list[Part] = []
                for edge in incoming(node):
                    arriving = self.edges[edge.label](nodes[edge.source], labels)
                    parts += [arriving] if isinstance(arriving, Tensor) else arriving
                nodes[node] = Features(node_sum(parts, node_size(node, self.image)))
        return self.to_rgb(nodes[Node(NUM_BLOCKS, 5)], labels)


class ToImage(nn.Module):
    """Class-conditional normalization, LeakyReLU, 3×3 convolution, tanh, and a normalization without affine map."""

    def __init__(self, width: int, channels: int, num_classes: int) -> None:
        super().__init__()
        self.affine = ClassAffine(width, num_classes)
        self.conv = nn.Conv2d(width, channels, 3, padding=1)

    def forward(self, features: Features, labels: Tensor) -> Tensor:
        x = activated_conv(ConvTerm(features.normalized, self.affine(labels), [self.conv]))
        return Features(torch.tanh(x.contiguous())).normalized  # faster than in channels_last: there are few channels


def derived_generator(
    choices: Mapping[str, str], *, image: ImageShape, num_classes: int, width: int, latent_dim: int
) -> Generator:
    """The generator with the operation that ``choices`` names on each edge, freshly initialized."""

    def make_edge(edge: Edge, shape: EdgeShape) -> nn.Module:
        return make_operation(choices[edge.label], shape)

    generator = Generator(make_edge, image=image, num_classes=num_classes, width=width, latent_dim=latent_dim)
    generator.choices = dict(choices)
    return generator


def generator_from_spec(
    spec: str,
    *,
    image: ImageShape,
    num_classes: int,
    width: int | None = None,
    latent_dim: int | None = None,
    scale: float = 1.0,
    genotype: str | None = None,
) -> Generator | GDFQGenerator:
    """The generator that a person names: ``searched:FILE``, ``published:NAME``, ``random:SEED``, ``all:OPERATION``,
    ``gdfq`` or ``gdfq-conditional``, the last two also with ``@equal-macs``: at the width of equal MACs.

    ``genotype`` is the file that ``searched`` alone and ``@equal-macs`` refer to, and whose width random and all take.
    ``width`` None means the genotype's own (without one 64, GDFQ's 128); ``latent_dim`` None the genotype's, else 100.
    ``scale`` multiplies whatever the width is. Raises InputError for anything else.
    """
    kind, _, argument = spec.partition(":")
    design, at, modifier = spec.partition("@")
    if design in ("gdfq", "gdfq-conditional") and modifier == ("equal-macs" if at else ""):
        if at and width is not None:
            raise InputError(f"generator {spec!r} has the width of equal MACs; leave out --width")
        latent_dim = latent_dim or LATENT_DIM
        if at:
            width = equal_macs_width(_given(genotype, spec), image=image, latent_dim=latent_dim)
        return GDFQGenerator(
            image=image, num_classes=num_classes, width=_scaled(width or GDFQ_WIDTH, scale), latent_dim=latent_dim,
            conditional=design == "gdfq-conditional",
        )  # fmt: skip
    if spec == "searched":
        argument = _given(genotype, spec)
    if kind not in GENOTYPES or not argument:
        forms = "searched[:FILE], published:NAME, random:SEED, all:OPERATION, gdfq[-conditional][@equal-macs]"
        raise InputError(f"generator {spec!r} is not known; use one of {forms}")
    found = GENOTYPES[kind](argument)
    if kind in ("random", "all") and genotype is not None:
        width = width or Genotype.load(genotype).width
    return derived_generator(
        found.choices,
        image=image,
        num_classes=num_classes,
        width=_scaled(width or found.width, scale),
        latent_dim=latent_dim or found.latent_dim,
    )


def _given(genotype: str | None, spec: str) -> str:
    if genotype is None:
        raise InputError(f"generator {spec!r} needs a genotype; give its file with --genotype")
    return genotype


def _scaled(width: int, scale: float) -> int:
    scaled = max(round(width * scale), 1)
    if scaled > LARGEST_SIZE:
        raise InputError(f"generator_scale {scale:g} makes {width} channels more than {LARGEST_SIZE}; lower it")
    return scaled


def equal_macs_width(genotype: str, *, image: ImageShape, latent_dim: int) -> int:
    """The width at which GDFQ's generator comes closest to the MACs of the one in file ``genotype``."""
    found = Genotype.load(genotype)
    goal = generator_macs(found.choices, width=found.width, image=image, latent_dim=found.latent_dim)
    too_wide = 2
    while gdfq_macs(width=too_wide, image=image, latent_dim=latent_dim) < goal:
        too_wide *= 2
    widths = range(1, too_wide + 1)
    return min(widths, key=lambda width: abs(gdfq_macs(width=width, image=image, latent_dim=latent_dim) - goal))


def _random_genotype(seed: str) -> Genotype:
    if not seed.isdecimal():
        raise InputError(f"generator 'random:{seed}': the seed is not a whole number; write random:0")
    return Genotype(random_choices(int(seed)))


GENOTYPES: dict[str, Callable[[str], Genotype]] = {
    "searched": Genotype.load,
    "published": published_genotype,
    "random": _random_genotype,
    "all": lambda operation: Genotype(uniform_choices(operation)),
}
