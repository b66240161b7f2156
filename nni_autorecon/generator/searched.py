"""Generators of the search space (Figure 2) map a latent vector and a label to an image."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from ..accel.convolution import activated_conv, summed
from ..accel.memory import conv_layout
from ..shapes import ImageShape
from .costs import generator_macs
from .operations import ClassAffine, EdgeShape, Features, make_operation
from .topology import EDGES, NUM_BLOCKS, Edge, Node, incoming, latent_split, node_size

EdgeFactory = Callable[[Edge, EdgeShape], nn.Module]
"""It makes the module on an edge: one operation of a genotype, or NNI's choice between all of them."""


class Generator(nn.Module):
    """The macro-architecture of Figure 2; ``make_edge`` makes the modules on its 33 edges.

    The module on an edge maps the :class:`Features` of a node and labels [N] to its summand at the target node.

    The last BatchNorm standardizes the images per channel, so that they are what the teacher expects: normalized input.
    """

    def __init__(
        self, make_edge: EdgeFactory, *, image: ImageShape, num_classes: int, width: int, latent_dim: int
    ) -> None:
        super().__init__()
        self.image, self.num_classes, self.width, self.latent_dim = image, num_classes, width, latent_dim
        self.choices: Mapping[str, str] = {}  # a genotype sets them; a space has none
        self.latent_split = latent_split(latent_dim)
        block_inputs = [node_size(Node(block, 1), image) for block in range(1, NUM_BLOCKS + 1)]
        self.stems = nn.ModuleList(
            nn.Linear(dim, width * h * w) for dim, (h, w) in zip(self.latent_split, block_inputs, strict=True)
        )
        shapes = {edge: EdgeShape(width, node_size(edge.target, image), num_classes) for edge in EDGES}
        self.edges = nn.ModuleDict({edge.label: make_edge(edge, shape) for edge, shape in shapes.items()})
        self.to_rgb = ToImage(width, image.channels, num_classes)
        self.to(memory_format=conv_layout())

    def macs(self) -> int:
        """Return the multiply-accumulates for one image, of a generator with a genotype."""
        return generator_macs(self.choices, width=self.width, image=self.image, latent_dim=self.latent_dim)

    def forward(self, z: Tensor, labels: Tensor) -> Tensor:
        """Return images [N, C, H, W] for latent vectors z [N, latent_dim] and labels [N], or probabilities [N, K]."""
        chunks = z.split(self.latent_split, dim=1)
        nodes: dict[Node, Features] = {}
        for block, (stem, chunk) in enumerate(zip(self.stems, chunks, strict=True), start=1):
            x = stem(chunk).view(-1, self.width, *node_size(Node(block, 1), self.image))  # [N, width, h, w]
            x = x.contiguous(memory_format=conv_layout())
            nodes[Node(block, 1)] = Features(x if block == 1 else nodes[Node(block - 1, 5)].x + x)
            for index in (2, 3, 4, 5):
                node = Node(block, index)
                nodes[node] = Features(
                    summed(self.edges[edge.label](nodes[edge.source], labels) for edge in incoming(node))
                )
        return self.to_rgb(nodes[Node(NUM_BLOCKS, 5)], labels)


class ToImage(nn.Module):
    """Class-conditional normalization, LeakyReLU, 3×3 convolution, tanh, and a normalization without affine map."""

    def __init__(self, width: int, channels: int, num_classes: int) -> None:
        super().__init__()
        self.affine = ClassAffine(width, num_classes)
        self.conv = nn.Conv2d(width, channels, 3, padding=1)

    def forward(self, features: Features, labels: Tensor) -> Tensor:
        """Return images [N, channels, h, w] for features [N, width, h, w] and labels [N], or probabilities [N, K]."""
        x = summed([activated_conv(features.normalized, self.affine, labels, self.conv)])
        return Features(torch.tanh(x)).normalized


def derived_generator(
    choices: Mapping[str, str], *, image: ImageShape, num_classes: int, width: int, latent_dim: int
) -> Generator:
    """Return a freshly initialized generator that has on each edge the operation that ``choices`` names."""

    def make_edge(edge: Edge, shape: EdgeShape) -> nn.Module:
        return make_operation(choices[edge.label], shape)

    generator = Generator(make_edge, image=image, num_classes=num_classes, width=width, latent_dim=latent_dim)
    generator.choices = dict(choices)
    return generator
