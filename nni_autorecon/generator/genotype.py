"""A genotype is one operation per edge; here it is checked, repaired, drawn at random, and stored as JSON."""

from __future__ import annotations

import json
import random
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

from ..errors import InputError, shown
from ..files import SEAL, parse_json, read_text, sealed, unsealed, write_text
from ..shapes import LARGEST_SIZE
from .topology import EDGE_BY_LABEL, EDGES, INTERPOLATIONS, NONE, NORMAL, NUM_BLOCKS, Edge, Node, incoming, outgoing

FORMAT = "nni-autorecon genotype"
VERSION = 1


@dataclass(frozen=True)
class Genotype:
    """The architecture of a generator, one operation for each edge, with the sizes that it was found for.

    Args:
        choices: Operation names by edge label.
        width: The number of channels of each node.
        latent_dim: The number of dimensions of the latent vector z.
        details: Further facts for readers, which JSON can hold.

    Raises:
        InputError: If an edge is unknown or missing, an operation is unknown, or a node is dead.

    Example:
        >>> found = Genotype(uniform_choices("dil_conv_5x5"), width=8)
        >>> Genotype.from_json(found.to_json()) == found
        True
    """

    choices: Mapping[str, str]
    width: int = 64
    latent_dim: int = 100
    details: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_choices(self.choices)
        ordered = {edge.label: self.choices[edge.label] for edge in EDGES}
        object.__setattr__(self, "choices", MappingProxyType(ordered))

    def to_json(self, *, indent: int | None = 2) -> str:
        """Return the genotype and its details as JSON, with a checksum.

        Args:
            indent: The spaces by which each level is indented. None writes a single line.
        """
        document = {"format": FORMAT, "version": VERSION, "width": self.width, "latent_dim": self.latent_dim}
        document |= {**self.details, "edges": dict(self.choices)}
        return json.dumps(sealed(document), indent=indent, allow_nan=False)

    def save(self, path: str | Path) -> None:
        """Write the genotype as JSON.

        Args:
            path: The file, which is replaced if it is there.

        Raises:
            InputError: If it cannot be written.
            MachineError: If the disk is full.
        """
        write_text(Path(path), self.to_json() + "\n")

    def equations(self) -> str:
        """Return a line for each node that edges enter, such as ``B1-N4 = conv_3x3(B1-N2) + identity(B1-N3)``."""
        lines = []
        for node in dict.fromkeys(edge.target for edge in EDGES):
            chosen = {edge.source: self.choices[edge.label] for edge in incoming(node)}
            terms = [f"{name}({source})" for source, name in chosen.items() if name != NONE]
            lines.append(f"{node} = {' + '.join(terms)}")
        return "\n".join(lines)

    @classmethod
    def from_json(cls, text: str, *, source: str = "genotype") -> Genotype:
        """Read and check the JSON of :meth:`to_json`.

        Args:
            text: The JSON.
            source: The name of the text in errors.

        Raises:
            InputError: If it is damaged or no genotype; the error names the edge and the remedy.
        """
        try:
            document = parse_json(text)
        except ValueError as error:
            raise InputError(f"{source} is not JSON ({error}); give one that search or best-genotype wrote") from error
        if not isinstance(document, dict) or document.get("format") != FORMAT:
            raise InputError(
                f'{source} is not a genotype: it lacks "format": "{FORMAT}"; '
                "give one that search or best-genotype wrote"
            )
        if (version := document.get("version")) != VERSION or isinstance(version, bool):
            raise InputError(f"{source} has version {shown(version)}; this release reads version {VERSION}")
        sizes: dict[str, int] = {}
        for name, least in (("width", 1), ("latent_dim", NUM_BLOCKS)):
            value = document.get(name)
            if type(value) is not int or not least <= value <= LARGEST_SIZE:
                fault = f"{name} = {shown(value)} is not a whole number from {least} to {LARGEST_SIZE}"
                raise InputError(f"{source}: {fault}; correct it")
            sizes[name] = value
        edges = document.get("edges")
        if not isinstance(edges, dict):
            raise InputError(f"{source}: edges must map each of the {len(EDGES)} edges to an operation; write it again")
        try:
            check_choices(edges)  # before the checksum, as an error that names the edge helps more
            plain = unsealed(document)
        except InputError as error:
            raise InputError(f"{source}: {error}") from None
        except ValueError as error:
            raise InputError(
                f"{source} is damaged, or edited by hand: {error}; write it again, or take {SEAL} out to keep the edit"
            ) from error
        details = {k: v for k, v in plain.items() if k not in ("format", "version", "edges", *sizes)}
        return cls(edges, **sizes, details=details)

    @classmethod
    def load(cls, path: str | Path) -> Genotype:
        """Read and check a genotype.

        Args:
            path: Its file, or the JSON itself.

        Raises:
            InputError: If it is missing, damaged or no genotype.
        """
        if str(path).startswith("{"):
            return cls.from_json(str(path))
        return cls.from_json(read_text(Path(path), "genotype"), source=f"genotype {path}")


def published_genotype(name: str) -> Genotype:
    """Return a genotype that the paper's authors released. Raises InputError, listing the names, for other names."""
    folder = Path(__file__).parents[1] / "search_spaces" / "published"
    files = {path.stem: path for path in folder.glob("*.json")}
    if name not in files:
        raise InputError(f"no published genotype {name!r}; there are {', '.join(sorted(files))}")
    return Genotype.load(files[name])


def check_choices(choices: Mapping[str, str]) -> None:
    """Raise InputError unless ``choices`` gives every edge one of its operations and leaves no node dead."""
    for label in choices:
        if label not in EDGE_BY_LABEL:
            raise InputError(f"unknown edge {shown(label)}; edges are named like {EDGES[0].label!r}")
    for edge in EDGES:
        allowed = ", ".join(edge.candidates)
        if edge.label not in choices:
            raise InputError(f"edge {edge.label!r} is missing; give it one of {allowed}")
        if (name := choices[edge.label]) not in edge.candidates:
            raise InputError(f"edge {edge.label!r}: unknown operation {shown(name)}; use one of {allowed}")
    for node in dead_nodes(choices):
        edges = _reviving_edges(node, choices)
        labels, allowed = " or ".join(repr(edge.label) for edge in edges), ", ".join(edges[0].candidates[:-1])
        raise InputError(f"node {node} is dead (nothing enters or nothing leaves it); give {labels} one of {allowed}")


def dead_nodes(choices: Mapping[str, str]) -> list[Node]:
    """Return the nodes that no connected edge enters, or that none leaves.

    A connected edge has another operation than ``none``. N5 always has an edge that leaves it, to the next block or to
    the image.
    """
    nodes = (Node(block, index) for block in range(1, NUM_BLOCKS + 1) for index in (2, 3, 4, 5))
    return [node for node in nodes if _reviving_edges(node, choices)]


def repair(
    choices: Mapping[str, str], probabilities: Mapping[str, Mapping[str, float]]
) -> tuple[dict[str, str], list[str]]:
    """Connect each dead node by the most probable operation, other than ``none``, on the edges that could connect it.

    probabilities: the probability of each operation by edge label.
    Returns the repaired choices, and the labels of the edges that were changed.
    """
    repaired, changed = dict(choices), []
    while dead := dead_nodes(repaired):
        options = [
            (probabilities[edge.label][name], edge.label, name)
            for edge in _reviving_edges(dead[0], repaired)
            for name in edge.candidates
            if name != NONE
        ]
        _, label, name = max(options)
        repaired[label] = name
        changed.append(label)
    return repaired, changed


def random_choices(seed: int) -> dict[str, str]:
    """Draw an architecture uniformly from all that have no dead node; architectures that have one are drawn again."""
    generator = random.Random(seed)
    while True:
        choices = {edge.label: generator.choice(edge.candidates) for edge in EDGES}
        if not dead_nodes(choices):
            return choices


def uniform_choices(operation: str) -> dict[str, str]:
    """Return choices with ``operation`` on every normal edge, and nearest-neighbour interpolation on all other edges.

    Raises InputError if it is not an operation of normal edges, or if it leaves nodes dead.
    """
    choices = {edge.label: operation if edge.kind == NORMAL else INTERPOLATIONS[0] for edge in EDGES}
    check_choices(choices)
    return choices


def _reviving_edges(node: Node, choices: Mapping[str, str]) -> tuple[Edge, ...]:
    """Return the edges of which one must be connected to revive ``node``, or () if the node is not dead."""
    for edges in (incoming(node), outgoing(node)):
        if edges and all(choices[edge.label] == NONE for edge in edges):
            return edges
    return ()
