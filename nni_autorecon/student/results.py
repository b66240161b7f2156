"""The results of a student's training are measured here, written, printed and reported to NNI."""

from __future__ import annotations

import logging
import math
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from torch import nn

from ..config.student import StudentConfig
from ..data.images import EvaluationData
from ..data.test_sets import load_evaluation_data
from ..errors import InputError
from ..export.latency import Latency
from ..export.student import Student
from ..quantization.coverage import Coverage
from ..quantization.specification import Bits
from ..runs.progress import Show, progress_bar
from ..teacher.loading import Teacher
from .layer_bits import MixedPrecision
from .layer_costs import LayerCost

_log = logging.getLogger(__name__)

GOOD, LOST = 0.95, 0.01
"""A student that loses more accuracy than this, or agrees on less, if there are no test data, is told of ``--size``."""
WORST = 3
"""A summary names so many layers."""


@dataclass(frozen=True)
class CompressionResult:
    """The result of stage 2. Accuracies are fractions of the held-out test images; None if there are none.

    Example:
        >>> result = nar.compress("digits", method="dfq", bits="w8a8", progress=False)
        >>> result.bits, len(result.layers), result.accuracy > 0.9
        ('w8a8', 10, True)
    """

    bits: str
    """The bit widths of weights and activations, as in ``w4a8``."""
    protocol: str
    """It says what is quantized beside weights: ``activations`` or ``integer``."""
    method: str
    """The way to the student, such as ``blockwise``."""
    generator: str | None
    """The generator's name; None for a method without one, like its costs below."""
    agreement: float
    """The fraction of held-out synthetic images, disturbed, on which both decide alike: the data-free metric."""
    teacher_accuracy: float | None
    """The accuracy of the teacher."""
    ranges_only_accuracy: float | None
    """The accuracy with ranges set, before any training of the student."""
    accuracy: float | None
    """The accuracy after the last epoch."""
    loss: dict[str, float] | None
    """L_r of the images and its parts, in the last epoch, if there was one."""
    generator_macs: int | None
    """The multiply-accumulates for one image."""
    generator_parameters: int | None
    """The number of its parameters."""
    seconds: float
    """The time of the whole method, including images that are distilled beforehand."""
    coverage: Coverage
    """It lists what is quantized, with how many bits, and what is not."""
    mixed_precision: MixedPrecision | None = None
    """The bits of each layer and how they were chosen, if they were chosen for a size."""
    layers: tuple[LayerCost, ...] | None = None
    """The cost of each quantized layer, in the order of their calls; None for a network that cannot be traced."""
    ranges_only_agreement: float | None = None
    """The agreement with ranges set, on the same images; None if nothing was trained."""
    diversity: float | None = None
    """The variance of synthetic images within the classes that the teacher sees in them, over that of all of them; None
    if no class has two."""
    taken_back: bool = False
    """True if training made the agreement beyond chance worse, so that the student by ranges alone was kept."""
    file_bytes: int | None = None
    """The size of the student's file, once it is written."""
    compression_ratio: float | None = None
    """The teacher's size in float32 divided by that of the file."""
    onnx_bytes: int | None = None
    """The size of student.onnx, if it is asked for."""
    latency: Latency | None = None
    """The time of an image in that file, if it is asked for."""
    device: str = ""
    """The device on which the method ran."""
    student: Student | None = field(default=None, repr=False, compare=False)
    """The student itself, once its training is over."""

    def to_dict(self) -> dict[str, Any]:
        """Return the content of result.json."""
        values = {field.name: getattr(self, field.name) for field in fields(self) if field.name != "student"}
        latency: dict[str, Any] = dict.fromkeys(("latency", "float_latency", "latency_threads"))
        if self.latency is not None:
            latency = self.latency.to_dict()
        mixed = self.mixed_precision and self.mixed_precision.to_dict()
        return {
            **values,
            "coverage": self.coverage.to_dict(),
            "layers": self.layers_and_shares(),
            "mixed_precision": mixed,
            **latency,
        }

    def layers_and_shares(self) -> list[dict[str, Any]] | None:
        """Return what each layer costs, with its ``share`` of the student's file; None if there is no file yet."""
        if self.layers is None:
            return None
        return [{**asdict(each), "share": self.file_bytes and each.bytes / self.file_bytes} for each in self.layers]

    def summary(self) -> str:
        """Return the lines that a person reads at the end; the first one says what was made."""
        lines = [f"{self.bits} student"]
        if self.file_bytes is not None:
            lines[0] += f", {self.file_bytes / 1000:.1f} kB, compression ratio {self.compression_ratio:.2f}"
        if self.accuracy is not None:
            lines.append(
                f"test accuracy: teacher {self.teacher_accuracy:.2%}, "
                f"student by ranges alone {self.ranges_only_accuracy:.2%}"
                + ("" if self.method in ("dfq", "zeroq") else f", trained {self.accuracy:.2%}")
            )
        lines.append(
            f"agrees with the teacher on {self.agreement:.2%} of "
            + ("images of smooth noise" if self.method == "dfq" else "disturbed synthetic images")
            + ("" if self.ranges_only_agreement is None else f", by ranges alone on {self.ranges_only_agreement:.2%}")
        )
        if self.taken_back:
            lines.append("training made it no better, so that the student by ranges alone was kept")
        if self.layers:
            worst = sorted(self.layers, key=lambda each: each.sqnr)[:WORST]
            lines.append(
                "least exact layers: " + ", ".join(f"{x.name} ({x.bits} bits, {x.sqnr:.1f} dB)" for x in worst)
            )
        if self._may_gain_by_size:
            lines.append(f"bits chosen for each layer may lose less at the same size: --size {self.file_bytes}B")
        lines.append(self.coverage.summary())
        if self.onnx_bytes is not None and self.latency is not None:
            lines.append(f"student.onnx: {self.onnx_bytes / 1000:.1f} kB, {self.latency.summary()}")
            if self.protocol == "activations":
                lines.append("it is computed in floating point; with --protocol integer it would run in integers")
        return "\n".join(lines)

    @property
    def _may_gain_by_size(self) -> bool:
        """Return True if bits could be moved from some layers to others, and the student is far from its teacher."""
        alike = self.mixed_precision is None and 2 < Bits(self.bits).weights < 8
        if self.accuracy is None or self.teacher_accuracy is None:
            is_far = self.agreement < GOOD
        else:
            is_far = self.teacher_accuracy - self.accuracy > LOST
        return alike and is_far and None not in (self.layers, self.file_bytes)

    def metrics(self) -> dict[str, Any]:
        """Return a trial's final result; NNI maximizes ``default``, which no real image has touched."""
        accuracies = {
            "accuracy": self.accuracy,
            "ranges_only_accuracy": self.ranges_only_accuracy,
            "teacher_accuracy": self.teacher_accuracy,
        }
        costs = {"generator_macs": self.generator_macs, "generator_parameters": self.generator_parameters}
        size = {"file_bytes": self.file_bytes, "compression_ratio": self.compression_ratio}
        speed = (
            {}
            if self.latency is None
            else {"latency": self.latency.milliseconds, "float_latency": self.latency.float_milliseconds}
        )
        values = {"loss": self.loss and self.loss["loss"], "generator": self.generator}
        values |= {**accuracies, **costs, **size, **speed}
        return {"default": self.agreement, **{name: value for name, value in values.items() if value is not None}}


@dataclass(frozen=True)
class DistillationResult:
    """The result of a distillation. Accuracies are fractions of the held-out test images; None if there are none.

    Example:
        >>> result = nar.distill("digits", generator="gdfq", epochs=1, steps=1, student_steps=1, progress=False)
        >>> result.network(torch.zeros(2, 1, 16, 16)).shape
        torch.Size([2, 10])
    """

    student: str
    """The name of its code, as in ``models.py:make``."""
    generator: str
    """The generator's name, such as ``gdfq``."""
    agreement: float
    """The fraction of held-out synthetic images, disturbed, on which both decide alike: the data-free metric."""
    teacher_accuracy: float | None
    """The accuracy of the teacher."""
    accuracy: float | None
    """The accuracy after the last epoch."""
    teacher_parameters: int
    """The number of the teacher's parameters."""
    student_parameters: int
    """The number of the student's parameters."""
    loss: dict[str, float]
    """The terms of the generator's objective and the student's loss, in the last epoch."""
    generator_macs: int
    """The multiply-accumulates of the generator for one image."""
    generator_parameters: int
    """The number of the generator's parameters."""
    seconds: float
    """The time of the whole distillation."""
    device: str = ""
    """The device on which the distillation ran."""
    network: nn.Module | None = field(default=None, repr=False, compare=False)
    """The student itself, once its training is over."""

    def to_dict(self) -> dict[str, Any]:
        """Return the content of result.json."""
        return {field.name: getattr(self, field.name) for field in fields(self) if field.name != "network"}

    def summary(self) -> str:
        """Return the lines that a person reads at the end; the first one says what was made."""
        lines = [f"student {self.student}, {self.student_parameters:,} parameters, teacher {self.teacher_parameters:,}"]
        if self.accuracy is not None:
            lines.append(f"test accuracy: teacher {self.teacher_accuracy:.2%}, student {self.accuracy:.2%}")
        lines.append(f"agrees with the teacher on {self.agreement:.2%} of disturbed synthetic images")
        return "\n".join(lines)

    def metrics(self) -> dict[str, Any]:
        """Return a trial's final result; NNI maximizes ``default``, which no real image has touched."""
        accuracies = {"accuracy": self.accuracy, "teacher_accuracy": self.teacher_accuracy}
        known = {name: value for name, value in accuracies.items() if value is not None}
        costs = {"generator_macs": self.generator_macs, "generator_parameters": self.generator_parameters}
        return {"default": self.agreement, **known, **self.loss, **costs}


def accuracy_of(network: nn.Module, teacher: Teacher, data: EvaluationData | None, progress: Show) -> float | None:
    """Return the fraction of test images that ``network`` gets right, None without any; show how far it is.

    Raises InputError if the images do not fit the teacher.
    """
    if data is None:
        return None
    what = "teacher" if network is teacher.network else "student"
    with progress_bar(f"{what} on test images", len(data), progress, passes=True) as bar:  # type: ignore[arg-type]
        return teacher.accuracy(network, data, on_images=bar.update)


def measured_accuracy(
    config: StudentConfig, teacher: Teacher, data: EvaluationData | None, progress: Show
) -> float | None:
    """Measure the teacher on ``data``; log its accuracy on a person's, who sees it before anything is trained.

    Returns None without data. Raises InputError if they do not fit, or if the teacher decides hardly better than a
    guess (:func:`chance_limit`) and ``config.allow_weak_teacher`` is False.
    """
    accuracy = accuracy_of(teacher.network, teacher, data, progress)
    if accuracy is None or data is None:
        return None
    count = len(data)  # type: ignore[arg-type]
    if config.test_data is not None:  # that of the built-in teacher on its own data is known
        _log.info("teacher %s: %.2f %% of %d test images", teacher.name, 100 * accuracy, count)
    if accuracy <= chance_limit(teacher.num_classes, count) and not config.allow_weak_teacher:
        raise InputError(
            f"teacher {teacher.name} decides right on {accuracy:.2%} of {count} test images, where a guess among "
            f"{teacher.num_classes} classes does on {1 / teacher.num_classes:.2%}; check --mean and --std, the order "
            "of the classes (--labels) and of the channels, and the checkpoint, or go on with --allow-weak-teacher"
        )
    return accuracy


def chance_limit(classes: int, images: int) -> float:
    """Return the accuracy up to which a teacher counts as guessing, a fraction.

    With a guess at p = 1 / classes, that is a tenth of the way from p to 1, or three standard errors above p on so many
    images, whichever is more, but never more than 0.95. Worked example: 10 classes and 10,000 images give 0.19.
    """
    guess = 1 / classes
    return min(max(guess + (1 - guess) / 10, guess + 3 * math.sqrt(guess * (1 - guess) / images)), 0.95)


def evaluation_data(config: StudentConfig, teacher: Teacher) -> EvaluationData | None:
    """Return the student's test images: ``test_data``, or the held-out digits for the digits teacher, or None.

    Raises InputError if a download is asked for without test data, or as ``load_evaluation_data`` does.
    """
    spec = config.test_data or ("digits" if config.teacher == "digits" else None)
    if spec is None and config.download:
        raise InputError("there are no test data to download; give --test-data cifar10:FOLDER or cifar100:FOLDER")
    if spec is None:
        if config.labels:
            raise InputError("there are no test data that --labels could be of; give --test-data FOLDER")
        return None
    return load_evaluation_data(
        spec,
        num_classes=teacher.num_classes,
        image=teacher.image,
        resize=teacher.resize,
        download=config.download,
        labels=config.labels,
    )
