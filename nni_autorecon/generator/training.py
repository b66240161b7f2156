"""This module trains a generator of fixed architecture on L_r, and measures it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ..accel.cuda_graphs import Recorded
from ..accel.optimizers import adam, clear_gradients, set_learning_rate
from ..config.common import SCHEDULES, Config
from ..config.search import FINAL_VALIDATION_STEPS, SearchConfig
from ..losses.reconstruction import MeanLoss, ReconstructionLoss, reconstruction_loss
from .latent import LatentSource, Stream

Objective = Callable[[Tensor, Tensor], ReconstructionLoss]
"""Eq. 1 for one frozen teacher maps images [N, C, H, W] and labels [N] to L_r and its parts."""
Total = Callable[[Tensor, Tensor, ReconstructionLoss], Tensor]
"""It maps a generator's images, their labels and L_r with its parts to the scalar that the generator minimizes."""


def reconstruction_total(images: Tensor, labels: Tensor, loss: ReconstructionLoss) -> Tensor:
    """Return L_r itself (eq. 1)."""
    return loss.total


def objective_for(network: nn.Module, config: Config) -> Objective:
    """Return eq. 1 for a frozen network in the configured form."""
    return partial(reconstruction_loss, network, bns_weight=config.bns_weight, bns_form=config.bns_form)


def weight_optimizer(parameters: Iterable[nn.Parameter], config: Config) -> torch.optim.Adam:
    """Return Adam for the generator's weights W, with the configured rates."""
    betas = (config.weight_beta1, config.weight_beta2)
    return adam(parameters, config.weight_lr, betas=betas, weight_decay=config.weight_decay)


def generator_step(
    generator: Callable[[Tensor, Tensor], Tensor],
    objective: Objective,
    optimizer: torch.optim.Optimizer,
    z: Tensor,
    labels: Tensor,
    *,
    total: Total = reconstruction_total,
) -> tuple[Tensor, ReconstructionLoss]:
    """Update the generator once on ``total``; return the images and L_r from *before* the update, detached.

    Only the parameters of ``optimizer`` get a gradient.
    """
    images = generator(z, labels)  # [N, C, H, W]
    loss = objective(images, labels)
    clear_gradients(optimizer)
    learning = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    total(images, labels, loss).backward(inputs=learning)
    optimizer.step()
    return images.detach(), loss.detach()


def train_generator(
    generator: nn.Module,
    objective: Objective,
    source: LatentSource,
    config: SearchConfig,
    *,
    stream: Stream,
    steps: int,
    on_step: Callable[[], object] = lambda: None,
) -> None:
    """Train a generator of fixed architecture for ``steps`` updates."""
    generator.train()
    optimizer = weight_optimizer(generator.parameters(), config)
    factor = SCHEDULES[config.weight_schedule]
    update = Recorded(partial(generator_step, generator, objective, optimizer), "the update of the generator")
    for step, (z, labels) in enumerate(source.batches(stream, 0, steps)):
        set_learning_rate(optimizer, config.weight_lr * factor(step / steps))
        update(z, labels)
        on_step()


def evaluate_generator(
    generator: nn.Module,
    objective: Objective,
    source: LatentSource,
    config: SearchConfig,
    *,
    on_step: Callable[[], object] = lambda: None,
) -> dict[str, float]:
    """Train a generator for ``final_steps`` updates and measure L_r, the figure by which architectures are compared."""
    steps = config.final_steps
    train_generator(generator, objective, source, config, stream="final", steps=steps, on_step=on_step)
    return measure_generator(generator, objective, source, stream="final-validation", steps=FINAL_VALIDATION_STEPS)


@torch.no_grad()
def measure_generator(
    generator: nn.Module, objective: Objective, source: LatentSource, *, stream: Stream, steps: int
) -> dict[str, float]:
    """Return the mean L_r and its parts over ``steps`` batches, in training mode: the generator uses batch statistics.

    Raises DivergenceError if the mean is not finite.
    """
    generator.train()
    mean = MeanLoss()
    for z, labels in source.batches(stream, 0, steps):
        mean.add(objective(generator(z, labels), labels))
    return mean.result("validation L_r")


@torch.no_grad()
def images_per_class(
    generator: Any, source: LatentSource, *, count: int, max_classes: int = 10
) -> tuple[Tensor, Tensor]:
    """Return ``count`` images of each of the first classes, [n, C, H, W], and their labels [n], on the CPU.

    Images above 64×64 are fewer, but at least one of each class, because all are made in one batch.
    """
    count = max(1, min(count, count * 64**2 // (generator.image.height * generator.image.width)))
    labels = torch.arange(min(source.num_classes, max_classes)).repeat_interleave(count)
    z, _ = next(replace(source, batch_size=len(labels), on_batch=lambda: None).batches("figure", 0, 1))
    return generator(z, labels.to(z.device)).cpu(), labels
