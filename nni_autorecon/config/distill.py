"""These are the settings of data-free distillation into another architecture (Table 4)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from ..errors import InputError
from .common import code_file
from .settings import setting
from .student import StudentConfig


@dataclass(frozen=True, kw_only=True)
class DistillConfig(StudentConfig):
    """Settings of data-free distillation (Table 4) into another architecture, in floating point, as DFAD alternates.

    Args:
        **settings: Settings by name, such as ``epochs=3``; all others have their defaults.

    Raises:
        InputError: If a name is not a setting, or a value is of a wrong type or out of range.

    Example:
        >>> DistillConfig(teacher="nets.py:teacher", student="nets.py:student").files
        {'teacher': 'nets.py', 'student': 'nets.py'}
    """

    GROUPS: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "what most people set": (
            "teacher", "checkpoint", "image_size", "mean", "std", "student", "genotype", "generator", "test_data",
            "epochs", "seed", "device", "threads",
        ),
        "the network and the loss (eq. 1)": (
            "num_classes", "checkpoint_key", "bns_weight", "bns_form", "batch_size", "labels", "download",
            "allow_weak_teacher",
        ),
        "epochs": ("steps", "student_steps", "agreement_steps"),
        "the generator": (
            "generator_scale", "width", "latent_dim", "weight_lr", "weight_schedule", "weight_beta1", "weight_beta2",
            "weight_decay",
        ),
        "its objective (Table 4)": ("reconstruction_weight", "adversarial_weight", "balance_weight"),
        "the student": ("student_lr", "student_schedule", "student_momentum", "student_decay"),
    }  # fmt: skip

    weight_lr: float = setting(5e-3, "Adam learning rate of the generator's weights W", low=0.0)
    student: str = setting(
        "nni_autorecon.networks:digits_student",
        "network to train, freshly initialized: FILE.py:FUNCTION or MODULE:FUNCTION, which returns it",
    )
    reconstruction_weight: float = setting(1.0, "weight of L_r (eq. 1) in the generator's objective", low=0.0)
    adversarial_weight: float = setting(
        1.0,
        "weight of the mean |t - s| over the logits of teacher and student, which the generator maximizes (DFAD)",
        low=0.0,
    )
    balance_weight: float = setting(
        1.0,
        "weight of a term that makes the classes of a batch equally frequent, in the generator's objective",
        low=0.0,
    )
    epochs: int = setting(10, "epochs", low=1)
    steps: int = setting(20, "iterations per epoch: student_steps updates of the student, one of the generator", low=1)
    student_steps: int = setting(5, "updates of the student per iteration, each on fresh images", low=1)
    student_lr: float = setting(0.1, "SGD learning rate of the student", low=0.0)
    student_decay: float = setting(5e-4, "weight decay of the student", low=0.0)

    @property
    def files(self) -> dict[str, str]:
        """Return the files on whose contents a run depends, by the setting that names them."""
        return {**super().files, **code_file("student", self.student)}

    def require_consistent(self) -> None:
        """Raise InputError if settings that are fine one by one do not go together."""
        super().require_consistent()
        if not (self.reconstruction_weight or self.adversarial_weight or self.balance_weight):
            raise InputError(
                "reconstruction_weight, adversarial_weight and balance_weight are all 0, so that the generator has "
                "nothing to learn; raise one of them"
            )
