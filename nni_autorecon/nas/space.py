"""The generator is an NNI model space here: LayerChoice on normal and up edges, InputChoice on cross edges."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

from nni.nas.nn.pytorch import InputChoice, LayerChoice, ModelSpace, MutableModule
from torch import Tensor, nn

from ..generator.operations import EdgeShape, Features, make_candidates
from ..generator.searched import Generator
from ..generator.topology import CANDIDATES, CROSS, EDGE_BY_LABEL, EDGES, Edge
from ..shapes import ImageShape

Sample = dict[str, Any]
"""NNI freezes a space with a sample: an operation name by edge label, or ``[index]`` on cross edges."""


class GeneratorSpace(ModelSpace):
    """The space of all generators (33 edges, about 1.6e20 architectures).

    It is an ordinary NNI model space: any NNI strategy runs on it, and ``freeze(sample)`` returns one generator.
    It is called like a generator: ``space(z, labels)``, with z [N, latent_dim] and labels [N] or [N, num_classes],
    returns images [N, C, H, W].
    """

    def __init__(self, *, image: ImageShape, num_classes: int, width: int, latent_dim: int) -> None:
        super().__init__()
        self.generator = Generator(
            choose_operation, image=ImageShape(*image), num_classes=num_classes, width=width, latent_dim=latent_dim
        )

    def forward(self, z: Tensor, labels: Tensor) -> Tensor:
        return self.generator(z, labels)

    def freeze(self, sample: Sample) -> GeneratorSpace:
        """Return the space with one operation on each edge; its ``generator.choices`` names them."""
        chosen = {id(module): module.freeze(sample) for module in self.mutable_descendants()}
        frozen = copy.deepcopy(self, chosen)  # without the candidates, which NNI would copy three times
        frozen.generator.choices = choices_of(sample)
        return frozen


class CrossChoice(MutableModule):
    """A cross edge, which runs every candidate; an ``InputChoice`` picks one of the outputs."""

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
        """Return the chosen operation alone, so that no unused output is computed."""
        self.validate(sample)
        return copy.deepcopy(self.operations[chosen_operation(self.choice.label, sample)])

    @classmethod
    def create_fixed_module(cls, sample: Sample, operations: dict[str, nn.Module], label: str) -> nn.Module:
        return operations[chosen_operation(label, sample)]


def choose_operation(edge: Edge, shape: EdgeShape) -> nn.Module:
    """Return NNI's choice between all candidates of an edge, labelled with the edge's name."""
    candidates = make_candidates(edge, shape)
    if edge.kind == CROSS:
        return CrossChoice(candidates, edge.label)
    return LayerChoice(candidates, label=edge.label)


def chosen_operation(label: str, sample: Mapping[str, Any]) -> str:
    """Return the name of the operation that an NNI sample chooses on the edge called ``label``."""
    value = sample[label]
    if isinstance(value, str):
        return value
    (index,) = value if isinstance(value, (list, tuple)) else (value,)
    return EDGE_BY_LABEL[label].candidates[index]


def choices_of(sample: Mapping[str, Any]) -> dict[str, str]:
    """Return the operation names of an NNI sample by edge label."""
    return {edge.label: chosen_operation(edge.label, sample) for edge in EDGES}


def sample_of(choices: Mapping[str, str]) -> Sample:
    """Return the NNI sample that freezes a space to ``choices``, operation names by edge label."""
    cross = CANDIDATES[CROSS]
    return {
        edge.label: [cross.index(choices[edge.label])] if edge.kind == CROSS else choices[edge.label] for edge in EDGES
    }
