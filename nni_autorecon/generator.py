"""From a latent vector and a label to an image: searched generators and GDFQ's human-designed ones."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .convolution import LEAKY_SLOPE, ConvTerm, activated_conv
from .errors import InputError
from .genotype import Genotype, generator_macs, published_genotype, random_choices, uniform_choices
from .operations import ClassAffine, EdgeShape, Features, Part, embedded, make_operation, node_sum
from .topology import (
    EDGES,
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


GDFQ_WIDTH = 128
LATENT_DIM = 100
GDFQ_EPS = 0.8  # the released code passes 0.8 where BatchNorm2d expects eps; it is part of the baseline


class GDFQGenerator(nn.Module):
    """GDFQ's human-designed generators (Xu et al., 2020), after ACGAN.

    Two upsamplings by nearest neighbour from a quarter of the image, widths ``width`` and ``width`` / 2.
    With ``conditional`` false, the label enters by embedding(y) ⊙ z (their CIFAR generator); with true, by
    class-conditional normalization in all three places (their ImageNet generator).
    Convolutions before a BatchNorm have no bias, which would change no image.
    """

    def __init__(
        self,
        *,
        image: ImageShape,
        num_classes: int,
        width: int = GDFQ_WIDTH,
        latent_dim: int = LATENT_DIM,
        conditional: bool = False,
    ) -> None:
        super().__init__()
        self.image, self.num_classes, self.width, self.latent_dim = image, num_classes, width, latent_dim
        self.embedding = None if conditional else nn.Embedding(num_classes, latent_dim)
        self.sizes = gdfq_sizes(image)
        narrow = max(width // 2, 1)
        height0, width0 = self.sizes[0]
        self.stem = nn.Linear(latent_dim, width * height0 * width0)
        self.norms = nn.ModuleList(
            _GDFQNorm(features, num_classes if conditional else None, eps)
            for features, eps in ((width, 1e-5), (width, GDFQ_EPS), (narrow, GDFQ_EPS))
        )
        self.convs = nn.ModuleList(UpsampledConv(width, out) for out in (width, narrow))
        self.to_rgb = nn.Conv2d(narrow, image.channels, 3, padding=1)
        self.norm_out = nn.BatchNorm2d(image.channels, affine=False)
        self.to(memory_format=torch.channels_last)

    def macs(self) -> int:
        """Multiply-accumulates for one image."""
        return gdfq_macs(width=self.width, image=self.image, latent_dim=self.latent_dim)

    def forward(self, z: Tensor, labels: Tensor) -> Tensor:
        """Images [N, C, H, W] for latent vectors z [N, latent_dim] and labels [N], or probabilities [N, K]."""
        if self.embedding is not None:
            z = embedded(self.embedding, labels) * z
        x = self.stem(z).view(-1, self.width, *self.sizes[0]).contiguous(memory_format=torch.channels_last)
        x = self.norms[0](x, labels)
        for size, conv, norm in zip(self.sizes[1:], self.convs, list(self.norms)[1:], strict=True):
            x = F.leaky_relu_(norm(conv(x, size), labels), LEAKY_SLOPE)  # [N, C, *size]
        return self.norm_out(torch.tanh(image_conv(x, self.to_rgb).contiguous()))


class UpsampledConv(nn.Module):
    """A 3×3 convolution of padding 1, without bias, over x [N, C, h, w] brought to a size by nearest neighbour.

    It is kept as the transposed convolution that it is, too: of kernel [C, out, 3, 3], mirrored. At twice the size both
    steps are one, of fewer than half the multiplications: a pixel that is repeated spreads its 3×3 kernel over 4×4
    pixels.
    """

    def __init__(self, channels: int, out: int) -> None:
        super().__init__()
        plain = nn.Conv2d(channels, out, 3, bias=False).weight.detach()  # [out, C, 3, 3], for its initial values
        self.kernel = nn.Parameter(plain.transpose(0, 1).flip(2, 3).contiguous())

    def forward(self, x: Tensor, size: tuple[int, int]) -> Tensor:
        if size != (2 * x.shape[2], 2 * x.shape[3]):
            return F.conv_transpose2d(F.interpolate(x, size, mode="nearest"), self.kernel, padding=1)
        sums = F.avg_pool2d(self.kernel, 2, stride=1, padding=1, divisor_override=1)  # over 2×2; [C, out, 4, 4]
        return F.conv_transpose2d(x, sums, stride=2, padding=1)


def image_conv(x: Tensor, conv: nn.Conv2d) -> Tensor:
    """The 3×3 convolution of padding 1 that makes images of features [N, C, h, w].

    On a CPU, whose kernels are made for sixteen channels, that to a single one is faster tap by tap: a 1×1 convolution
    to nine, which are added where they belong.
    """
    if x.device.type != "cpu" or conv.out_channels > 1:
        return cast(Tensor, conv(x))
    taps = F.conv2d(x, conv.weight.flip(2, 3).permute(2, 3, 1, 0).reshape(9, -1, 1, 1))  # [N, 9, h, w]
    return F.fold(taps.flatten(2), x.shape[2:], 3, padding=1) + cast(Tensor, conv.bias)


class _GDFQNorm(nn.Module):
    """BatchNorm with one affine map, or one per class."""

    def __init__(self, channels: int, num_classes: int | None, eps: float) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(channels, eps=eps, affine=num_classes is None)
        self.affine = None if num_classes is None else ClassAffine(channels, num_classes)

    def forward(self, x: Tensor, labels: Tensor) -> Tensor:
        if self.affine is None:
            return self.norm(x)
        scale, shift = self.affine(labels)[..., None, None].unbind(1)  # both [N, C, 1, 1]
        return torch.addcmul(shift, self.norm(x), scale)


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
    return max(round(width * scale), 1)


def equal_macs_width(genotype: str, *, image: ImageShape, latent_dim: int) -> int:
    """The width at which GDFQ's generator comes closest to the MACs of the one in file ``genotype``."""
    found = Genotype.load(genotype)
    goal = generator_macs(found.choices, width=found.width, image=image, latent_dim=found.latent_dim)
    too_wide = 2
    while gdfq_macs(width=too_wide, image=image, latent_dim=latent_dim) < goal:
        too_wide *= 2
    widths = range(1, too_wide + 1)
    return min(widths, key=lambda width: abs(gdfq_macs(width=width, image=image, latent_dim=latent_dim) - goal))


def gdfq_macs(*, width: int, image: ImageShape, latent_dim: int) -> int:
    """Multiply-accumulates of GDFQ's generator for one image."""
    (h0, w0), (h1, w1), (h2, w2) = gdfq_sizes(image)
    narrow = max(width // 2, 1)
    convolutions = width * width * h1 * w1 + (width * narrow + narrow * image.channels) * h2 * w2
    return latent_dim * width * h0 * w0 + 9 * convolutions


def gdfq_sizes(image: ImageShape) -> list[tuple[int, int]]:
    """A quarter of the image, half of it, and all: height and width, rounded up."""
    return [(-(-image.height // f), -(-image.width // f)) for f in (4, 2, 1)]


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
