"""AdaDFQ lets a generator play a game against the student that learns from its images (Qian et al., CVPR 2023)."""

from __future__ import annotations

import math

import torch.nn.functional as F
from torch import Tensor


def disagreement_entropy(student: Tensor, teacher: Tensor, *, temperature: float = 1.0) -> Tensor:
    """Return H(softmax((t - s) / T)) of each image, in nats (Qian et al., AdaDFQ, CVPR 2023).

    It is log K where student and teacher agree, and 0 where they differ most.
    student, teacher: logits [N, K]; the result: [N].
    """
    log_p = F.log_softmax((teacher - student) / temperature, dim=1)  # [N, K]
    return -(log_p.exp() * log_p).sum(1)


def adaptability_loss(
    student: Tensor,
    teacher: Tensor,
    labels: Tensor,
    *,
    low: float = 0.1,
    high: float = 0.8,
    disagreement_weight: float = 0.2,
    agreement_weight: float = 0.1,
) -> Tensor:
    """Return the loss that a generator minimizes against the student that learns from its images (AdaDFQ, CVPR 2023):

        [low - H']₊ + [H' - high]₊ + disagreement_weight · CE(t - s, y) + agreement_weight · CE(t + s, y)

    H' is :func:`disagreement_entropy` divided by log K. (The authors' code scales it from the least entropy of the
    batch to log K instead.) The loss favours images on which the two neither agree nor differ completely.
    student, teacher: logits [N, K]; labels: [N], or probabilities [N, K]; the result: [].
    """
    entropy = disagreement_entropy(student, teacher) / math.log(teacher.shape[1])
    margins = F.relu(low - entropy) + F.relu(entropy - high)  # [N]
    disagreement, agreement = F.cross_entropy(teacher - student, labels), F.cross_entropy(teacher + student, labels)
    return margins.mean() + disagreement_weight * disagreement + agreement_weight * agreement
