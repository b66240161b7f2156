"""This module has the reconstruction loss of eq. 1, ZeroQ's loss, and the mean of losses over batches."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import DivergenceError, InputError
from .batchnorm import BatchNormStatistics, record_bn_statistics
from .forms import GAPS, deviation_gap


class ReconstructionLoss(NamedTuple):
    """L_r of eq. 1 and its two parts, all scalars, and the teacher's ``logits`` [N, K], which other losses need."""

    total: Tensor
    class_: Tensor
    bns: Tensor
    logits: Tensor

    def detach(self) -> ReconstructionLoss:
        """Return the same values without gradients."""
        return ReconstructionLoss(*(part.detach() for part in self))


def bn_statistics_loss(statistics: Sequence[BatchNormStatistics], *, form: str = "var") -> Tensor:
    """Return L_bns of eq. 1, []: the mean over layers of the mean over channels of a gap in statistics.

    form: a key of ``GAPS``; ``var`` is GDFQ's.  Raises InputError if there are no layers, KeyError for other forms.
    """
    if not statistics:
        raise InputError("the teacher calls no BatchNorm2d with running statistics; set bns_weight to 0")
    gap = GAPS[form](_joined(statistics))
    return gap @ _shares(tuple(len(s.mean) for s in statistics), gap.dtype, gap.device)


def _joined(statistics: Sequence[BatchNormStatistics]) -> BatchNormStatistics:
    """Join the channels of all layers, so that each operation on them runs once and not once per layer."""
    return BatchNormStatistics(*map(torch.cat, zip(*statistics, strict=True)))


@cache
def _shares(channels: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return the weight of each channel in the mean over layers of the means over channels, [ΣC].

    channels: the number of channels of each layer.
    """
    with torch.inference_mode(False):  # the cached tensor is also used outside of inference mode
        shares = [torch.full((count,), 1 / (len(channels) * count), dtype=dtype, device=device) for count in channels]
        return torch.cat(shares)


def reconstruction_loss(
    teacher: nn.Module, images: Tensor, labels: Tensor, *, bns_weight: float, bns_form: str = "var"
) -> ReconstructionLoss:
    """Return the loss of eq. 1: the teacher's cross-entropy on synthetic images, plus ``bns_weight`` times L_bns.

    images: [N, C, H, W]; labels: [N], or probabilities [N, K]; bns_form: the form of :func:`bn_statistics_loss`.
    L_bns is 0 if ``bns_weight`` is 0 and the teacher calls no BatchNorm2d.
    Raises ValueError if the teacher is in training mode, InputError if it calls no BatchNorm2d although ``bns_weight``
    > 0.
    """
    if teacher.training:
        raise ValueError("the teacher is in training mode; call teacher.eval()")
    with record_bn_statistics(teacher) as statistics:
        logits = teacher(images)  # [N, K]
    bns = bn_statistics_loss(statistics, form=bns_form) if statistics or bns_weight else logits.new_zeros(())
    class_ = F.cross_entropy(logits, labels)
    return ReconstructionLoss(class_ + bns_weight * bns, class_, bns, logits)


def statistics_distance(statistics: Sequence[BatchNormStatistics], *, eps: float = 1e-6) -> Tensor:
    """Return ZeroQ's distance, []: the sum over layers of ‖mean - running mean‖² + ‖std - running std‖².

    std is sqrt(var + ``eps``), whose gradient is finite even in a constant channel (Cai et al., 2020).
    """
    return deviation_gap(_joined(statistics), eps=eps).sum()


def zeroq_loss(teacher: nn.Module, images: Tensor) -> Tensor:
    """Return the loss, [], that ZeroQ minimizes over its images (Cai et al., CVPR 2020, section 3.1).

    It is the distance of their BatchNorm statistics from the running ones, plus the distance of the images' own
    statistics from mean 0 and standard deviation 1. Statistics are those of the batch, as in the paper; the authors'
    code compares those of every single image. images: [N, C, H, W].

    Raises ValueError if the teacher is in training mode, InputError if it calls no BatchNorm2d with running statistics.
    """
    if teacher.training:
        raise ValueError("the teacher is in training mode; call teacher.eval()")
    with record_bn_statistics(teacher) as statistics:
        teacher(images)
    if not statistics:
        raise InputError("the teacher calls no BatchNorm2d, so ZeroQ has nothing to match; choose another method")
    var, mean = torch.var_mean(images, dim=(0, 2, 3), correction=0)  # both [C]
    standard = BatchNormStatistics(mean, var, torch.zeros_like(mean), torch.ones_like(var))
    return statistics_distance([standard, *statistics])


class MeanLoss:
    """The mean of L_r and its parts over batches; nothing is read back from the device before :meth:`result`."""

    def __init__(self) -> None:
        self._parts: list[Tensor] = []

    def add(self, loss: ReconstructionLoss) -> None:
        """Add the loss of one batch."""
        self._parts.append(torch.stack([loss.total, loss.class_, loss.bns]).detach())

    def result(self, what: str) -> dict[str, float]:
        """Return the means under the names ``loss``, ``class_loss`` and ``bns_loss``.

        Raises DivergenceError, naming ``what``, if the total is not finite.
        """
        mean = torch.stack(self._parts).mean(0).tolist()
        require_finite(mean[0], what)
        return dict(zip(("loss", "class_loss", "bns_loss"), mean, strict=True))


def require_finite(value: float, what: str) -> None:
    """Raise DivergenceError, naming ``what``, if ``value`` is NaN or infinite."""
    if not math.isfinite(value):
        raise DivergenceError(f"{what} became {value}; lower the learning rate or bns_weight")


def require_finite_weights(network: nn.Module, whose: str) -> None:
    """Raise DivergenceError if weights of ``network`` are NaN or infinite; ``whose`` names the network."""
    norm = nn.utils.get_total_norm(parameter.detach() for parameter in network.parameters())
    require_finite(norm.item(), f"the norm of {whose} weights")
