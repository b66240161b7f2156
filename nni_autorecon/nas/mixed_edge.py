"""An edge of the supernet mixes its operations by a Gumbel sample, and tells NNI which of them it chooses."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from typing import Any, cast

import torch
from nni.mutable import Categorical
from nni.nas.nn.pytorch import LayerChoice
from nni.nas.oneshot.pytorch.supermodule.base import BaseSuperNetModule
from nni.nas.oneshot.pytorch.supermodule.differentiable import GumbelSoftmax
from torch import Tensor, nn

from ..accel.convolution import Summand
from ..generator.operations import Features, mixture, sampled_operation
from ..generator.topology import CROSS, EDGE_BY_LABEL, Edge
from .gumbel import gumbel_softmax
from .space import CrossChoice, Sample, chosen_operation


class GumbelSample(GumbelSoftmax):
    """The mixture weights m of an edge from its α, at a temperature that changes in place for recorded steps.

    NNI sets ``tau``, a number, at the start of every epoch.
    """

    temperature: Tensor  # []

    def __init__(self, relaxation: str, *, hard: bool) -> None:
        super().__init__()
        self.relaxation, self.hard = relaxation, hard
        self.register_buffer("temperature", torch.tensor(float(self.tau)), persistent=False)

    def forward(self, alpha: Tensor) -> Tensor:
        """Draw m [F] for α [F]."""
        return gumbel_softmax(alpha, temperature=self.temperature, relaxation=self.relaxation, hard=self.hard)


class MixedEdge(BaseSuperNetModule):
    """An edge of the supernet, eq. 8: the sum of its candidates weighted by a Gumbel sample."""

    def __init__(
        self,
        edge: Edge,
        operations: Mapping[str, nn.Module],
        choice: Categorical,
        alpha: nn.Parameter,
        sample: nn.Module,
    ) -> None:
        super().__init__()
        self.edge = edge
        self.operations = nn.ModuleDict(dict(operations))
        self.alpha = alpha
        self.sample = sample
        self.add_mutable(choice)

    @classmethod
    def mutate(cls, module: nn.Module, name: str, memo: dict[str, Any], mutate_kwargs: dict[str, Any]) -> Any:
        """Replace the space's choices and leave every other module alone; this is NNI's hook."""
        if isinstance(module, CrossChoice):
            choice = module.choice.choice
        elif type(module) is LayerChoice and module.label in EDGE_BY_LABEL:
            choice = module.choice
        else:
            return None
        edge, candidates = EDGE_BY_LABEL[choice.label], cast("dict[str, nn.Module]", module.candidates)
        return cls(edge, candidates, choice, memo[choice.label], mutate_kwargs["softmax"])

    def forward(self, features: Features, labels: Tensor) -> Summand:
        """Return the mixture, [N, C, *size], under newly drawn weights; hard samples run one operation."""
        mix = sampled_operation if self.sample.hard else mixture
        return mix(dict(self.operations.items()), self.sample(self.alpha), features, labels)

    def freeze(self, sample: Sample) -> nn.Module:
        """Return a copy of the operation that ``sample`` chooses, with its weights."""
        self.validate(sample)
        return copy.deepcopy(self.operations[chosen_operation(self.edge.label, sample)])

    def arch_parameters(self) -> Iterator[nn.Parameter]:
        """Yield α [F] of this edge."""
        yield self.alpha

    def resample(self, memo: Sample) -> Sample:
        """Return no sample."""
        return {}  # every forward pass draws its own sample

    def export(self, memo: Sample) -> Sample:
        """Return argmax α by the label of the edge: a list of one index on a cross edge, else a name."""
        index = int(self.alpha.argmax())
        return {self.edge.label: [index] if self.edge.kind == CROSS else self.edge.candidates[index]}

    def export_probs(self, memo: Sample) -> Sample:
        """Return p = softmax(α) by the label of the edge."""
        return {self.edge.label: self.probabilities()}

    def probabilities(self) -> dict[str, float]:
        """Return p = softmax(α) by the name of the operation."""
        return dict(zip(self.edge.candidates, self.alpha.detach().softmax(-1).tolist(), strict=True))
