"""Stage 2 takes its images from a generator that learns on the way, or from pixels that were distilled beforehand."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor, nn

from ..accel.cuda_graphs import Recorded
from ..accel.optimizers import set_learning_rate
from ..config.compress import CompressConfig
from ..errors import InputError
from ..generator.gdfq import GDFQGenerator
from ..generator.latent import LatentSource
from ..generator.searched import Generator
from ..generator.training import (
    Objective,
    Total,
    generator_step,
    images_per_class,
    objective_for,
    reconstruction_total,
    weight_optimizer,
)
from ..losses.reconstruction import ReconstructionLoss, require_finite_weights, zeroq_loss
from ..networks import parameter_count
from ..runs.snapshots import State
from ..teacher.loading import Teacher
from .distilled_images import distil_images
from .generators import configured_generator

Batch = tuple[Tensor, Tensor, ReconstructionLoss]
"""Images [N, C, H, W], labels [N] or probabilities [N, K], and L_r with the teacher's logits; all are detached."""
OnStep = Callable[[], object]


@dataclass
class GeneratorImages:
    """Fresh images in every step, from a generator that each step trains; a low-pass filter may follow it."""

    generator: Generator | GDFQGenerator
    objective: Objective
    source: LatentSource
    optimizer: torch.optim.Optimizer
    sigma: float
    """The filter's standard deviation in pixels; 0 stands for no filter."""
    disturbs = True

    def __post_init__(self) -> None:
        self._total: Total | None = None
        self._next = Recorded(self._step, "the step of the generator", depends_on=lambda: self._total)

    @classmethod
    def start(
        cls,
        config: CompressConfig,
        teacher: Teacher,
        on_step: OnStep = lambda: None,
        state: State | None = None,
        on_ready: OnStep = lambda: None,
    ) -> GeneratorImages:
        """Return the images of the configured generator, at the saved ``state`` if given; ``on_step`` is never called.

        ``on_ready`` is called when the generator is there. Raises InputError if ``mixed_classes`` exceeds the classes.
        """
        if config.mixed_classes > teacher.num_classes:
            raise InputError(
                f"mixed_classes ({config.mixed_classes}) exceeds the teacher's {teacher.num_classes} classes; lower it"
            )
        generator = configured_generator(config, teacher)
        source = LatentSource(
            config.batch_size,
            generator.latent_dim,
            teacher.num_classes,
            config.seed,
            teacher.device,
            config.mixed_share,
            config.mixed_classes,
        )
        objective = objective_for(teacher.observed, config)
        optimizer = weight_optimizer(generator.parameters(), config)
        if state is not None:
            generator.load_state_dict(state["generator"])
            optimizer.load_state_dict(state["optimizer"])
        on_ready()
        return cls(generator, objective, source, optimizer, config.low_pass)

    def images(self, z: Tensor, labels: Tensor) -> Tensor:
        """Return images [N, C, H, W] for latent vectors [N, latent_dim] and labels [N], or probabilities [N, K]."""
        return low_pass(self.generator(z, labels), sigma=self.sigma)

    def state(self) -> State:
        """Return the state that :meth:`start` takes up again."""
        return {"generator": self.generator.state_dict(), "optimizer": self.optimizer.state_dict()}

    def batches(
        self, epoch: int, steps: int, *, learning_rate: float | None, total: Total = reconstruction_total
    ) -> Iterator[Batch]:
        """Yield the epoch's batches, each from before the generator's update on ``total`` at ``learning_rate``.

        If the rate is None, the generator rests. Raises DivergenceError at the end if a weight is no longer finite.
        """
        self.generator.train()
        set_learning_rate(self.optimizer, learning_rate or 0.0)
        self._total = None if learning_rate is None else total
        for z, labels in self.source.batches("compress", epoch, steps):
            images, loss = self._next(z, labels)
            yield images, labels, loss
        require_finite_weights(self.generator, "the generator's")  # the last update has no loss after it

    def _step(self, z: Tensor, labels: Tensor) -> tuple[Tensor, ReconstructionLoss]:
        """Return images and L_r from before an update of the generator on the phase's total; it may rest instead."""
        if self._total is not None:
            return generator_step(self.images, self.objective, self.optimizer, z, labels, total=self._total)
        with torch.no_grad():
            images = self.images(z, labels)  # [N, C, H, W]
            return images, self.objective(images, labels)

    @torch.no_grad()
    def fixed(self, count: int) -> Tensor:
        """Return ``count`` images [count, C, H, W], the same each time as long as the generator rests."""
        self.generator.train()
        batches = self.source.batches("blocks", 0, -(-count // self.source.batch_size))
        return torch.cat([self.images(z, labels) for z, labels in batches])[:count]

    @torch.no_grad()
    def held_out(self, steps: int) -> Iterator[Tensor]:
        """Yield batches [N, C, H, W] that train nothing, of one class each, from the same latent vectors each time."""
        for z, labels in replace(self.source, mixed_share=0.0).batches("agreement", 0, steps):
            yield self.images(z, labels)

    def cost(self) -> tuple[int | None, int | None]:
        """Return the MACs for one image, and the parameters."""
        return self.generator.macs(), parameter_count(self.generator)

    def to_show(self, count: int) -> tuple[Tensor, Tensor]:
        """Return ``count`` images of each of the first classes, [n, C, H, W], and their labels [n]."""
        images, labels = images_per_class(self.generator, replace(self.source, mixed_share=0.0), count=count)
        return low_pass(images, sigma=self.sigma), labels


@dataclass
class FixedImages:
    """Images distilled once from noise; batches are drawn from them with replacement, and some are held out."""

    images: Tensor  # [count, C, H, W]
    labels: Tensor  # [count]
    aside: Tensor  # [n, C, H, W]
    aside_labels: Tensor  # [n]
    objective: Objective
    source: LatentSource  # its labels are the indices of a batch
    disturbs = True

    @classmethod
    def start(
        cls,
        config: CompressConfig,
        teacher: Teacher,
        on_step: OnStep = lambda: None,
        state: State | None = None,
        on_ready: OnStep = lambda: None,
    ) -> FixedImages:
        """Return DFC's images of classes for method ``dfc``; return ZeroQ's, labelled by the teacher, for the others.

        ``state`` holds images that an earlier run distilled. Raises InputError if a method needs BatchNorm2d statistics
        and the teacher has none.
        """
        norms = (m for m in teacher.network.modules() if isinstance(m, nn.BatchNorm2d) and m.running_mean is not None)
        if config.method != "dfc" and next(norms, None) is None:
            raise InputError(f"method {config.method} needs BatchNorm2d statistics to match; use dfc or gdfq")
        on_ready()
        objective = objective_for(teacher.observed, config)
        indices = LatentSource(config.batch_size, 1, config.image_count, config.seed, teacher.device)
        if state is not None:
            images, labels, aside, aside_labels = (state[name].to(teacher.device) for name in _IMAGES)
            return cls(images, labels, aside, aside_labels, objective, indices)
        seeds = map(int, np.random.SeedSequence(config.seed).generate_state(2))
        images, labels = distilled(config, teacher, config.image_count, next(seeds), on_step)
        aside, aside_labels = distilled(config, teacher, held_out_count(config), next(seeds), on_step)
        return cls(images, labels, aside, aside_labels, objective, indices)

    def state(self) -> State:
        """Return the images, for :meth:`start`."""
        return {name: getattr(self, name) for name in _IMAGES}

    @torch.no_grad()
    def batches(
        self, epoch: int, steps: int, *, learning_rate: float | None = None, total: Total = reconstruction_total
    ) -> Iterator[Batch]:
        """Yield the epoch's batches; the pixels have learned before, at their own rate and on their own loss."""
        for _, indices in self.source.batches("compress", epoch, steps):
            images, labels = self.images[indices], self.labels[indices]
            yield images, labels, self.objective(images, labels)

    def held_out(self, steps: int) -> Iterator[Tensor]:
        """Yield batches [N, C, H, W] that train nothing."""
        yield from self.aside.chunk(steps)

    def cost(self) -> tuple[int | None, int | None]:
        """Return None for MACs and parameters, because there is no generator."""
        return None, None

    def to_show(self, count: int) -> tuple[Tensor, Tensor]:
        """Return all held-out images, [n, C, H, W], and labels [n]; a figure shows up to ``count`` of a class."""
        return self.aside, self.aside_labels


_IMAGES = ("images", "labels", "aside", "aside_labels")


def held_out_count(config: CompressConfig) -> int:
    """Return the number of images that are held out to measure agreement."""
    return config.agreement_steps * config.batch_size


def distillation_steps(config: CompressConfig) -> int:
    """Return how often ``FixedImages.start`` calls ``on_step``."""
    if config.method == "dfq":
        return 0
    counts = (config.image_count, held_out_count(config))
    return sum(-(-count // config.batch_size) for count in counts) * config.image_steps


@torch.no_grad()
def distilled(
    config: CompressConfig, teacher: Teacher, count: int, seed: int, on_step: OnStep
) -> tuple[Tensor, Tensor]:
    """Return ``count`` images [count, C, H, W] that depend on ``seed``, with labels [count]."""
    network, objective = teacher.observed, objective_for(teacher.observed, config)

    def loss(images: Tensor, labels: Tensor | None) -> Tensor:
        if labels is None:
            return zeroq_loss(network, images)
        return objective(images, labels).total

    with torch.enable_grad():
        made = distil_images(
            loss,
            teacher.image,
            count=count,
            batch_size=config.batch_size,
            seed=seed,
            num_classes=teacher.num_classes if config.method == "dfc" else None,
            steps=config.image_steps,
            learning_rate=config.image_lr,
            device=teacher.device,
            on_step=on_step,
        )
    images = low_pass(made.images, sigma=config.low_pass)
    if made.labels is not None:
        return images, made.labels
    return images, torch.cat([network(batch).argmax(1) for batch in images.split(config.batch_size)])


def low_pass(images: Tensor, *, sigma: float) -> Tensor:
    """Filter images [N, C, H, W] by a Gaussian of standard deviation ``sigma`` pixels, at least 0.

    This removes noise that no photograph has (SynQ, ICLR 2025). Edges are reflected.
    """
    if sigma == 0:
        return images
    from torchvision.transforms.functional import gaussian_blur  # it takes half a second to import

    largest = 2 * min(images.shape[2:]) - 1
    return gaussian_blur(images, min(2 * math.ceil(3 * sigma) + 1, largest), sigma)
