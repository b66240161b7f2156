"""The reconstruction loss of eq. 1 and the losses of quantization and distillation, as pure functions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..teacher.batchnorm import BatchNormStatistics, record_bn_statistics


class ReconstructionLoss(NamedTuple):
    """L_r of eq. 1 and its parts, scalars; ``logits`` [N, K] are the teacher's, for losses that need them too."""

    total: Tensor
    class_: Tensor
    bns: Tensor
    logits: Tensor

    def detach(self) -> ReconstructionLoss:
        """The same without their gradients."""
        return ReconstructionLoss(*(part.detach() for part in self))


def variance_gap(s: BatchNormStatistics) -> Tensor:
    """(μ_b - μ_r)² + (σ_b² - σ_r²)² of each channel (Xu et al., 2020, eq. 4); [C]."""
    return (s.mean - s.running_mean).square() + (s.var - s.running_var).square()


def deviation_gap(s: BatchNormStatistics, *, eps: float = 1e-6) -> Tensor:
    """The same with standard deviations sqrt(var + ``eps``), as ZeroQ compares them (Cai et al., 2020)."""
    deviations = (s.var + eps).sqrt() - (s.running_var + eps).sqrt()
    return (s.mean - s.running_mean).square() + deviations.square()


def divergence_gap(s: BatchNormStatistics, *, eps: float = 1e-6) -> Tensor:
    """KL(N(batch) ‖ N(running)), log(σ_r / σ_b) + (σ_b² + (μ_b - μ_r)²) / 2σ_r² - 1/2, of each channel, [C], σ² being
    var + ``eps``: the divergence of two normal distributions, as DFC compares them (Haroush et al., 2020)."""
    var, running_var = s.var + eps, s.running_var + eps
    return ((running_var / var).log() + (var + (s.mean - s.running_mean).square()) / running_var - 1) / 2


GAPS = {"var": variance_gap, "std": deviation_gap, "kl": divergence_gap}
"""What is between the statistics of a batch and those remembered, in each channel."""


def bn_statistics_loss(statistics: Sequence[BatchNormStatistics], *, form: str = "var") -> Tensor:
    """L_bns of eq. 1: mean over layers of the mean over channels of the gap that ``form`` names, one of ``GAPS``;
    ``var`` is GDFQ's.

    Raises ValueError if there are no layers.
    """
    if not statistics:
        raise ValueError("no BatchNorm2d with running statistics was called; set the BNS weight to 0")
    gap = GAPS[form](_joined(statistics))
    return gap @ _shares(tuple(len(s.mean) for s in statistics), gap.dtype, gap.device)


def _joined(statistics: Sequence[BatchNormStatistics]) -> BatchNormStatistics:
    """Of the channels of all layers: what is done with them is done once, not once a layer."""
    return BatchNormStatistics(*map(torch.cat, zip(*statistics, strict=True)))


@cache
def _shares(channels: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Of each channel of layers with so many in the mean over layers of their means, [ΣC]."""
    with torch.inference_mode(False):  # it will be used outside of it, too
        shares = [torch.full((count,), 1 / (len(channels) * count), dtype=dtype, device=device) for count in channels]
        return torch.cat(shares)


def reconstruction_loss(
    teacher: nn.Module, images: Tensor, labels: Tensor, *, bns_weight: float, bns_form: str = "var"
) -> ReconstructionLoss:
    """Eq. 1: cross-entropy of the teacher on its own synthetic images, plus the gap in BatchNorm statistics.

    images: [N, C, H, W]; labels: [N], or probabilities [N, K]; ``bns_form``: of :func:`bn_statistics_loss`.
    L_bns is 0 if ``bns_weight`` is 0 and the teacher calls no BatchNorm2d.
    Raises ValueError if the teacher is in training mode, or calls no BatchNorm2d although ``bns_weight`` > 0.
    """
    if teacher.training:
        raise ValueError("the teacher is in training mode; call teacher.eval()")
    with record_bn_statistics(teacher) as statistics:
        logits = teacher(images)  # [N, K]
    bns = bn_statistics_loss(statistics, form=bns_form) if statistics or bns_weight else logits.new_zeros(())
    class_ = F.cross_entropy(logits, labels)
    return ReconstructionLoss(class_ + bns_weight * bns, class_, bns, logits)


def statistics_distance(statistics: Sequence[BatchNormStatistics], *, eps: float = 1e-6) -> Tensor:
    """ZeroQ's gap in statistics: sum over layers of ‖mean - running mean‖² + ‖std - running std‖² (Cai et al., 2020).

    std is sqrt(var + ``eps``), whose gradient is finite in a constant channel, too.
    """
    return deviation_gap(_joined(statistics), eps=eps).sum()


def zeroq_loss(teacher: nn.Module, images: Tensor) -> Tensor:
    """What ZeroQ minimizes over images [N, C, H, W]: the distance of their BatchNorm statistics from the running ones,
    and of the images' own from mean 0 and standard deviation 1 (Cai et al., CVPR 2020, section 3.1).

    Batch statistics, as in the paper; the release compares those of every single image.
    Raises ValueError if the teacher is in training mode, or calls no BatchNorm2d with running statistics.
    """
    if teacher.training:
        raise ValueError("the teacher is in training mode; call teacher.eval()")
    with record_bn_statistics(teacher) as statistics:
        teacher(images)
    if not statistics:
        raise ValueError("no BatchNorm2d with running statistics was called; ZeroQ has nothing to match")
    var, mean = torch.var_mean(images, dim=(0, 2, 3), correction=0)  # both [C]
    standard = BatchNormStatistics(mean, var, torch.zeros_like(mean), torch.ones_like(var))
    return statistics_distance([standard, *statistics])


def distillation_loss(student: Tensor, teacher: Tensor, *, temperature: float, reduction: str) -> Tensor:
    """T² · KL(softmax(teacher / T) ‖ softmax(student / T)) (Hinton et al., 2015). Logits [N, K].

    ``reduction`` "batchmean" averages over the batch. "mean" divides by the class count as well, as GDFQ's
    formula does in practice: its effective weight then falls with K.
    """
    if reduction not in ("mean", "batchmean"):
        raise ValueError(f"reduction must be mean or batchmean, got {reduction!r}")
    log_p = F.log_softmax(student / temperature, dim=1)
    log_q = F.log_softmax(teacher / temperature, dim=1)
    divergence = log_q.exp() * (log_q - log_p)  # [N, K]
    return temperature**2 * (divergence.mean() if reduction == "mean" else divergence.sum(1).mean())


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
