"""The data-free measure of a student: on how many disturbed synthetic images it decides as its teacher does."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from ..shapes import measured_at_once
from ..teacher.loading import Teacher

BUDGET = 2e11
"""One measurement costs so many multiply-accumulates: some ten seconds of a core."""
LEAST = 32
"""Images are measured at least, whatever they cost."""
COPIES = 4
"""An image is disturbed in so many ways."""
SHIFT = 1 / 9
"""Images are shifted by this part of their height and width."""


def images_within_budget(teacher: Teacher, most: int, *, copies: int) -> int:
    """Return on how many images a student is measured: ``most``, or those whose forward passes keep to ``BUDGET``.

    copies: of each image, which both networks see.
    """
    affordable = int(BUDGET / (2 * copies * max(teacher.macs, 1)))
    return min(most, max(affordable, LEAST))


def batches_within_budget(teacher: Teacher, most: int, batch_size: int) -> int:
    """Return on how many batches of images, each disturbed in ``COPIES`` ways, a student is measured: at least 1."""
    return max(images_within_budget(teacher, most * batch_size, copies=COPIES) // batch_size, 1)


class Decisions(NamedTuple):
    """The classes that student and teacher decide for, both [n], on the same images."""

    student: Tensor
    teacher: Tensor

    @property
    def agreement(self) -> float:
        """The fraction of the images on which both decide alike."""
        return (self.student == self.teacher).double().mean().item()

    @property
    def kappa(self) -> float:
        """The agreement beyond chance (Cohen, 1960): 1 if all decisions are alike, 0 if only chance makes some so.

        The teacher's decisions for synthetic images are not of all classes alike. A ruined student that always decides
        for the most frequent one agrees on many images, and has a kappa of 0.
        """
        classes = int(max(self.student.max(), self.teacher.max())) + 1
        own, others = (each.bincount(minlength=classes).double() / len(each) for each in self)
        by_chance = float(own @ others)
        return (self.agreement - by_chance) / (1 - by_chance) if by_chance < 1 else 1.0


@torch.no_grad()
@parametrize.cached()
def decisions(student: nn.Module, teacher: nn.Module, batches: Iterable[Tensor], *, disturbs: bool = True) -> Decisions:
    """Return what both networks decide on disturbed images; they are the batches' own.

    disturbs: False to take the images as they are.
    batches: [N, C, H, W], all of one N. On the images as they are, students agree that are ruined for all others:
    over good and bad students of five teachers, that has less to do with accuracy (docs/results/teachers.md).
    """
    pairs = [
        (student(images).argmax(1), teacher(images).argmax(1))
        for batch in batches
        for copy in (disturbed(batch) if disturbs else (batch,))
        for images in copy.split(measured_at_once(copy.shape[1:]))
    ]
    return Decisions(*(torch.cat(each) for each in zip(*pairs, strict=True)))


def disturbed(images: Tensor) -> tuple[Tensor, ...]:
    """Return four disturbed copies of images [N, C, H, W]: shifted, two joined, two mixed, and noisy.

    The left half of an image is joined to the right half of the next, and two neighbours are mixed in shares from 0 to
    1. The noise has the deviation of the images, and is the same each time.
    """
    height, width = images.shape[2:]
    neighbours = images.roll(1, 0)
    shifted = images.roll((round(height * SHIFT), -round(width * SHIFT)), (2, 3))
    joined = torch.cat([images[..., : width // 2], neighbours[..., width // 2 :]], 3)
    shares = torch.linspace(0, 1, len(images), device=images.device).view(-1, 1, 1, 1)
    noise = torch.randn(images.shape, generator=torch.Generator().manual_seed(0)).to(images.device)
    return shifted, joined, images.lerp(neighbours, shares), images + images.std() * noise
