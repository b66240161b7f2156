"""Sampling one operation per edge is relaxed with Gumbel noise (eq. 4, eq. 7) at a temperature that has a schedule."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ..config.search import RELAXATIONS, TEMPERATURES


def gumbel_noise_like(x: Tensor) -> Tensor:
    """Draw independent samples of Gumbel(0, 1) in the shape of ``x``."""
    return -torch.empty_like(x).exponential_().log()


def gumbel_softmax(alpha: Tensor, *, temperature: float | Tensor, relaxation: str, hard: bool = False) -> Tensor:
    """Draw mixture weights m [..., F] of an edge from its architecture parameters α [..., F].

    ``temperature`` is a positive number, or a positive scalar tensor. A tensor's value is not checked, because the CPU
    would have to wait for the GPU.

    ``relaxation`` "paper" is eq. 7 as printed. It adds the noise to the probabilities p = softmax(α), so that even
    p = (1, 0, …, 0) wins only e / (e + F − 1) of the draws. "logits" adds it to log p, so that the argmax is
    distributed exactly as p (Jang et al., 2017; Maddison et al., 2017).

    ``hard`` returns one-hot weights in the forward pass and passes the gradient of the soft weights (straight-through).

    Raises ValueError if the temperature is a number and not positive, KeyError for other relaxations.
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
    """Return τ in ``epoch``, counted from 0, of ``epochs``: it is ``start`` in the first and ``end`` in the last epoch.

    schedule: a key of ``TEMPERATURES``; "constant" stays at ``start``.
    """
    return TEMPERATURES[schedule](start, end, epoch / max(epochs - 1, 1))
