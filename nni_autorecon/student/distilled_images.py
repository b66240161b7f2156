"""Images without a generator are pixels trained against the frozen teacher, as in ZeroQ and DFC."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.optim.lr_scheduler import ReduceLROnPlateau

from ..losses.reconstruction import require_finite
from ..shapes import ImageShape

LEAST_LEARNING_RATE = 1e-4

ImageLoss = Callable[[Tensor, Tensor | None], Tensor]
"""A loss maps images [N, C, H, W], and labels [N] if there are any, to a scalar."""


class DistilledImages(NamedTuple):
    """Images [count, C, H, W], as the teacher takes them, and labels [count] or None."""

    images: Tensor
    labels: Tensor | None


def distil_images(
    loss: ImageLoss,
    image: ImageShape,
    *,
    count: int,
    batch_size: int,
    seed: int,
    num_classes: int | None = None,
    steps: int = 500,
    learning_rate: float = 0.5,
    patience: int = 100,
    device: torch.device | str = "cpu",
    on_step: Callable[[], object] = lambda: None,
) -> DistilledImages:
    """Return ``count`` images, each batch made from N(0, I) by ``steps`` steps of Adam on ``loss``.

    The teacher in ``loss`` stays as it is. Two methods make images so: ZeroQ (Cai et al., CVPR 2020), without labels,
    and DFC with its statistics and class terms (Haroush et al., "The Knowledge Within", CVPR 2020) in the form of eq.
    1, with uniform labels from ``num_classes``:

        distil_images(lambda images, labels: zeroq_loss(teacher, images), ...)
        distil_images(lambda images, labels: reconstruction_loss(teacher, images, labels, bns_weight=1.0).total, ...)

    The learning rate falls to a tenth, and down to 1e-4, when the loss has not fallen for ``patience`` steps; this and
    the defaults are those of ZeroQ's release. The images depend on the arguments alone (on the lower 32 bits of
    ``seed``), not on torch's global random numbers. Raises ValueError for a count, batch size or number of steps below
    1, and DivergenceError if the loss is NaN.
    """
    if min(count, batch_size, steps) < 1:
        raise ValueError(f"count {count}, batch size {batch_size} and steps {steps} must all be at least 1")
    random = torch.Generator().manual_seed(seed)
    noise = torch.randn(count, *image, generator=random).to(device)  # [count, C, H, W]
    labels = None if num_classes is None else torch.randint(num_classes, (count,), generator=random).to(device)
    trained = []
    for indices in torch.arange(count, device=device).split(batch_size):
        images, batch_labels = noise[indices].requires_grad_(), None if labels is None else labels[indices]
        optimizer = torch.optim.Adam([images], lr=learning_rate)
        scheduler = ReduceLROnPlateau(optimizer, patience=patience, min_lr=LEAST_LEARNING_RATE)
        for _ in range(steps):
            scheduler.step(_step(loss, images, batch_labels, optimizer))
            on_step()
        trained.append(images.detach())
    return DistilledImages(torch.cat(trained), labels)


def _step(loss: ImageLoss, images: Tensor, labels: Tensor | None, optimizer: torch.optim.Optimizer) -> float:
    """Update the images once and return the loss before the update."""
    value = loss(images, labels)
    (images.grad,) = torch.autograd.grad(value, images)  # backward() would leave gradients in the teacher, too
    optimizer.step()
    known = float(value.detach())
    require_finite(known, "the loss of the distilled images")
    return known
