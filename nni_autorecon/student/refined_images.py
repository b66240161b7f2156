"""The images of a generator are refined pixel by pixel, until their statistics are nearer to those of real ones.

A generator that learns for minutes comes less near to them than pixels do that learn for seconds; pixels start nearer
where a generator begins (GENIE, Jeon et al., CVPR 2023, refines latent vectors to the same end).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ..config.common import SCHEDULES
from ..data.images import normalize
from ..losses.batchnorm import record_bn_statistics
from ..losses.reconstruction import bn_statistics_loss, require_finite
from ..teacher.loading import Teacher

BATCH = 32
"""Statistics are those of so many images together."""
PIXEL_RATE = 0.1
"""Adam begins at this learning rate, in standard deviations of pixels; it falls to 0 along a cosine."""


def refined(teacher: Teacher, images: Tensor, *, steps: int, on_step: Callable[[], object] = lambda: None) -> Tensor:
    """Return images [N, C, H, W] after ``steps`` updates of their pixels, which are then of 8 bits, as those of photos.

    They learn to have the statistics that the teacher's BatchNorms remember, compared as normal distributions (form
    ``kl`` of :func:`.bn_statistics_loss`), which has no unit. ``on_step`` is called for each update of a batch.
    Raises InputError if ``steps`` is above 0 and the teacher has no BatchNorm2d, DivergenceError if the loss is NaN.
    """
    low, high = (images.new_tensor(ends).view(-1, 1, 1) for ends in teacher.pixel_range)
    made = [_refined(teacher, batch, steps, low, high, on_step) for batch in images.split(BATCH)]
    return from_pixels(teacher, to_pixels(teacher, torch.cat(made)))


def _refined(
    teacher: Teacher, images: Tensor, steps: int, low: Tensor, high: Tensor, on_step: Callable[[], object]
) -> Tensor:
    pixels = images.clamp(low, high).requires_grad_()
    optimizer = torch.optim.Adam([pixels], PIXEL_RATE, betas=(0.5, 0.9))
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: SCHEDULES["cosine"](step / max(steps, 1)))
    for _ in range(steps):
        with record_bn_statistics(teacher.observed) as statistics:
            teacher.observed(pixels)
        loss = bn_statistics_loss(statistics, form="kl")
        (pixels.grad,) = torch.autograd.grad(loss, pixels)  # backward() would leave gradients in the teacher, too
        optimizer.step()
        schedule.step()
        with torch.no_grad():
            pixels.clamp_(low, high)
        on_step()
    if steps:
        require_finite(float(loss.detach()), "the loss of the refined images")
    return pixels.detach()


def to_pixels(teacher: Teacher, images: Tensor) -> Tensor:
    """Return images [N, C, H, W] as pixels from 0 to 255, uint8 on the CPU."""
    mean, std = (images.new_tensor(values).view(-1, 1, 1) for values in (teacher.mean, teacher.std))
    return ((images * std + mean) * 255).round().clamp(0, 255).byte().cpu()


def from_pixels(teacher: Teacher, pixels: Tensor) -> Tensor:
    """Return pixels [N, C, H, W], uint8, as the teacher takes them, on its device."""
    return normalize(pixels, mean=teacher.mean, std=teacher.std).to(teacher.device)
