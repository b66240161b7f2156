"""Noise that is as smooth as photographs are: images that cost nothing."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from ..config.compress import CompressConfig
from ..runs.snapshots import State
from ..shapes import ImageShape
from ..teacher.loading import Teacher
from .agreement import images_within_budget
from .images import OnStep

STEEPEST = 2.0


def smooth_noise(count: int, image: ImageShape, *, seed: int, least: float = 0.0) -> Tensor:
    """Return images of noise [count, C, H, W] whose amplitudes fall with the spatial frequency f as f^-a.

    Photographs have an a of about 1 (Field, 1987); here it goes from ``least``, 0 for white noise, to ``STEEPEST``
    over the images. Each channel has deviation 1 and a mean of its own, with deviation 0.7, as images have that are
    standardized.
    """
    generator = torch.Generator().manual_seed(seed)
    spectrum = torch.fft.rfft2(torch.randn(count, *image, generator=generator))
    down, right = torch.fft.fftfreq(image.height)[:, None], torch.fft.rfftfreq(image.width)
    frequency = (down.square() + right.square()).sqrt().clamp(min=1 / max(image.height, image.width))
    steepness = torch.linspace(least, STEEPEST, count).view(-1, 1, 1, 1)
    noise = torch.fft.irfft2(spectrum / frequency**steepness, s=(image.height, image.width))
    deviation, mean = torch.std_mean(noise, (2, 3), correction=0, keepdim=True)
    means = 0.7 * torch.randn(count, image.channels, 1, 1, generator=generator)
    return (noise - mean) / deviation.clamp(min=1e-6) + means


def pixel_noise(teacher: Teacher, count: int, *, seed: int) -> Tensor:
    """Return smooth noise [count, C, H, W] on the teacher's device, within the range of the pixels that it takes."""
    return within_pixels(teacher, smooth_noise(count, teacher.image, seed=seed))


def within_pixels(teacher: Teacher, images: Tensor) -> Tensor:
    """Return images [N, C, H, W] on the teacher's device, clamped to the range of the pixels that it takes."""
    low, high = (torch.tensor(ends).view(-1, 1, 1) for ends in teacher.pixel_range)
    return images.clamp(low, high).to(teacher.device)


@dataclass
class NoiseImages:
    """Smooth noise on which a student is only measured, because its method needs no images."""

    aside: Tensor  # [n, C, H, W]
    teacher: Teacher
    batch_size: int
    disturbs = False

    @classmethod
    def start(
        cls,
        config: CompressConfig,
        teacher: Teacher,
        on_step: OnStep = lambda: None,
        state: State | None = None,
        on_ready: OnStep = lambda: None,
    ) -> NoiseImages:
        """Return the images, which depend on the seed alone and are within the range of pixels.

        ``on_step`` is never called.
        """
        on_ready()
        most = config.agreement_steps * config.batch_size
        count = images_within_budget(teacher, most, copies=1)
        noise = pixel_noise(teacher, count, seed=config.seed)
        return cls(noise, teacher, config.batch_size)

    def state(self) -> State:
        """Return nothing, for the images can be made again."""
        return {}

    def held_out(self, steps: int) -> Iterator[Tensor]:
        """Yield batches [N, C, H, W]."""
        yield from self.aside.split(self.batch_size)

    def cost(self) -> tuple[int | None, int | None]:
        """Return None for MACs and parameters, because there is no generator."""
        return None, None

    @torch.no_grad()
    def to_show(self, count: int) -> tuple[Tensor, Tensor]:
        """Return all images, [n, C, H, W], and the teacher's decisions [n]."""
        decisions = [self.teacher.network(batch).argmax(1) for batch in self.aside.split(self.batch_size)]
        return self.aside, torch.cat(decisions)
