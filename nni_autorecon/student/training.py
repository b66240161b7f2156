"""The quantized student learns by its loss L_S, with one update for each batch of images."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ..accel.optimizers import adam, clear_gradients, learning_rate, set_learning_rate, sgd
from ..config.common import SCHEDULES
from ..config.compress import CompressConfig
from ..losses.game import disagreement_entropy
from ..losses.student import compression_loss
from ..quantization.quantizers import learn_ranges
from ..teacher.loading import Teacher
from .features import Outputs, feature_alignment_loss, with_features
from .inundation import inundation


class StudentTraining:
    """SGD for the student's weights and Adam for its ranges, if they learn, on L_S against the frozen teacher.

    Raises InputError if features are to be aligned and the networks have none.
    """

    def __init__(self, config: CompressConfig, teacher: Teacher, student: nn.Module) -> None:
        self.config, self.teacher, self.student = config, teacher, student
        self.weights = list(student.parameters())
        for_weights = sgd(
            self.weights, config.student_lr, momentum=config.student_momentum, weight_decay=config.student_decay
        )
        self._optimizers: list[tuple[torch.optim.Optimizer, float]] = [(for_weights, config.student_lr)]
        if config.range_lr:
            self._optimizers.append((adam(learn_ranges(student), config.range_lr), config.range_lr))
        if config.feature_weight:
            self._teacher_outputs = with_features(teacher.graph).to(memory_format=teacher.memory_format)
        self._student_outputs = with_features(student) if config.feature_weight else student

    def state(self) -> list[dict[str, Any]]:
        """Return the state of the optimizers, for :meth:`load`; the student has a state of its own."""
        return [optimizer.state_dict() for optimizer, _ in self._optimizers]

    def load(self, state: list[dict[str, Any]]) -> None:
        """Load the state that :meth:`state` returned."""
        for (optimizer, _), known in zip(self._optimizers, state, strict=True):
            optimizer.load_state_dict(known)

    @property
    def learning_rate(self) -> float:
        """Return the learning rate of the weights."""
        return learning_rate(self._optimizers[0][0])

    def set_progress(self, progress: float) -> None:
        """Set the learning rates for a progress in [0, 1) through the training."""
        for optimizer, rate in self._optimizers:
            set_learning_rate(optimizer, rate * SCHEDULES[self.config.student_schedule](progress))

    def step(self, images: Tensor, labels: Tensor, teacher_logits: Tensor | None) -> Tensor:
        """Update once on images [N, C, H, W] with labels [N], or probabilities [N, K]; return L_S from before it, [].

        ``teacher_logits`` [N, K] are computed if they are None.
        """
        config = self.config
        if config.hard_step:
            ours = partial(self.loss, labels=labels, target=self.target(images, teacher_logits))
            images = hard_samples(images, ours, step=config.hard_step)
            teacher_logits = None
        loss = self.loss(images, labels=labels, target=self.target(images, teacher_logits))
        for optimizer, _ in self._optimizers:
            clear_gradients(optimizer)
        loss.backward()
        if config.student_clip is not None:
            nn.utils.clip_grad_norm_(self.weights, config.student_clip)
        inundated = inundation(self.student, share=config.flip_share, decay=config.student_decay)
        with inundated if config.flip_share else nullcontext():
            for optimizer, _ in self._optimizers:
                optimizer.step()
        return loss.detach()

    @torch.no_grad()
    def target(self, images: Tensor, teacher_logits: Tensor | None) -> Outputs:
        """Return the outputs that the student is to reach on images [N, C, H, W]; the teacher's logits may be known."""
        if self.config.feature_weight:
            return Outputs(*self._teacher_outputs(images))
        return Outputs(self.teacher.observed(images) if teacher_logits is None else teacher_logits)

    def loss(self, images: Tensor, *, labels: Tensor, target: Outputs) -> Tensor:
        """Return L_S, a scalar: GDFQ's, plus all other terms with a weight; images and labels as for :meth:`step`."""
        config = self.config
        said = self._student_outputs(images)
        outputs = Outputs(*said) if config.feature_weight else Outputs(said)
        loss = compression_loss(
            outputs.logits,
            target.logits,
            labels,
            ce_gate=config.ce_gate,
            ce_weight=config.ce_weight,
            kd_weight=config.kd_weight,
            temperature=config.kd_temperature,
            reduction=config.kd_reduction,
        )
        if config.disagreement_weight:
            entropy = disagreement_entropy(outputs.logits, target.logits, temperature=config.kd_temperature).mean()
            loss = loss - config.disagreement_weight * config.kd_temperature**2 * entropy
        if config.feature_weight:
            loss = loss + config.feature_weight * feature_alignment_loss(outputs.features, target.features)
        return loss


def hard_samples(images: Tensor, loss: Callable[[Tensor], Tensor], *, step: float) -> Tensor:
    """Return x + step · sign(∇ₓ loss(x)), [N, C, H, W], detached: images a little harder for the student (HAST)."""
    images = images.detach().requires_grad_()
    (gradient,) = torch.autograd.grad(loss(images), images)
    return images.detach() + step * gradient.sign()
