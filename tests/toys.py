"""Small things that several tests need."""

from __future__ import annotations

from functools import partial

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from nni_autorecon.latent import LatentSource
from nni_autorecon.losses import reconstruction_loss
from nni_autorecon.reconstruction import Objective
from nni_autorecon.topology import ImageShape

IMAGE = ImageShape(2, 9, 11)
CLASSES = 5
GENERATOR = {"image": IMAGE, "num_classes": CLASSES, "width": 3, "latent_dim": 7}


def count_macs(generator: nn.Module) -> int:
    """Multiply-accumulates for one image, as PyTorch counts them while it runs."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        generator(torch.zeros(2, generator.latent_dim), torch.zeros(2, dtype=torch.long))
    return counter.get_total_flops() // 4  # of two images, two operations each


def toy_teacher() -> nn.Module:
    """A frozen network with two BatchNorms for images of shape ``IMAGE``."""
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(IMAGE.channels, 3, 3), nn.BatchNorm2d(3), nn.ReLU(), nn.Conv2d(3, 5, 3), nn.BatchNorm2d(5),
        nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(5, CLASSES),
    )  # fmt: skip
    return network.eval().requires_grad_(False)


def toy_student() -> nn.Module:
    """A smaller network for the same images and classes, freshly initialized."""
    return nn.Sequential(
        nn.Conv2d(IMAGE.channels, 2, 3), nn.BatchNorm2d(2), nn.ReLU(), nn.AdaptiveAvgPool2d(3), nn.Flatten(),
        nn.Linear(18, CLASSES),
    )  # fmt: skip


def toy_objective(teacher: nn.Module | None = None) -> Objective:
    return partial(reconstruction_loss, teacher or toy_teacher(), bns_weight=0.1)


def toy_source(seed: int = 0) -> LatentSource:
    return LatentSource(batch_size=6, latent_dim=7, num_classes=CLASSES, seed=seed)


def snapshot(module: nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in module.state_dict().items()}
