"""The Gumbel relaxation of sampling one operation per edge (eq. 4, eq. 7) and its temperature."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ..config.search import RELAXATIONS, TEMPERATURES


def gumbel_noise_like(x: Tensor) -> Tensor:
    """Independent samples of Gumbel(0, 1) in the shape of ``x``."""
    return -torch.empty_like(x).exponential_().log()


def gumbel_softmax(alpha: Tensor, *, temperature: float | Tensor, relaxation: str, hard: bool = False) -> Tensor:
    """Mixture weights m of one edge, drawn from its architecture parameters α [..., F].

    ``temperature`` is positive: a number, or ValueError is raised, or a scalar tensor, whose value is not looked at,
    lest the CPU wait for a GPU.

    ``relaxation`` "paper" is eq. 7 as printed: noise on the probabilities p = softmax(α), so that even
    p = (1, 0, …, 0) wins only e / (e + F − 1) of the draws. "logits" puts it on log p, so that the argmax
    is distributed exactly as p (Jang et al., 2017; Maddison et al., 2017).

    ``hard`` returns one-hot weights in the forward pass and the soft weights' gradient (straight-through).
    """
    if not isinstance(temperature, Tensor) and temperature <= 0:
        raise ValueError(f"temperature must be positive, got {temperature}")
    scores = RELAXATIONS[relaxation](alpha)
    soft = F.softmax((scores + gumbel_noise_like(alpha)) / temperature, dim=-1)
    if not hard:
        return soft
    one_hot = torch.zeros_like(soft).scatter_(-1, soft.argmax(-1, keepdim=True), 1.0)
    return one_hot + (soft - soft.detach()) if soft.requires_grad else one_hot


def temperature_at(epoch: int, epochs: int, *, start: float, end: float, schedule: str) -> float:
    """τ in ``epoch`` (from 0) of ``epochs``: ``start`` in the first one, ``end`` in the last."""
    return TEMPERATURES[schedule](start, end, epoch / max(epochs - 1, 1))
