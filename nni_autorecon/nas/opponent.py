"""A search can play AdaDFQ's game against a quantized student, so that the generator it finds suits students."""

from __future__ import annotations

import logging

import torch
from torch import Tensor

from ..accel.optimizers import clear_gradients, sgd
from ..config.search import SearchConfig
from ..errors import DivergenceError
from ..losses.game import adaptability_loss, disagreement_entropy
from ..quantization.insertion import quantize_network
from ..quantization.quantizers import observe_ranges
from ..quantization.specification import Quantization
from ..runs.snapshots import State
from ..teacher.loading import Teacher

log = logging.getLogger(__name__)

TEMPERATURE = 20.0
"""The student learns at GDFQ's temperature, which is also the default of stage 2."""


class Opponent:
    """A student that learns from the images of the search while it takes part in their objective.

    The game is AdaDFQ's (Qian et al., CVPR 2023), whose generator has a fixed architecture. For the first quarter of
    the epochs, but at least one, the search minimizes L_r alone. The student's activation ranges are tracked in the
    last of these epochs, because images of an untrained generator would ruin them.
    """

    def __init__(self, config: SearchConfig, teacher: Teacher) -> None:
        self.first_epoch = max(1, config.epochs // 4)
        quantization = Quantization(config.student_bits, allow_partial=True)
        student, coverage = quantize_network(teacher.graph, quantization, image=teacher.image)
        for gap in coverage.gaps:
            log.warning("the opposing student is not quantized in %s: %s", gap.name, gap.reason)
        self.student = student.requires_grad_(False).to(teacher.device).to(memory_format=teacher.memory_format)
        self.optimizer = sgd(self.student.parameters(), config.student_lr, momentum=0.9, weight_decay=1e-4)

    def plays(self, epoch: int) -> bool:
        """Return True if the game is played in ``epoch``, counted from 0."""
        return epoch >= self.first_epoch

    def loss(self, images: Tensor, teacher_logits: Tensor, labels: Tensor) -> Tensor:
        """Return the loss, [], that the search minimizes beside L_r.

        images: [N, C, H, W]; teacher_logits: [N, K]; labels: [N], or probabilities [N, K].
        """
        return adaptability_loss(self.student(images), teacher_logits, labels)

    def learn(self, epoch: int, images: Tensor, teacher_logits: Tensor) -> None:
        """Track ranges, take one step towards the teacher, or do nothing, depending on ``epoch``, counted from 0.

        images: [N, C, H, W]; teacher_logits: [N, K]; both are detached.
        """
        if epoch == self.first_epoch - 1:
            with torch.no_grad(), observe_ranges(self.student):
                self.student(images)
        if not self.plays(epoch):
            return
        self.student.requires_grad_(True)
        clear_gradients(self.optimizer)
        entropy = disagreement_entropy(self.student(images), teacher_logits, temperature=TEMPERATURE).mean()
        (-(TEMPERATURE**2) * entropy).backward()
        self.optimizer.step()
        self.student.requires_grad_(False)

    def require_finite(self) -> None:
        """Raise DivergenceError if a weight of the student is NaN or infinite."""
        if not all(parameter.isfinite().all() for parameter in self.student.parameters()):
            raise DivergenceError("weights of the opposing student are no longer finite; lower student_lr")

    def state(self) -> State:
        """Return the state that :meth:`load` restores."""
        return {"student": self.student.state_dict(), "optimizer": self.optimizer.state_dict()}

    def load(self, state: State) -> None:
        """Restore the student and its optimizer."""
        self.student.load_state_dict(state["student"])
        self.optimizer.load_state_dict(state["optimizer"])
