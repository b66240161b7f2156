"""What the training of any student needs: schedules of its learning rate, and what it is measured by."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn

from .data import EvaluationData
from .errors import InputError
from .evaluation import load_evaluation_data
from .student_config import StudentConfig
from .teacher import Teacher

SCHEDULES: dict[str, Callable[[float], float]] = {
    "constant": lambda progress: 1.0,
    "cosine": lambda progress: (1 + math.cos(math.pi * progress)) / 2,
    "step": lambda progress: 0.1 ** sum(progress >= quarter for quarter in (0.25, 0.5, 0.75)),
}
"""Factor of a learning rate at a progress in [0, 1) through training."""


@torch.no_grad()
def agreement(student: nn.Module, teacher: nn.Module, batches: Iterable[Tensor]) -> float:
    """Fraction of images on which student and teacher decide alike; ``batches`` are of [N, C, H, W], one N for all."""
    alike = [(student(images).argmax(1) == teacher(images).argmax(1)).float().mean() for images in batches]
    return torch.stack(alike).mean().item()


def evaluation_data(config: StudentConfig, teacher: Teacher) -> EvaluationData | None:
    """What the student is measured on: ``test_data``, or the held-out digits for the digits teacher, or nothing."""
    spec = config.test_data or ("digits" if config.teacher == "digits" else None)
    if spec is None and config.download:
        raise InputError("there are no test data to download; give --test-data cifar10:FOLDER or cifar100:FOLDER")
    if spec is None:
        return None
    return load_evaluation_data(
        spec, num_classes=teacher.num_classes, image=teacher.image, resize=teacher.resize, download=config.download
    )
