"""Data-free distillation (Table 4): a generator's images teach a student of another architecture."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn

from ..accel.cuda_graphs import Recorded
from ..accel.memory import memory_format
from ..accel.optimizers import clear_gradients, learning_rate, set_learning_rate, sgd
from ..config.common import SCHEDULES
from ..config.distill import DistillConfig
from ..errors import InputError
from ..generator.gdfq import GDFQGenerator
from ..generator.latent import LatentSource
from ..generator.searched import Generator
from ..generator.training import Objective, objective_for, weight_optimizer
from ..losses.reconstruction import MeanLoss, require_finite, require_finite_weights
from ..losses.student import GeneratorLoss, generator_loss, l1_loss
from ..runs.snapshots import State, random_state, set_random_state
from ..teacher.examination import images_to_try
from ..teacher.loading import Teacher
from ..teacher.sources import architecture
from .agreement import decisions
from .generators import configured_generator

EpochMetrics = dict[str, Any]


@dataclass
class Distillation:
    """Distillation under way: the frozen teacher, the generator, the student and their optimizers.

    Each iteration has two phases (Fang et al., 2019). First the student follows the teacher on fresh images while the
    generator's weights rest. Then the generator makes one step on its own objective while the student rests. No real
    image enters anywhere.
    """

    config: DistillConfig
    teacher: Teacher
    generator: Generator | GDFQGenerator
    student: nn.Module
    objective: Objective
    source: LatentSource
    started: float
    epoch: int = 0
    """The number of epochs that are over."""
    metrics: EpochMetrics = field(default_factory=dict)
    """The metrics of the last epoch."""

    @classmethod
    def start(cls, config: DistillConfig, teacher: Teacher, state: State | None = None) -> Distillation:
        """Return a distillation at its initial state, or at the saved ``state``; this seeds torch.

        Raises InputError if the settings do not go together.
        """
        started = time.perf_counter()
        config.require_consistent()
        torch.manual_seed(config.seed)
        # The student comes first, so that every generator teaches the same one.
        student = student_for(teacher, config.student)
        student = student.to(memory_format=memory_format(student, teacher.image, modes=(False, True)))
        generator = configured_generator(config, teacher)
        objective = objective_for(teacher.observed, config)
        source = LatentSource(config.batch_size, generator.latent_dim, teacher.num_classes, config.seed, teacher.device)
        distillation = cls(config, teacher, generator, student, objective, source, started)
        if state is not None:
            distillation._load(state)
        return distillation

    def state(self) -> State:
        """Return the state that :meth:`start` takes up again."""
        return {
            "epoch": self.epoch,
            "metrics": self.metrics,
            "seconds": time.perf_counter() - self.started,
            "random": random_state(self.teacher.device),  # a student may have dropout
            **{name: getattr(self, name).state_dict() for name in self._PARTS},
        }

    def _load(self, state: State) -> None:
        self.epoch, self.metrics = state["epoch"], state["metrics"]
        self.started -= state["seconds"]
        for name in self._PARTS:
            getattr(self, name).load_state_dict(state[name])
        set_random_state(state["random"], self.teacher.device)

    _PARTS = ("generator", "student", "generator_optimizer", "student_optimizer")

    def __post_init__(self) -> None:
        config = self.config
        self.generator_optimizer = weight_optimizer(self.generator.parameters(), config)
        self.student_optimizer = sgd(
            self.student.parameters(),
            config.student_lr,
            momentum=config.student_momentum,
            weight_decay=config.student_decay,
        )
        self._update_student = Recorded(self._student_step, "the update of the student")
        self._update_generator = Recorded(self._generator_step, "the update of the generator")

    def run_epoch(self, epoch: int, on_step: Callable[[], object] = lambda: None) -> EpochMetrics:
        """Run one epoch and return its metrics. Raises DivergenceError if a loss is no longer finite."""
        config = self.config
        reconstruction, terms, student_losses = MeanLoss(), [], []
        batches = self.source.batches("distill", epoch, config.steps * (config.student_steps + 1))
        self.generator.train()
        for step in range(config.steps):
            self._set_rates((epoch + step / config.steps) / config.epochs)
            student_losses += [self._update_student(*batch) for batch in islice(batches, config.student_steps)]
            loss = self._update_generator(*next(batches))
            reconstruction.add(loss.reconstruction)
            terms.append(torch.stack([loss.adversarial, loss.balance]))
            on_step()
        self.student.eval()
        adversarial, balance = torch.stack(terms).mean(0).tolist()
        student_loss = torch.stack(student_losses).mean().item()
        for value, what in ((student_loss, "the student's loss"), (adversarial, "the discrepancy L1(t, s)")):
            require_finite(value, f"{what} in epoch {epoch + 1}")
        require_finite_weights(self.generator, "the generator's")  # the last update has no loss after it
        return {
            "epoch": epoch + 1,
            **reconstruction.result(f"L_r in epoch {epoch + 1}"),
            "adversarial_loss": adversarial,
            "balance_loss": balance,
            "student_loss": student_loss,
            "student_lr": learning_rate(self.student_optimizer),
            "agreement": self.agreement(),
        }

    def _student_step(self, z: Tensor, labels: Tensor) -> Tensor:
        """Update the student once on L1(t, s), its BatchNorms in training mode; return the loss from before."""
        self.student.train()
        with torch.no_grad():
            images = self.generator(z, labels)  # [N, C, H, W]
            target = self.teacher.observed(images)  # [N, K]
        loss = l1_loss(self.student(images), target)
        clear_gradients(self.student_optimizer)
        loss.backward()
        self.student_optimizer.step()
        return loss.detach()

    def _generator_step(self, z: Tensor, labels: Tensor) -> GeneratorLoss:
        """Update the generator once against the student in eval mode, as it is measured; return the loss before it."""
        config = self.config
        self.student.eval()
        images = self.generator(z, labels)  # [N, C, H, W]
        loss = generator_loss(
            self.objective(images, labels),
            self.student(images),
            reconstruction_weight=config.reconstruction_weight,
            adversarial_weight=config.adversarial_weight,
            balance_weight=config.balance_weight,
        )
        clear_gradients(self.generator_optimizer)
        loss.total.backward(inputs=list(self.generator.parameters()))  # the student gets no gradient
        self.generator_optimizer.step()
        return loss.detach()

    def _set_rates(self, progress: float) -> None:
        config = self.config
        set_learning_rate(self.student_optimizer, config.student_lr * SCHEDULES[config.student_schedule](progress))
        set_learning_rate(self.generator_optimizer, config.weight_lr * SCHEDULES[config.weight_schedule](progress))

    def agreement(self) -> float:
        """Return the fraction of held-out synthetic images, disturbed, on which student and teacher decide alike."""
        batches = self.source.batches("agreement", 0, self.config.agreement_steps)
        images = (self.generator(z, labels) for z, labels in batches)
        return decisions(self.student, self.teacher.observed, images).agreement


def student_for(teacher: Teacher, spec: str) -> nn.Module:
    """Return the freshly initialized network that ``spec`` names, on the teacher's device and in eval mode.

    Raises InputError unless it takes the teacher's images, returns logits [N, K] for the teacher's classes, and has
    parameters to train.
    """
    student = architecture(spec, teacher.num_classes).to(teacher.device).eval()
    known: dict[str, Tensor] = {}
    with images_to_try(2, teacher.image, teacher.device, f"student {spec}") as images:
        for training in (False, True):
            if training:  # lazy layers have their sizes by now
                known = {name: buffer.clone() for name, buffer in student.named_buffers()}
            try:
                with torch.no_grad(), torch.random.fork_rng(devices=[]):
                    logits = student.train(training)(images)
            except Exception as error:  # the person's code may raise anything
                raise InputError(
                    f"student {spec} fails on {'×'.join(map(str, teacher.image))} images, which the teacher takes: "
                    f"{type(error).__name__}: {error}; give a network for such images"
                ) from error
            if not isinstance(logits, Tensor) or logits.shape != (2, teacher.num_classes):
                got = f"shape {list(logits.shape)}" if isinstance(logits, Tensor) else f"a {type(logits).__name__}"
                when = " in training" if training else ""
                raise InputError(
                    f"student {spec} returns {got} for two images{when}; it must return logits "
                    f"[2, {teacher.num_classes}], one for each of the teacher's classes"
                )
    for name, buffer in student.named_buffers():
        buffer.copy_(known[name])  # running statistics change in training
    if not any(parameter.requires_grad for parameter in student.parameters()):
        raise InputError(f"student {spec} has no parameter to train; leave its weights unfrozen")
    return student.eval()
