"""What any student is measured by."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from ..config.student import StudentConfig
from ..data.images import EvaluationData
from ..data.test_sets import load_evaluation_data
from ..errors import InputError
from ..teacher.loading import Teacher


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
