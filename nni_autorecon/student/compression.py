"""Stage 2 of Algorithm 1: synthetic images quantize and distil the teacher."""

from __future__ import annotations

import copy
import logging
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..accel.cuda_graphs import Recorded
from ..accel.memory import in_usual_layout
from ..config.common import SCHEDULES
from ..config.compress import BLOCK, REFINING, TRACKING, TRAINING, WARM_UP, CompressConfig
from ..config.generator_spec import DRAWN
from ..generator.training import reconstruction_total
from ..losses.game import adaptability_loss
from ..losses.reconstruction import MeanLoss, ReconstructionLoss, require_finite, require_finite_weights
from ..quantization.coverage import Coverage
from ..quantization.quantizers import observe_ranges
from ..quantization.specification import Quantization
from ..runs.snapshots import State
from ..teacher.loading import Teacher
from .agreement import Decisions, batches_within_budget, decisions
from .blockwise import Blockwise
from .drawn_images import DrawnImages
from .features import with_features
from .generators import with_generator_chosen
from .images import FixedImages, GeneratorImages, OnStep
from .layer_bits import MixedPrecision, choose_layer_bits
from .layer_costs import IMAGES, LayerCost, layer_costs
from .lengths import Lengths
from .making import make_counterpart, make_student
from .noise import NoiseImages
from .pace import Pace, chosen_lengths
from .training import StudentTraining

_log = logging.getLogger(__name__)

EpochMetrics = dict[str, Any]
LOSSES = ("loss", "class_loss", "bns_loss")
"""The metrics of the images: L_r and its parts."""

Images = GeneratorImages | FixedImages | NoiseImages | DrawnImages


class Settled(NamedTuple):
    """The agreement of the student that was kept, and that by ranges alone, on the same images, if one was trained."""

    agreement: float
    ranges_only_agreement: float | None = None
    taken_back: bool = False
    """True if the one by ranges alone was kept."""


@dataclass
class Compression:
    """Stage 2 under way: the frozen teacher, the images, the quantized student and its training.

    With a generator there are epochs of warm-up (generator only), then of range tracking, then of training of the
    student on the images on which the generator was just trained (Xu et al., 2020). With method ``blockwise`` the
    generator rests after the warm-up; its images are refined once, and each block of the student takes an epoch.
    Methods without a generator need no warm-up, and ``zeroq`` and ``dfq`` need no training. No real image enters
    anywhere.
    """

    config: CompressConfig
    teacher: Teacher
    images: Images
    student: nn.Module
    coverage: Coverage
    started: float
    quantization: Quantization
    lengths: Lengths
    pace: Pace | None = None
    """The pace of this machine with method ``blockwise``."""
    mixed: MixedPrecision | None = None
    """The bits of each layer and how they were chosen, if they were."""
    epoch: int = 0
    """The number of epochs that are over."""
    ranges_only_accuracy: float | None = None
    """The accuracy when the ranges were set, before any training of the student."""
    metrics: EpochMetrics = field(default_factory=dict)
    """The metrics of the last epoch."""
    loss: dict[str, float] | None = None
    """L_r of the images and its parts, in the last epoch with fresh ones."""
    by_ranges: State | None = None
    """The student's state when the ranges were set."""

    @classmethod
    def start(
        cls,
        config: CompressConfig,
        teacher: Teacher,
        on_step: OnStep = lambda: None,
        state: State | None = None,
        on_ready: Callable[[], object] = lambda: None,
    ) -> Compression:
        """Return a compression at its initial state, images distilled, or at the saved ``state``; this seeds torch.

        ``on_ready`` is called when the settings are known to fit, before the images. Raises InputError if the settings
        do not go together.
        """
        config.require_consistent()
        started = time.perf_counter()
        torch.manual_seed(config.seed)
        quantization, mixed = config.quantization, None
        if config.size is not None:
            mixed = MixedPrecision.from_dict(state["mixed"]) if state else choose_layer_bits(config, teacher)
            quantization = replace(quantization, layer_bits=mixed.layer_bits)
        student, coverage = make_student(config, teacher, quantization)
        if config.feature_weight:
            with_features(student)  # it raises its errors before images are made
        config = with_generator_chosen(config, teacher)  # which says so, now that the network has proved usable
        source: type[Images] = GeneratorImages
        if config.generator_spec is not None and config.generator_spec.kind in DRAWN:
            source = DrawnImages
        elif config.generator_spec is None:
            source = NoiseImages if config.method == "dfq" else FixedImages
        images = source.start(config, teacher, on_step, state and state["images"], on_ready)
        macs = images.cost()[0] or 0
        pace = None
        if config.method == "blockwise":
            assert isinstance(images, (GeneratorImages, DrawnImages))
            pace = Pace.measure(teacher, student, images)
        if state is not None:
            lengths = Lengths(**state["lengths"])
        else:
            spent = time.perf_counter() - started
            lengths = chosen_lengths(config, teacher, pace, generator_macs=macs, spent=spent)
        compression = cls(config, teacher, images, student, coverage, started, quantization, lengths, pace, mixed)
        if state is not None:
            compression._load(state)
        return compression

    @property
    def bits(self) -> str:
        """Return the bit widths as a name of the student; those of weights are an average if they differ by layer."""
        if self.mixed is None:
            return self.config.bits
        return f"w{self.coverage.mean_bits():.1f}a{self.config.bits.activations}"

    def state(self) -> State:
        """Return the state that :meth:`start` takes up again."""
        return {
            "epoch": self.epoch,
            "seconds": time.perf_counter() - self.started,
            "ranges_only_accuracy": self.ranges_only_accuracy,
            "metrics": self.metrics,
            "loss": self.loss,
            "by_ranges": self.by_ranges,
            "blockwise": self.blockwise and self.blockwise.state(),
            "lengths": asdict(self.lengths),
            "mixed": self.mixed and self.mixed.to_dict(),
            "images": self.images.state() if self._made is None else None,
            "student": self.student.state_dict(),
            "optimizers": self.training.state(),
        }

    def _load(self, state: State) -> None:
        self.epoch, self.metrics, self.loss = state["epoch"], state["metrics"], state["loss"]
        self.ranges_only_accuracy, self.by_ranges = state["ranges_only_accuracy"], state["by_ranges"]
        if self.blockwise:
            self.blockwise.load(state["blockwise"])
        self.started -= state["seconds"]
        self.student.load_state_dict(state["student"])
        self.training.load(state["optimizers"])

    def __post_init__(self) -> None:
        self.phases = self.config.phases
        self.blockwise = None
        if self.config.method == "blockwise":
            assert isinstance(self.images, (GeneratorImages, DrawnImages))
            self.blockwise = Blockwise(
                self.config,
                self.teacher,
                self.student,
                self.images,
                lengths=self.lengths,
                measured=self._agreement_steps,
            )
            self.phases += (BLOCK,) * self.blockwise.count
        self.training = StudentTraining(self.config, self.teacher, self.student)
        self._train_student = Recorded(self.training.step, "the update of the student")

    def run_epoch(self, epoch: int, on_step: OnStep = lambda: None) -> EpochMetrics:
        """Run one epoch and return its metrics. Raises DivergenceError if a loss is no longer finite."""
        config, phase = self.config, self.phases[epoch]
        if phase == WARM_UP and isinstance(self.images, DrawnImages):
            return {"epoch": epoch + 1, "phase": WARM_UP}  # the epochs have the same numbers with all generators
        if self.blockwise and phase != WARM_UP:
            return self._run_blockwise(self.blockwise, epoch, on_step)
        learning = config.generator_updates == "always" or phase == WARM_UP
        rate = config.weight_lr * SCHEDULES[config.weight_schedule](epoch / len(config.phases)) if learning else None
        mean, student_losses = MeanLoss(), []
        assert isinstance(self.images, (GeneratorImages, FixedImages))  # method dfq has no epochs
        self.student.eval()  # BatchNorm statistics stay the teacher's; its affine parameters train
        total = self._generator_total if phase == TRAINING else reconstruction_total
        batches = self.images.batches(epoch, self.lengths.steps, learning_rate=rate, total=total)
        for step, (images, labels, loss) in enumerate(batches):
            mean.add(loss)
            if phase == TRACKING:
                with torch.no_grad(), observe_ranges(self.student):
                    self.student(images)
            elif phase == TRAINING:
                first = self.phases.index(TRAINING)
                self.training.set_progress((epoch - first + step / self.lengths.steps) / (len(self.phases) - first))
                student_losses.append(self._train_student(images, labels, loss.logits))
            on_step()
        self.loss = mean.result(f"L_r in epoch {epoch + 1}")
        metrics: EpochMetrics = {"epoch": epoch + 1, "phase": phase, **self.loss}
        if phase == TRAINING:
            student_loss = torch.stack(student_losses).mean().item()
            require_finite(student_loss, f"the student's loss in epoch {epoch + 1}")
            require_finite_weights(self.student, "the student's")
            metrics["student_loss"] = student_loss
            metrics["student_lr"] = self.training.learning_rate
        if phase != WARM_UP:
            metrics["agreement"] = self.agreement()
        return metrics

    def _run_blockwise(self, blockwise: Blockwise, epoch: int, on_step: OnStep) -> EpochMetrics:
        """Run an epoch of method ``blockwise`` after the warm-up; return its metrics."""
        metrics: EpochMetrics = {"epoch": epoch + 1, "phase": (phase := self.phases[epoch])}
        if phase == REFINING:
            self.loss = blockwise.refine(on_step)
            return {**metrics, **self.loss}
        if phase == TRACKING:
            blockwise.track_ranges(on_step)
        else:
            error = blockwise.learn(index := epoch - self.phases.index(BLOCK), on_step)
            metrics |= {"error_before": error.before, "block_error": error.after}
            if not blockwise.is_measured_after(index):
                return metrics
        return {**metrics, "agreement": self.agreement()}

    @torch.no_grad()
    def to_show(self) -> tuple[Tensor, Tensor]:
        """Return images [n, C, H, W] for a person and for the check of an export, and labels [n]."""
        if not isinstance(self.images, DrawnImages) and not self.blockwise:
            return self.images.to_show(8)
        batches = list(self._aside())
        return torch.cat(batches), torch.cat([self.teacher.observed(batch).argmax(1) for batch in batches])

    def _generator_total(self, images: Tensor, labels: Tensor, loss: ReconstructionLoss) -> Tensor:
        """Return L_r, with a weight for its cross-entropy, plus AdaDFQ's game against the student; a scalar."""
        config = self.config
        total = config.class_weight * loss.class_ + config.bns_weight * loss.bns
        if config.adaptability_weight:
            total = total + config.adaptability_weight * adaptability_loss(self.student(images), loss.logits, labels)
        return total

    def agreement(self) -> float:
        """Return the fraction of held-out synthetic images, disturbed, on which student and teacher decide alike."""
        return self._decisions().agreement

    def _decisions(self) -> Decisions:
        return decisions(self.student, self.teacher.observed, self._aside(), disturbs=self.images.disturbs)

    def _aside(self) -> Iterable[Tensor]:
        """Return the batches [N, C, H, W] that train nothing."""
        if self._made is None:
            return self.images.held_out(self._agreement_steps)
        return self._made.split(self.config.batch_size)

    @property
    def _made(self) -> Tensor | None:
        """Return the images aside of method ``blockwise``; once they are made, it needs no generator any more."""
        return None if self.blockwise is None else self.blockwise.held_out

    @cached_property
    def _agreement_steps(self) -> int:
        """Return the number of held-out batches: as many as are asked for, or as a measurement may cost."""
        return batches_within_budget(self.teacher, self.config.agreement_steps, self.config.batch_size)

    def layer_costs(self) -> tuple[LayerCost, ...] | None:
        """Return what each quantized layer costs, on a few of the held-out images; None if there is no graph."""
        counterpart, _ = make_counterpart(self.config, self.teacher, self.quantization)
        images = torch.cat(list(self._aside()))
        few = images[torch.linspace(0, len(images) - 1, min(IMAGES, len(images))).long()]
        return layer_costs(self.student, in_usual_layout(counterpart), self.coverage, few)

    def settle(self) -> Settled:
        """Keep the trained student, unless the one by ranges alone agrees more with the teacher beyond chance."""
        trained = self._decisions()
        if self.by_ranges is None or not {TRAINING, BLOCK}.intersection(self.phases):
            return Settled(trained.agreement)
        last = copy.deepcopy(self.student.state_dict())
        self.student.load_state_dict(self.by_ranges)
        by_ranges = self._decisions()
        if by_ranges.kappa > trained.kappa:
            return Settled(by_ranges.agreement, by_ranges.agreement, taken_back=True)
        self.student.load_state_dict(last)
        return Settled(trained.agreement, by_ranges.agreement)
