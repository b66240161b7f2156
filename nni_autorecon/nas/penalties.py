"""Beside L_r, α minimizes the expected MACs of a generator, and the indecision of its edges."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cached_property

import torch
from torch import Tensor

from ..generator.costs import fixed_macs, operation_macs
from ..generator.topology import Edge
from ..shapes import ImageShape


def confidence(alphas: Sequence[Tensor]) -> float:
    """Return the mean over the edges of max_j p_j, from 1/F (undecided) to 1 (decided). alphas: [F] for each edge."""
    return torch.stack([alpha.detach().softmax(-1).max() for alpha in alphas]).mean().item()


def indecision(alphas: Sequence[Tensor]) -> Tensor:
    """Return the mean over the edges of H(p) / log F, [], from 1 (undecided) to 0; differentiable in α.

    alphas: [F] for each edge.
    """
    logs = [alpha.log_softmax(-1) for alpha in alphas]
    return torch.stack([-(log_p.exp() @ log_p) / math.log(len(log_p)) for log_p in logs]).mean()


class ExpectedMacs:
    """Expected MACs of a generator whose edges are drawn independently: Σ p · MACs, and what every generator has."""

    def __init__(self, edges: Sequence[Edge], *, width: int, image: ImageShape, latent_dim: int) -> None:
        self.fixed = float(fixed_macs(width=width, image=image, latent_dim=latent_dim))
        with torch.inference_mode(False):  # validation may be the first to ask for these tensors, in inference mode
            self.by_edge = [
                torch.tensor([float(operation_macs(name, edge, width=width, image=image)) for name in edge.candidates])
                for edge in edges
            ]

    def __call__(self, alphas: Sequence[Tensor]) -> Tensor:
        """Return the expected MACs, [], by p = softmax(α), differentiable in α. alphas: [F] for each edge."""
        self.by_edge = [macs.to(alpha.device) for macs, alpha in zip(self.by_edge, alphas, strict=True)]
        expected = [alpha.softmax(-1) @ macs for alpha, macs in zip(alphas, self.by_edge, strict=True)]
        return torch.stack(expected).sum() + self.fixed

    @cached_property
    def uniform(self) -> float:
        """The expected MACs if every operation is equally likely, which is the unit of the penalty."""
        return self([torch.zeros_like(macs) for macs in self.by_edge]).item()
