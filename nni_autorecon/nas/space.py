"""The generator as an NNI model space: LayerChoice on normal and up edges, InputChoice on cross edges."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any, cast

from nni.nas.nn.pytorch import InputChoice, LayerChoice, ModelSpace, MutableModule
from torch import Tensor, nn

from ..generator.operations import EdgeShape, Features, make_candidates
from ..generator.searched import Generator
from ..generator.topology import CANDIDATES, CROSS, EDGE_BY_LABEL, EDGES, Edge
from ..shapes import ImageShape

Sample = dict[str, Any]
"""What NNI freezes a space with: an operation name by edge label, or ``[index]`` on cross edges."""


class GeneratorSpace(ModelSpace):
    """All generators of the search space (33 edges, about 1.6e20 architectures).

    An ordinary NNI model space: any NNI strategy runs on it, and ``freeze(sample)`` gives one generator.
    Call it as the generator itself: ``space(z, labels)``.
    """

    def __init__(self, *, image: ImageShape, num_classes: int, width: int, latent_dim: int) -> None:
        super().__init__()
        self.generator = Generator(
            choose_operation, image=ImageShape(*image), num_classes=num_classes, width=width, latent_dim=latent_dim
        )

    def forward(self, z: Tensor, labels: Tensor) -> Tensor:
        return self.generator(z, labels)

    def freeze(self, sample: Sample) -> GeneratorSpace:
        """The space with one operation on each edge; its ``generator`` knows its genotype."""
        frozen = cast(GeneratorSpace, super().freeze(sample))
        frozen.generator.choices = choices_of(sample)
        return frozen


class CrossChoice(MutableModule):
    """A cross edge: runs every interpolation and lets an ``InputChoice`` pick one output (or none of them)."""

    def __init__(self, operations: dict[str, nn.Module], label: str) -> None:
        super().__init__()
        self.operations = nn.ModuleDict(operations)
        self.choice = InputChoice(len(operations), n_chosen=1, reduction="sum", label=label)

    @property
    def candidates(self) -> dict[str, nn.Module]:
        return dict(self.operations.items())

    def forward(self, features: Features, labels: Tensor) -> Tensor:
        return self.choice([operation(features, labels) for operation in self.operations.values()])

    def freeze(self, sample: Sample) -> nn.Module:
        """The chosen operation alone, without the outputs that nobody uses."""
        self.validate(sample)
        return copy.deepcopy(self.operations[chosen_operation(self.choice.label, sample)])

    @classmethod
    def create_fixed_module(cls, sample: Sample, operations: dict[str, nn.Module], label: str) -> nn.Module:
        return operations[chosen_operation(label, sample)]


def choose_operation(edge: Edge, shape: EdgeShape) -> nn.Module:
    """NNI's choice between all candidates of an edge, labelled with the edge's name."""
    candidates = make_candidates(edge, shape)
    if edge.kind == CROSS:
        return CrossChoice(candidates, edge.label)
    return LayerChoice(candidates, label=edge.label)


def chosen_operation(label: str, sample: Mapping[str, Any]) -> str:
    """The operation that an NNI sample names on the edge called ``label``."""
    value = sample[label]
    if isinstance(value, str):
        return value
    (index,) = value if isinstance(value, (list, tuple)) else (value,)
    return EDGE_BY_LABEL[label].candidates[index]


def choices_of(sample: Mapping[str, Any]) -> dict[str, str]:
    """Operation names by edge label, from an NNI sample."""
    return {edge.label: chosen_operation(edge.label, sample) for edge in EDGES}


def sample_of(choices: Mapping[str, str]) -> Sample:
    """The NNI sample that freezes a space to ``choices``."""
    cross = CANDIDATES[CROSS]
    return {
        edge.label: [cross.index(choices[edge.label])] if edge.kind == CROSS else choices[edge.label] for edge in EDGES
    }
