"""The library is measured against this: GDFQ's recipe written down plainly."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nni_autorecon.quantization.insertion import quantize_network
from nni_autorecon.quantization.quantizers import ActivationQuantizer
from nni_autorecon.quantization.specification import Quantization
from nni_autorecon.shapes import ImageShape


class PlainGenerator(nn.Module):
    """GDFQ's CIFAR generator, layer by layer (Xu et al., 2020)."""

    def __init__(self, image: ImageShape, num_classes: int, width: int = 128, latent_dim: int = 100) -> None:
        super().__init__()
        self.width, self.size, narrow = width, image.height // 4, width // 2
        self.embedding = nn.Embedding(num_classes, latent_dim)
        self.linear = nn.Linear(latent_dim, width * self.size**2)
        self.norm = nn.BatchNorm2d(width)
        self.middle = nn.Sequential(
            nn.Conv2d(width, width, 3, padding=1), nn.BatchNorm2d(width, 0.8), nn.LeakyReLU(0.2, inplace=True)
        )
        self.end = nn.Sequential(
            nn.Conv2d(width, narrow, 3, padding=1),
            nn.BatchNorm2d(narrow, 0.8),
            nn.LeakyReLU(0.2, inplace=True),
            nn.Conv2d(narrow, image.channels, 3, padding=1),
            nn.Tanh(),
            nn.BatchNorm2d(image.channels, affine=False),
        )

    def forward(self, z: Tensor, labels: Tensor) -> Tensor:
        x = self.linear(self.embedding(labels) * z).view(-1, self.width, self.size, self.size)
        x = self.middle(F.interpolate(self.norm(x), scale_factor=2))
        return self.end(F.interpolate(x, scale_factor=2))


class RoundAndClamp(torch.autograd.Function):
    """Asymmetric quantization by an expression, with the gradient passed as it is."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, low: Tensor, high: Tensor, levels: int) -> Tensor:
        scale = levels / torch.clamp(high - low, min=1e-8)
        codes = torch.clamp(torch.round(scale * (x - low)), 0, levels)
        return codes / scale + low

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        return gradient, None, None, None


class PlainActivation(nn.Module):
    def __init__(self, bits: int) -> None:
        super().__init__()
        self.levels = 2**bits - 1
        self.register_buffer("low", torch.zeros(1))
        self.register_buffer("high", torch.ones(1))

    def forward(self, x: Tensor) -> Tensor:
        return RoundAndClamp.apply(x, self.low, self.high, self.levels)


class PlainWeight(nn.Module):
    def __init__(self, bits: int) -> None:
        super().__init__()
        self.levels = 2**bits - 1

    def forward(self, weight: Tensor) -> Tensor:
        rows = weight.detach().reshape(len(weight), -1)
        shape = (-1, *[1] * (weight.ndim - 1))
        return RoundAndClamp.apply(weight, rows.min(1).values.view(shape), rows.max(1).values.view(shape), self.levels)


def plain_student(network: nn.Module, bits: int) -> nn.Module:
    """The network quantized in the same places as the library's, with settled ranges, by plain quantizers."""
    student, _ = quantize_network(network, Quantization(f"w{bits}a{bits}"))
    for path, module in list(student.named_modules()):
        if isinstance(module, ActivationQuantizer):
            student.set_submodule(path, PlainActivation(bits))
        elif nn.utils.parametrize.is_parametrized(module, "weight"):
            module.parametrizations.weight[0] = PlainWeight(bits)
    return student


def plain_iteration(
    teacher: nn.Module, image: ImageShape, num_classes: int, *, batch_size: int, bits: int, width: int = 128
) -> Callable[[], None]:
    """One iteration of GDFQ as released: generator step, student step. The teacher is in eval mode, but not frozen."""
    device = next(teacher.parameters()).device
    teacher = copy.deepcopy(teacher).eval().requires_grad_(True)
    generator = PlainGenerator(image, num_classes, width).to(device).train()
    student = plain_student(teacher, bits).to(device).eval()
    generator_optimizer = torch.optim.Adam(generator.parameters(), 1e-3, betas=(0.5, 0.999))
    student_optimizer = torch.optim.SGD(student.parameters(), 1e-4, momentum=0.9, weight_decay=1e-4, nesterov=True)
    means: list[Tensor] = []
    variances: list[Tensor] = []
    running: list[tuple[Tensor, Tensor]] = []

    def hook(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        means.append(inputs[0].mean([0, 2, 3]))
        variances.append(inputs[0].var([0, 2, 3], unbiased=False))
        running.append((module.running_mean, module.running_var))

    for module in teacher.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.register_forward_hook(hook)

    def iteration() -> None:
        z = torch.randn(batch_size, 100).to(device)
        labels = torch.randint(num_classes, (batch_size,)).to(device)
        images = generator(z, labels)
        means.clear()
        variances.clear()
        running.clear()
        logits = teacher(images)
        gap = torch.zeros((), device=device)
        for mean, variance, (running_mean, running_var) in zip(means, variances, running, strict=True):
            gap = gap + F.mse_loss(mean, running_mean) + F.mse_loss(variance, running_var)
        loss = F.cross_entropy(logits, labels) + 0.1 * gap / len(means)
        generator_optimizer.zero_grad()
        loss.backward()
        generator_optimizer.step()
        answer = student(images.detach())
        soft = F.softmax(logits.detach() / 20, dim=1)
        divergence = F.kl_div(F.log_softmax(answer / 20, dim=1), soft, reduction="mean")
        student_loss = 400 * divergence + F.cross_entropy(answer, labels)
        student_optimizer.zero_grad()
        student_loss.backward()
        student_optimizer.step()

    return iteration
