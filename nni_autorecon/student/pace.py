"""The pace of this machine is measured: the seconds that an image takes in each phase of method blockwise."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor, nn

from ..config.compress import CompressConfig
from ..losses.batchnorm import record_bn_statistics
from ..losses.reconstruction import bn_statistics_loss
from ..quantization.quantizers import ActivationQuantizer, WeightQuantizer
from ..quantization.ranges import minmax_range
from ..shapes import measured_at_once
from ..teacher.loading import Teacher
from .agreement import COPIES, batches_within_budget
from .drawn_images import DrawnImages
from .images import GeneratorImages
from .lengths import Lengths
from .reconstruction import learn_scales

MOST = 32
"""The pace is measured on at most so many images, and on fewer large ones, which would fill the memory."""
FEW_DRAWN = 4
"""The pace of drawing is that of so many images."""
UPDATE = 3
"""An update costs about so many forward passes."""
MEASUREMENTS = 4
"""Agreement is measured about so often: by ranges, after blocks, and of both students at the end."""
ROUNDING_PASSES = 9
"""A block sees all images some so many times while its ranges are tracked, its weights rounded, its errors measured."""


@dataclass(frozen=True)
class Pace:
    """Seconds for an image of an update of the generator, of the image's pixels, and of all blocks of the student.

    Images that are drawn have no generator; ``drawing`` are the seconds of an image of theirs.
    """

    warm_up: float
    refining: float
    learning: float
    drawing: float = 0.0

    @classmethod
    def measure(cls, teacher: Teacher, student: nn.Module, source: GeneratorImages | DrawnImages) -> Pace:
        """Return the pace on this machine. Nothing learns."""
        student = copy.deepcopy(student)
        for module in student.modules():
            if isinstance(module, WeightQuantizer):
                module.estimate = minmax_range  # any range takes as long to learn, and this one is known at once
            if isinstance(module, ActivationQuantizer) and not module.observations:
                module.set_range(-1.0, 1.0)
        learn_scales(student)
        optimizer = torch.optim.Adam(student.parameters(), 0.0)

        def learn(images: Tensor) -> None:
            optimizer.zero_grad()
            loss = student(images).square().mean()
            loss.backward()
            optimizer.step()
            loss.item()  # a GPU is waited for

        def refine(images: Tensor) -> None:
            with record_bn_statistics(teacher.observed) as statistics:
                loss = teacher.observed(images.requires_grad_()).square().mean()
            if statistics:
                loss = loss + bn_statistics_loss(statistics, form="kl")
            (gradient,) = torch.autograd.grad(loss, images)
            gradient.sum().item()

        refining, learning = _seconds(refine, teacher), _seconds(learn, teacher)
        if isinstance(source, GeneratorImages):
            return cls(_seconds_of_warm_up(source), refining, learning)
        started = time.perf_counter()
        source.fixed(FEW_DRAWN)
        return cls(0.0, refining, learning, (time.perf_counter() - started) / FEW_DRAWN)

    def warm_up_epoch(self, config: CompressConfig, lengths: Lengths) -> float:
        """Return the seconds of an epoch in which the generator learns."""
        return self.warm_up * lengths.steps * config.batch_size

    def making(self, lengths: Lengths, *, images: int) -> float:
        """Return the seconds of making so many images, of their updates, and of their L_r."""
        return (self.drawing + self.refining * (lengths.refine_steps + 1 / UPDATE)) * images

    def forward(self, images: int) -> float:
        """Return the seconds of the student's forward passes over so many images."""
        return self.learning / UPDATE * images

    def blocks(self, config: CompressConfig, lengths: Lengths) -> float:
        """Return the seconds of all blocks."""
        learning = self.learning * lengths.block_steps * config.block_batch_size
        return learning + ROUNDING_PASSES * self.forward(lengths.block_images)

    def measuring(self, images: int) -> float:
        """Return the seconds of measuring the agreement on so many images, each disturbed in ``COPIES`` ways."""
        return (self.learning + self.refining) / UPDATE * COPIES * images

    def whole(self, config: CompressConfig, lengths: Lengths, *, held_out: int) -> float:
        """Return the seconds of a run with so many images that are held out, without what measures it on test data."""
        return (
            config.warmup_epochs * self.warm_up_epoch(config, lengths)
            + self.making(lengths, images=lengths.block_images + held_out)
            + config.range_epochs * self.forward(lengths.block_images)
            + self.blocks(config, lengths)
            + MEASUREMENTS * self.measuring(held_out)
        )


def chosen_lengths(
    config: CompressConfig, teacher: Teacher, pace: Pace | None, *, generator_macs: int, spent: float
) -> Lengths:
    """Return the lengths that suit the network, or those that fit into the person's ``minutes``.

    pace: of method ``blockwise``, the only one that has ``minutes``. spent: the seconds of them that are over.
    """
    lengths = Lengths.of(config, macs=teacher.macs, generator_macs=generator_macs)
    if config.minutes is None or pace is None:
        return lengths
    held_out = config.batch_size * batches_within_budget(teacher, config.agreement_steps, config.batch_size)
    return lengths.within(config, 60 * config.minutes - spent, partial(pace.whole, config, held_out=held_out))


def _seconds_of_warm_up(source: GeneratorImages) -> float:
    """Return the seconds of an update of the generator for each of its images: the faster of two."""
    generator = copy.deepcopy(source.generator)
    twin = replace(source, generator=generator, optimizer=torch.optim.Adam(generator.parameters()))
    spent, started = [], time.perf_counter()
    for images, _, _ in twin.batches(0, 2, learning_rate=0.0):
        images.sum().item()  # a GPU is waited for
        spent.append(time.perf_counter() - started)
        started = time.perf_counter()
    return min(spent) / source.source.batch_size


def _seconds(update: Callable[[Tensor], object], teacher: Teacher) -> float:
    """Return the seconds of an update for each of its images: the fastest of three, for the first one is slow."""
    images, spent = few_images(teacher), []
    for _ in range(3):
        started = time.perf_counter()
        update(images.clone())
        spent.append(time.perf_counter() - started)
    return min(spent) / len(images)


def few_images(teacher: Teacher) -> Tensor:
    """Return images [N, C, H, W] to measure the pace on."""
    count = min(measured_at_once(teacher.image), MOST)
    return torch.rand(count, *teacher.image, generator=torch.Generator().manual_seed(0)).to(teacher.device)
