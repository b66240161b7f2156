"""The losses of quantization and distillation are pure functions of logits."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch.nn.functional as F
from torch import Tensor

from .forms import REDUCTIONS
from .reconstruction import ReconstructionLoss


def distillation_loss(student: Tensor, teacher: Tensor, *, temperature: float, reduction: str) -> Tensor:
    """Return T² · KL(softmax(teacher / T) ‖ softmax(student / T)), [] (Hinton et al., 2015).

    ``reduction`` "batchmean" averages over the batch. "mean" divides by the number of classes K as well, as GDFQ's
    code does, so that the effective weight of the loss falls with K.
    student, teacher: logits [N, K].  Raises ValueError for any other reduction.
    """
    if reduction not in REDUCTIONS:
        raise ValueError(f"reduction must be one of {', '.join(REDUCTIONS)}, got {reduction!r}")
    log_p = F.log_softmax(student / temperature, dim=1)
    log_q = F.log_softmax(teacher / temperature, dim=1)
    divergence = log_q.exp() * (log_q - log_p)  # [N, K]
    return temperature**2 * REDUCTIONS[reduction](divergence)


def gated_cross_entropy(student: Tensor, teacher: Tensor, labels: Tensor, *, gate: float) -> Tensor:
    """Return the mean cross-entropy of the student, [], in which images that the teacher is not sure of count as 0.

    These are the images to whose label the teacher gives a probability of 1 - ``gate`` or less: there, hard labels
    mislead (Kim et al., SynQ, ICLR 2025). The mean is taken over all N images.
    student, teacher: logits [N, K]; labels: [N], or probabilities [N, K]. With these, exp(-CE) of the teacher stands
    for its probability.
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
    """Return L_c of Algorithm 1, stage 2, [], in GDFQ's form: cross-entropy plus distillation.

    student, teacher: logits [N, K]; labels: [N], or probabilities [N, K].
    ce_gate: the gate of :func:`gated_cross_entropy`; 1 lets all images through.
    temperature, reduction: those of :func:`distillation_loss`, which raises ValueError for a wrong reduction.
    """
    distillation = distillation_loss(student, teacher, temperature=temperature, reduction=reduction)
    if ce_gate < 1:
        cross_entropy = gated_cross_entropy(student, teacher, labels, gate=ce_gate)
    else:
        cross_entropy = F.cross_entropy(student, labels)
    return ce_weight * cross_entropy + kd_weight * distillation


def l1_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Return the mean of |t(x) − s(x)| over batch and classes, []: DFAD's model discrepancy (Fang et al., 2019).

    student, teacher: logits [N, K].
    """
    return F.l1_loss(student, teacher)


def balance_loss(logits: Tensor) -> Tensor:
    """Return Σ_k p̄_k log p̄_k, [], in which p̄ is the mean of softmax(logits) over the batch.

    It is −log K if all classes are equally frequent, and 0 if there is only one. This is the information entropy loss
    of DAFL (Chen et al., 2019). logits: [N, K].
    """
    log_mean = F.log_softmax(logits, dim=1).logsumexp(0) - math.log(len(logits))  # [K]; finite where p̄ underflows
    return (log_mean.exp() * log_mean).sum()


class GeneratorLoss(NamedTuple):
    """The loss that a generator minimizes while a student is distilled, and its three terms without their weights."""

    total: Tensor
    reconstruction: ReconstructionLoss
    adversarial: Tensor
    balance: Tensor

    def detach(self) -> GeneratorLoss:
        """Return the same values without gradients."""
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
    """Return reconstruction_weight · L_r − adversarial_weight · L1(t, s) + balance_weight · Σ p̄ log p̄.

    L1 alone is DFAD's objective (Fang et al., 2019), and L_r alone is that of Table 4. Choi et al. (2020) use all
    three terms. A term of weight 0 is left out of the sum.
    reconstruction: L_r and the teacher's logits on a batch of images; student: its logits [N, K] on the same images.
    """
    adversarial, balance = l1_loss(student, reconstruction.logits), balance_loss(reconstruction.logits)
    terms = (
        (reconstruction_weight, reconstruction.total),
        (-adversarial_weight, adversarial),
        (balance_weight, balance),
    )
    total = sum((weight * term for weight, term in terms if weight), student.new_zeros(()))
    return GeneratorLoss(total, reconstruction, adversarial, balance)
