"""The generator's macro-architecture (Figure 2) and candidate operations (Table 1) are data here.

There are three blocks of five nodes. Within block b, N1 is upsampled into N2 and N3, and

    N4 = normal(N2) + normal(N3)               + cross edges from N2, N3, N4 of block b-1
    N5 = normal(N2) + normal(N3) + normal(N4)  + cross edges from N2, N3, N4 of block b-1

The next block's N1 is N5 plus a linear map of its share of the latent vector.
Everything that needs to know the graph (the network, the search space, MAC counts, JSON validation,
drawing) reads :data:`EDGES`.
"""

from __future__ import annotations

from typing import NamedTuple

from ..shapes import ImageShape

NUM_BLOCKS = 3
NORMAL = "normal"
UP = "up"
CROSS = "cross"
CONVOLUTIONS: dict[str, tuple[int, int]] = {  # name: (kernel size, dilation)
    "conv_1x1": (1, 1),
    "conv_3x3": (3, 1),
    "conv_5x5": (5, 1),
    "dil_conv_3x3": (3, 2),
    "dil_conv_5x5": (5, 2),
}
INTERPOLATIONS = ("nearest", "bilinear")
NONE = "none"
IDENTITY = "identity"
CANDIDATES: dict[str, tuple[str, ...]] = {
    NORMAL: (*CONVOLUTIONS, IDENTITY, NONE),
    UP: INTERPOLATIONS,
    CROSS: (*INTERPOLATIONS, NONE),
}


class Node(NamedTuple):
    """A feature map: node ``position`` (1 to 5) of block ``block`` (1 to 3)."""

    block: int
    position: int

    def __str__(self) -> str:
        return f"B{self.block}-N{self.position}"


class Edge(NamedTuple):
    """A choice between candidate operations from ``source`` to ``target``."""

    source: Node
    target: Node
    kind: str  # a key of CANDIDATES

    @property
    def label(self) -> str:
        """Return the edge's name in genotypes, in NNI and in logs, such as ``B1-N2 > B1-N4``."""
        return f"{self.source} > {self.target}"

    @property
    def candidates(self) -> tuple[str, ...]:
        return CANDIDATES[self.kind]


def _edges() -> tuple[Edge, ...]:
    edges = []
    for block in range(1, NUM_BLOCKS + 1):

        def edge(source: int, target: int, kind: str, source_block: int = block, block: int = block) -> Edge:
            return Edge(Node(source_block, source), Node(block, target), kind)

        edges += [edge(1, target, UP) for target in (2, 3)]
        edges += [edge(source, target, NORMAL) for target in (4, 5) for source in range(2, target)]
        if block > 1:
            edges += [edge(source, target, CROSS, block - 1) for target in (4, 5) for source in (2, 3, 4)]
    return tuple(edges)


EDGES: tuple[Edge, ...] = _edges()
"""The 33 edges, in the order in which a forward pass needs them."""
EDGE_BY_LABEL: dict[str, Edge] = {edge.label: edge for edge in EDGES}


def incoming(node: Node) -> tuple[Edge, ...]:
    """Return the edges that end in ``node``, in the order of :data:`EDGES`."""
    return tuple(edge for edge in EDGES if edge.target == node)


def outgoing(node: Node) -> tuple[Edge, ...]:
    """Return the edges that start from ``node``, in the order of :data:`EDGES`."""
    return tuple(edge for edge in EDGES if edge.source == node)


def node_size(node: Node, image: ImageShape) -> tuple[int, int]:
    """Return height and width of a node, rounded up.

    B1-N1 has an eighth of the image's height and width, and every block doubles both. N2 to N5 of the last block have
    the image's size exactly.
    """
    factor = 2 ** (NUM_BLOCKS - node.block + (node.position == 1))
    return -(-image.height // factor), -(-image.width // factor)


def latent_split(latent_dim: int) -> tuple[int, ...]:
    """Return how many latent dimensions each block receives; the last one takes the remainder (100 = 33 + 33 + 34)."""
    share = latent_dim // NUM_BLOCKS
    return (*(share,) * (NUM_BLOCKS - 1), latent_dim - share * (NUM_BLOCKS - 1))
