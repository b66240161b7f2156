"""What was proposed after GDFQ to make better images and better students: one pure function for each idea."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def disagreement_entropy(student: Tensor, teacher: Tensor, *, temperature: float = 1.0) -> Tensor:
    """H(softmax((t - s) / T)) of each image, in nats: log K where student and teacher agree, 0 where they differ most
    (Qian et al., AdaDFQ, CVPR 2023). Logits [N, K]; returns [N].
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
    """What a generator minimizes against the student that learns from its images (AdaDFQ's game, CVPR 2023):

        [low - H']₊ + [H' - high]₊ + disagreement_weight · CE(t - s, y) + agreement_weight · CE(t + s, y),

    H' being the disagreement's entropy over log K (their code takes it between a batch's least and log K): images on
    which the two neither agree nor differ altogether.
    Logits [N, K]; labels [N], or probabilities [N, K].
    """
    entropy = disagreement_entropy(student, teacher) / math.log(teacher.shape[1])
    margins = F.relu(low - entropy) + F.relu(entropy - high)  # [N]
    disagreement, agreement = F.cross_entropy(teacher - student, labels), F.cross_entropy(teacher + student, labels)
    return margins.mean() + disagreement_weight * disagreement + agreement_weight * agreement


def feature_alignment_loss(student: Sequence[Tensor], teacher: Sequence[Tensor]) -> Tensor:
    """Σ_l mean over images and channels of (a_s - a_t)², a being the mean over pixels of F², of unit length in each
    image: attention transfer (Zagoruyko & Komodakis, 2017) between channels (Li et al., HAST, CVPR 2023). Their
    weights of 1000 to 4000 are for this mean; of a sum over channels it is the C-th part.

    Features [N, C, H, W], or [N, C], of as many places l in both networks.
    """

    def attention(features: Tensor) -> Tensor:
        return F.normalize(features.square().flatten(2).mean(2) if features.ndim > 2 else features.square())  # [N, C]

    gaps = [F.mse_loss(attention(s), attention(t)) for s, t in zip(student, teacher, strict=True)]
    return torch.stack(gaps).sum()


def hard_samples(images: Tensor, loss: Callable[[Tensor], Tensor], *, step: float) -> Tensor:
    """x + step · sign(∇ₓ loss(x)): images a little harder for the student (HAST, CVPR 2023). [N, C, H, W], detached."""
    images = images.detach().requires_grad_()
    (gradient,) = torch.autograd.grad(loss(images), images)
    return images.detach() + step * gradient.sign()


def low_pass(images: Tensor, *, sigma: float) -> Tensor:
    """Images [N, C, H, W] after a Gaussian of standard deviation ``sigma`` pixels, at least 0, against noise that no
    photograph has (SynQ, ICLR 2025). Edges are reflected."""
    if sigma == 0:
        return images
    from torchvision.transforms.functional import gaussian_blur  # half a second, for those who blur

    largest = 2 * min(images.shape[2:]) - 1
    return gaussian_blur(images, min(2 * math.ceil(3 * sigma) + 1, largest), sigma)


def flipping_factor(codes: Tensor, update: Tensor, *, share: float, largest_code: int) -> Tensor:
    """The least factor, at least 1, of ``update`` that turns a ``share`` of the codes over; a scalar.

    ``codes`` are weights in steps of their quantizer before rounding, w / scale + zero point, ``update`` what is added
    to them; both of any one shape. 1 if no factor does it. Choi et al. (AIT, CVPR 2022) raise the gradient step by
    step until as many integer weights flip; with the ranges held fixed the factor is a quantile.
    """
    rounded = codes.round().clamp(0, largest_code)
    up = update > 0
    distance = torch.where(up, rounded + 0.5 - codes, codes - rounded + 0.5)
    distance = distance.masked_fill(torch.where(up, rounded >= largest_code, rounded <= 0), torch.inf)
    factors = torch.where(update == 0, torch.inf, distance / update.abs())
    needed = factors.flatten().kthvalue(max(1, math.ceil(share * factors.numel()))).values
    return torch.where(needed.isfinite(), needed.clamp(min=1.0), 1.0)
