"""The teacher is loaded that a configuration names."""

from __future__ import annotations

import torch

from ..config.common import Config
from ..errors import InputError
from .loading import Teacher, load_teacher


def configured_teacher(config: Config) -> Teacher:
    """Load the teacher that a configuration names, on its device; also set torch's number of CPU threads."""
    use_threads(config)
    return load_teacher(
        config.teacher,
        checkpoint=config.checkpoint,
        checkpoint_key=config.checkpoint_key,
        num_classes=config.num_classes,
        image_size=config.image_size,
        mean=_numbers("mean", config.mean),
        std=_numbers("std", config.std),
        device=config.device,
        need_batchnorm=config.bns_weight > 0,
    )


def use_threads(config: Config) -> None:
    """Set torch's number of CPU threads, if the configuration gives one."""
    if config.threads is not None:
        torch.set_num_threads(config.threads)


def _numbers(name: str, text: str | None) -> tuple[float, ...] | None:
    """Return ``"0.5,0.25"`` as (0.5, 0.25). Raises InputError, naming the setting ``name``, for anything else."""
    if text is None:
        return None
    try:
        return tuple(float(number) for number in text.split(","))
    except ValueError as error:
        raise InputError(f"{name} = {text!r} is not a list of numbers; write it as 0.485,0.456,0.406") from error
