"""Stage 2 of Algorithm 1: a generator's images quantize and distil the teacher."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from .config import CompressConfig
from .data import LabelledImages, accuracy, load_images
from .digits import digits_data
from .files import write_atomically, write_json
from .generator import GDFQGenerator, Generator, generator_cost, generator_from_spec
from .latent import LatentSource
from .losses import compression_loss, reconstruction_loss
from .plots import plot_images, plot_loss_curves, save_figure
from .quantization import Coverage, observe_ranges, quantize_network
from .reconstruction import (
    MeanLoss,
    Objective,
    generator_step,
    images_per_class,
    require_finite,
    weight_optimizer,
)
from .runs import RunFolder
from .teacher import Teacher, configured_teacher

EpochMetrics = dict[str, Any]

WARM_UP, RANGES, TRAINING = "warm-up", "ranges", "training"


@dataclass(frozen=True)
class CompressionResult:
    """What stage 2 found. Accuracies are fractions of the held-out test images, None where there are none."""

    bits: str
    generator: str
    agreement: float
    """Fraction of fresh synthetic images on which student and teacher decide alike: the data-free metric."""
    teacher_accuracy: float | None
    ranges_only_accuracy: float | None
    """After range tracking, before any training of the student."""
    accuracy: float | None
    """After the last epoch."""
    loss: dict[str, float]
    """L_r of the generator and its parts, in the last epoch."""
    generator_macs: int
    generator_parameters: int
    seconds: float
    coverage: Coverage

    def to_dict(self) -> dict[str, Any]:
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {**values, "coverage": self.coverage.to_dict()}

    def summary(self) -> str:
        """What a person reads at the end."""
        lines = [
            self.coverage.summary(),
            f"{self.bits} student agrees with the teacher on {self.agreement:.2%} of fresh synthetic images",
        ]
        if self.accuracy is not None:
            lines.append(
                f"test accuracy: teacher {self.teacher_accuracy:.2%}, "
                f"student by ranges alone {self.ranges_only_accuracy:.2%}, trained {self.accuracy:.2%}"
            )
        return "\n".join(lines)

    def metrics(self) -> dict[str, Any]:
        """What a trial reports as its final result; NNI maximizes ``default``, which no real image has touched."""
        accuracies = {
            "accuracy": self.accuracy,
            "ranges_only_accuracy": self.ranges_only_accuracy,
            "teacher_accuracy": self.teacher_accuracy,
        }
        known = {name: value for name, value in accuracies.items() if value is not None}
        generator = {"generator_macs": self.generator_macs, "generator_parameters": self.generator_parameters}
        return {"default": self.agreement, **known, "loss": self.loss["loss"], **generator}


@dataclass
class Compression:
    """Stage 2 under way: the frozen teacher, the generator, the quantized student and their optimizers.

    One epoch is warm-up (generator only), then range tracking, then training of the student on the images that
    the generator was just trained with (Xu et al., 2020). No real image enters anywhere.
    """

    config: CompressConfig
    teacher: Teacher
    generator: Generator | GDFQGenerator
    student: nn.Module
    coverage: Coverage
    objective: Objective
    source: LatentSource

    @classmethod
    def start(cls, config: CompressConfig, teacher: Teacher) -> Compression:
        """Everything at its initial state. Seeds torch. Raises InputError if the settings do not go together."""
        config.require_consistent()
        torch.manual_seed(config.seed)
        generator = generator_from_spec(
            config.generator, image=teacher.image, num_classes=teacher.num_classes, width=config.width,
            latent_dim=config.latent_dim,
        ).to(teacher.device)  # fmt: skip
        student, coverage = quantize_network(
            teacher.network,
            weight_bits=config.weight_bits,
            activation_bits=config.activation_bits,
            allow_partial=config.allow_partial,
        )
        objective = partial(reconstruction_loss, teacher.network, bns_weight=config.bns_weight)
        source = LatentSource(config.batch_size, generator.latent_dim, teacher.num_classes, config.seed, teacher.device)
        return cls(config, teacher, generator, student.to(teacher.device), coverage, objective, source)

    def __post_init__(self) -> None:
        config = self.config
        self.generator_optimizer = weight_optimizer(self.generator.parameters(), config)
        self.student_optimizer = torch.optim.SGD(
            self.student.parameters(), lr=config.student_lr, momentum=config.student_momentum,
            weight_decay=config.student_decay, nesterov=config.student_momentum > 0,
        )  # fmt: skip

    def phase(self, epoch: int) -> str:
        """What happens in ``epoch`` (from 0)."""
        if epoch < self.config.warmup_epochs:
            return WARM_UP
        return RANGES if epoch < self.config.warmup_epochs + self.config.range_epochs else TRAINING

    def run_epoch(self, epoch: int, on_step: Callable[[], object] = lambda: None) -> EpochMetrics:
        """One epoch; its metrics. Raises DivergenceError if a loss is no longer finite."""
        phase = self.phase(epoch)
        for group in self.generator_optimizer.param_groups:
            group["lr"] = self.config.weight_lr * SCHEDULES[self.config.weight_schedule](epoch / self.config.epochs)
        mean, student_losses = MeanLoss(), []
        self.generator.train()
        self.student.eval()  # BatchNorm statistics stay the teacher's; its affine parameters train
        for step, (images, labels, logits) in enumerate(self._images(epoch, phase, mean)):
            if phase == RANGES:
                with torch.no_grad(), observe_ranges(self.student):
                    self.student(images)
            elif phase == TRAINING:
                self._set_student_lr(epoch, step)
                student_losses.append(self._student_step(images, labels, logits))
            on_step()
        metrics: EpochMetrics = {"epoch": epoch + 1, "phase": phase, **mean.result(f"L_r in epoch {epoch + 1}")}
        if phase == TRAINING:
            student_loss = torch.stack(student_losses).mean().item()
            require_finite(student_loss, f"the student's loss in epoch {epoch + 1}")
            metrics["student_loss"] = student_loss
            metrics["student_lr"] = self.student_optimizer.param_groups[0]["lr"]
        if phase != WARM_UP:
            metrics["agreement"] = self.agreement()
        return metrics

    def _images(self, epoch: int, phase: str, mean: MeanLoss) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """The epoch's images, labels and teacher logits; trains the generator on the way, if it still learns."""
        learning = self.config.generator_updates == "always" or phase == WARM_UP
        for z, labels in self.source.batches("compress", epoch, self.config.steps):
            if learning:
                images, loss = generator_step(self.generator, self.objective, self.generator_optimizer, z, labels)
            else:
                with torch.no_grad():
                    images = self.generator(z, labels)  # [N, C, H, W]
                    loss = self.objective(images, labels)
            mean.add(loss)
            yield images, labels, loss.logits

    def _student_step(self, images: Tensor, labels: Tensor, teacher_logits: Tensor) -> Tensor:
        config = self.config
        loss = compression_loss(
            self.student(images), teacher_logits, labels,
            ce_weight=config.ce_weight, kd_weight=config.kd_weight,
            temperature=config.kd_temperature, reduction=config.kd_reduction,
        )  # fmt: skip
        self.student_optimizer.zero_grad(set_to_none=True)
        loss.backward()
        if config.student_clip is not None:
            nn.utils.clip_grad_norm_(self.student.parameters(), config.student_clip)
        self.student_optimizer.step()
        return loss.detach()

    def _set_student_lr(self, epoch: int, step: int) -> None:
        config = self.config
        first = config.warmup_epochs + config.range_epochs
        progress = (epoch - first + step / config.steps) / (config.epochs - first)
        for group in self.student_optimizer.param_groups:
            group["lr"] = config.student_lr * SCHEDULES[config.student_schedule](progress)

    @torch.no_grad()
    def agreement(self) -> float:
        """Fraction of fresh synthetic images on which student and teacher decide alike."""
        alike = [
            (self.student(images).argmax(1) == self.teacher.network(images).argmax(1)).float().mean()
            for images in (
                self.generator(z, labels)
                for z, labels in self.source.batches("agreement", 0, self.config.agreement_steps)
            )
        ]
        return torch.stack(alike).mean().item()

    def accuracy(self, network: nn.Module, data: LabelledImages | None) -> float | None:
        """Fraction of ``data`` that ``network`` gets right, or None without data. Measured, never acted upon."""
        if data is None:
            return None
        return accuracy(network, data, mean=self.teacher.mean, std=self.teacher.std, device=self.teacher.device)


SCHEDULES: dict[str, Callable[[float], float]] = {
    "constant": lambda progress: 1.0,
    "cosine": lambda progress: (1 + math.cos(math.pi * progress)) / 2,
    "step": lambda progress: 0.1 ** sum(progress >= quarter for quarter in (0.25, 0.5, 0.75)),
}
"""Factor of a learning rate at a progress in [0, 1) through training."""


def compress(
    compression: Compression,
    data: LabelledImages | None,
    *,
    on_epoch: Callable[[EpochMetrics], object] = lambda metrics: None,
    on_step: Callable[[], object] = lambda: None,
) -> CompressionResult:
    """Run all epochs of stage 2, measuring on ``data`` after range tracking and after the last epoch."""
    started = time.perf_counter()
    config = compression.config
    ranges_only = None
    for epoch in range(config.epochs):
        metrics = compression.run_epoch(epoch, on_step)
        if compression.phase(epoch) == RANGES:
            ranges_only = compression.accuracy(compression.student, data)
        on_epoch(metrics)
    macs, parameters = generator_cost(compression.generator)
    return CompressionResult(
        bits=config.bits,
        generator=config.generator,
        agreement=metrics["agreement"],
        teacher_accuracy=compression.accuracy(compression.teacher.network, data),
        ranges_only_accuracy=ranges_only,
        accuracy=compression.accuracy(compression.student, data),
        loss={part: metrics[part] for part in ("loss", "class_loss", "bns_loss")},
        generator_macs=macs,
        generator_parameters=parameters,
        seconds=time.perf_counter() - started,
        coverage=compression.coverage,
    )


def run_compression(
    config: CompressConfig,
    run: RunFolder,
    *,
    on_epoch: Callable[[EpochMetrics], object] = lambda metrics: None,
    progress: bool = False,
) -> CompressionResult:
    """Stage 2 for the configured teacher; leaves result, student and figures in ``run``.

    The student is measured on ``test_data``, or on the held-out digits for the digits teacher, or not at all.
    """
    teacher = configured_teacher(config)
    compression = Compression.start(config, teacher)
    data = _test_data(config)
    if data is not None:
        compression.accuracy(teacher.network, data)  # data that do not fit are refused now, not after the training
    run.start("compress", config)
    with tqdm(total=config.epochs * config.steps, desc="compress", disable=not progress) as bar:

        def report(metrics: EpochMetrics) -> None:
            run.log(metrics)
            on_epoch(metrics)
            bar.set_postfix_str(f"{metrics['phase']}, L_r {metrics['loss']:.3f}")

        result = compress(compression, data, on_epoch=report, on_step=bar.update)
    write_json(run / "result.json", result.to_dict())
    state = {name: value.cpu() for name, value in compression.student.state_dict().items()}
    write_atomically(run / "student.pt", lambda file: torch.save(state, file))
    _draw(run, compression)
    return result


def _test_data(config: CompressConfig) -> LabelledImages | None:
    if config.test_data is not None:
        return load_images(config.test_data)
    return digits_data("test") if config.teacher == "digits" else None


def _draw(run: RunFolder, compression: Compression) -> None:
    losses = ("loss", "class_loss", "bns_loss", "student_loss")
    save_figure(plot_loss_curves(run.rows, series=losses, title="Compression: losses", log=True), run / "loss.png")
    save_figure(
        plot_loss_curves(run.rows, series=("agreement",), title="Student and teacher agree on synthetic images"),
        run / "agreement.png",
    )
    images, labels = images_per_class(compression.generator, compression.source, count=8)
    save_figure(plot_images(images, labels, per_class=8), run / "images.png")
