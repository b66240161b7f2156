"""Small things that several tests need."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from nni_autorecon.generator.latent import LatentSource
from nni_autorecon.generator.training import Objective
from nni_autorecon.losses.reconstruction import reconstruction_loss
from nni_autorecon.quantization.quantizers import ActivationQuantizer
from nni_autorecon.shapes import ImageShape

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
        nn.Conv2d(IMAGE.channels, 3, 3),
        nn.BatchNorm2d(3),
        nn.ReLU(),
        nn.Conv2d(3, 5, 3),
        nn.BatchNorm2d(5),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(5, CLASSES),
    )
    return network.eval().requires_grad_(False)


def tied_teacher() -> nn.Module:
    """Two of its layers share a weight."""
    network = nn.Sequential(
        nn.Conv2d(IMAGE.channels, 3, 1),
        nn.BatchNorm2d(3),
        nn.ReLU(),
        nn.Conv2d(3, 3, 3),
        nn.ReLU(),
        nn.Conv2d(3, 3, 3),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(3, CLASSES),
    )
    network[5].weight = network[3].weight
    return network.eval().requires_grad_(False)


def toy_student() -> nn.Module:
    """A smaller network for the same images and classes, freshly initialized."""
    return nn.Sequential(
        nn.Conv2d(IMAGE.channels, 2, 3),
        nn.BatchNorm2d(2),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(3),
        nn.Flatten(),
        nn.Linear(18, CLASSES),
    )


def toy_objective(teacher: nn.Module | None = None) -> Objective:
    return partial(reconstruction_loss, teacher or toy_teacher(), bns_weight=0.1)


def toy_source(seed: int = 0) -> LatentSource:
    return LatentSource(batch_size=6, latent_dim=7, num_classes=CLASSES, seed=seed)


def snapshot(module: nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in module.state_dict().items()}


class Residual(nn.Module):
    """A block of a CIFAR ResNet with functional activations, and a projected shortcut if the width changes."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs)
        self.conv2, self.bn2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs)
        self.shortcut = nn.Identity() if inputs == outputs else nn.Conv2d(inputs, outputs, 1)

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        out += self.shortcut(x)
        return F.relu(out, inplace=True)


class SmallResNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 5, 3, padding=1), nn.BatchNorm2d(5), nn.ReLU(inplace=True))
        self.blocks = nn.Sequential(Residual(5, 5), nn.MaxPool2d(2), Residual(5, 7))
        self.dropout, self.fc = nn.Dropout(), nn.Linear(7, 11)

    def forward(self, x: Tensor, scale: float | None = None) -> Tensor:
        if scale is not None:  # a default that tracing must keep
            x = self.missing(x)
        x = self.blocks(self.stem(x))
        return self.fc(self.dropout(F.adaptive_avg_pool2d(x, 1).flatten(1)))


def quantizers(network: nn.Module) -> list[ActivationQuantizer]:
    return [module for module in network.modules() if isinstance(module, ActivationQuantizer)]


def relative_error(got: Tensor, expected: Tensor) -> float:
    return float((got - expected).detach().norm() / expected.detach().norm())
