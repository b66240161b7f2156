"""The losses of quantization and distillation, as pure functions of logits."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch.nn.functional as F
from torch import Tensor

from .forms import REDUCTIONS
from .reconstruction import ReconstructionLoss


def distillation_loss(student: Tensor, teacher: Tensor, *, temperature: float, reduction: str) -> Tensor:
    """T² · KL(softmax(teacher / T) ‖ softmax(student / T)) (Hinton et al., 2015). Logits [N, K].

    ``reduction`` "batchmean" averages over the batch. "mean" divides by the class count as well, as GDFQ's
    formula does in practice: its effective weight then falls with K.
    """
    if reduction not in REDUCTIONS:
        raise ValueError(f"reduction must be one of {', '.join(REDUCTIONS)}, got {reduction!r}")
    log_p = F.log_softmax(student / temperature, dim=1)
    log_q = F.log_softmax(teacher / temperature, dim=1)
    divergence = log_q.exp() * (log_q - log_p)  # [N, K]
    return temperature**2 * REDUCTIONS[reduction](divergence)


def gated_cross_entropy(student: Tensor, teacher: Tensor, labels: Tensor, *, gate: float) -> Tensor:
    """Cross-entropy of the student, 0 for images of which the teacher gives their label a probability of
    1 - ``gate`` or less: hard labels mislead where it is not sure (Kim et al., SynQ, ICLR 2025). Mean over all N.

    Logits [N, K]; labels [N], or probabilities [N, K], for which exp(-CE) stands for the teacher's probability.
    """
    sure = (-F.cross_entropy(teacher, labels, reduction="none")).exp()  # [N]
    return (F.cross_entropy(student, labels, reduction="none") * (1 - sure < gate)).mean()


def compression_loss(
    student: Tensor,
    teacher: Tensor,
    labels: Tensor,
    *,
    ce_weight: float,
    kd_weight: float,
    temperature: float,
    reduction: str,
    ce_gate: float = 1.0,
) -> Tensor:
    """L_c of Algorithm 1, stage 2, in GDFQ's form: cross-entropy plus distillation.

    Logits [N, K]; labels [N], or probabilities [N, K]. ``ce_gate``: see :func:`gated_cross_entropy`.
    """
    distillation = distillation_loss(student, teacher, temperature=temperature, reduction=reduction)
    if ce_gate < 1:
        cross_entropy = gated_cross_entropy(student, teacher, labels, gate=ce_gate)
    else:
        cross_entropy = F.cross_entropy(student, labels)
    return ce_weight * cross_entropy + kd_weight * distillation


def l1_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean of |t(x) − s(x)| over batch and classes: DFAD's model discrepancy (Fang et al., 2019). Logits [N, K]."""
    return F.l1_loss(student, teacher)


def balance_loss(logits: Tensor) -> Tensor:
    """Σ_k p̄_k log p̄_k, p̄ being the mean of softmax(logits) over the batch: −log K if all classes are as frequent,
    0 if there is but one (the information entropy loss of DAFL: Chen et al., 2019). Logits [N, K].
    """
    log_mean = F.log_softmax(logits, dim=1).logsumexp(0) - math.log(len(logits))  # [K]; finite where p̄ underflows
    return (log_mean.exp() * log_mean).sum()


class GeneratorLoss(NamedTuple):
    """What a generator minimizes while a student is distilled, and its three terms, unweighted."""

    total: Tensor
    reconstruction: ReconstructionLoss
    adversarial: Tensor
    balance: Tensor

    def detach(self) -> GeneratorLoss:
        """The same without their gradients."""
        total, reconstruction, adversarial, balance = self
        return GeneratorLoss(total.detach(), reconstruction.detach(), adversarial.detach(), balance.detach())


def generator_loss(
    reconstruction: ReconstructionLoss,
    student: Tensor,
    *,
    reconstruction_weight: float,
    adversarial_weight: float,
    balance_weight: float,
) -> GeneratorLoss:
    """reconstruction_weight · L_r − adversarial_weight · L1(t, s) + balance_weight · Σ p̄ log p̄.

    Only L1 is DFAD's objective (Fang et al., 2019), only L_r that of Table 4; Choi et al. (2020) use all three.
    ``student`` are its logits [N, K] on the images whose L_r is given. A term of weight 0 is left out of the sum.
    """
    adversarial, balance = l1_loss(student, reconstruction.logits), balance_loss(reconstruction.logits)
    terms = (
        (reconstruction_weight, reconstruction.total),
        (-adversarial_weight, adversarial),
        (balance_weight, balance),
    )
    total = sum((weight * term for weight, term in terms if weight), student.new_zeros(()))
    return GeneratorLoss(total, reconstruction, adversarial, balance)
