"""These are the settings of stage 2 of Algorithm 1, and of the methods of Table 5."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from ..errors import InputError
from ..losses.forms import REDUCTIONS
from ..quantization.ranges import RANGES
from ..quantization.specification import FORMER_NAMES, PROTOCOLS, Bits, Quantization, Size
from .generator_spec import GeneratorSpec
from .presets import COMPRESS_PRESETS, LOSSES
from .rules import COMPRESS_RULES, GENERATOR_METHODS, METHODS, Rule
from .settings import Presets, setting
from .student import StudentConfig

WARM_UP, REFINING, TRACKING, TRAINING, BLOCK = "warm-up", "images", "ranges", "training", "block"
"""In the phases of stage 2 the generator alone learns, ranges are tracked, and the student learns, or a block of it."""


@dataclass(frozen=True, kw_only=True)
class CompressConfig(StudentConfig):
    """Settings of stage 2 of Algorithm 1, and of the methods of Table 5.

    Args:
        **settings: Settings by name, such as ``bits="w4a8"``; all others have their defaults, or what a preset sets.

    Raises:
        InputError: If a name is not a setting, or a value is of a wrong type or out of range.

    Example:
        >>> CompressConfig(bits="w8a4").bits.weights
        8
    """

    PRESETS: ClassVar[Presets] = {"preset": COMPRESS_PRESETS, "losses": LOSSES}
    RULES: ClassVar[tuple[Rule, ...]] = COMPRESS_RULES
    IDLE_PRESETS: ClassVar[bool] = False
    GROUPS: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "what most people set": (
            "teacher", "checkpoint", "image_size", "mean", "std", "test_data", "bits", "size", "protocol", "onnx",
            "method", "genotype", "minutes", "seed", "device", "threads",
        ),
        "the network and the loss (eq. 1)": (
            "num_classes", "checkpoint_key", "bns_weight", "bns_form", "batch_size", "labels", "download",
            "allow_weak_teacher",
        ),
        "what is quantized": (
            "input_bits", "first_bits", "last_bits", "weight_ranges", "activation_ranges", "allow_partial",
        ),
        "epochs": ("preset", "epochs", "steps", "warmup_epochs", "range_epochs", "agreement_steps"),
        "the generator": (
            "generator", "generator_scale", "width", "latent_dim", "generator_updates", "weight_lr",
            "weight_schedule", "weight_beta1", "weight_beta2", "weight_decay",
        ),
        "blocks (method blockwise)": ("block_images", "refine_steps", "block_steps", "block_batch_size", "block_rate"),
        "images without a generator": ("image_count", "image_steps", "image_lr"),
        "the student": (
            "student_lr", "student_schedule", "student_momentum", "student_decay", "student_clip", "range_lr",
        ),
        "its loss": ("losses", "ce_weight", "ce_gate", "kd_weight", "kd_temperature", "kd_reduction"),
        "what others added": (
            "feature_weight", "disagreement_weight", "class_weight", "adaptability_weight", "mixed_share",
            "mixed_classes", "low_pass", "hard_step", "flip_share",
        ),
    }  # fmt: skip
    FORMER_VALUES: ClassVar[Mapping[str, Mapping[str, str]]] = {"protocol": FORMER_NAMES}

    preset: str | None = setting(
        None,
        "sets other settings, for 32×32 images: gdfq, GDFQ's training with its generator; paper, the same with a "
        "searched one; best, ours for a short training; a setting that is given stands",
        choices=COMPRESS_PRESETS,
    )
    losses: str | None = setting(
        None,
        "sets the weights of the student's and the generator's losses to what a paper adds to GDFQ's, or puts in "
        "their place; a setting that is given stands",
        choices=LOSSES,
    )
    method: str = setting(
        "blockwise",
        "blockwise: the student's blocks are fitted one by one, on images of a generator that was trained before; "
        "gdfq: generator and student are trained side by side; without a generator: dfq (BatchNorm statistics "
        "alone, in seconds), zeroq (images distilled from the teacher set the ranges), zeroq-kd (they train the "
        "student, too), dfc (the same, with images of classes)",
        choices=METHODS,
    )
    image_count: int = setting(256, "images that are distilled (methods zeroq, zeroq-kd, dfc)", low=2)
    image_steps: int = setting(200, "updates of each distilled image", low=1)
    image_lr: float = setting(0.5, "Adam learning rate of distilled images", low=0.0, high=1e6)
    minutes: float | None = setting(
        None,
        "time for the student, apart from measuring it on test data: batches, images and updates that nobody set "
        "are as many as fit (default: as many as suit the network)",
        low=1e-3,
    )
    block_images: int | None = setting(
        None,
        "images to which all blocks are fitted (default: 1024, or fewer where one costs much or few updates see them)",
        low=2,
    )
    refine_steps: int | None = setting(
        None,
        "updates of the pixels of these images, by which their BatchNorm statistics come nearer to those of real "
        "ones (default: 30, or as many as steps if these are fewer; with generator dead-leaves 0)",
        low=0,
    )
    block_steps: int | None = setting(
        None,
        "updates of each block after its weights were rounded (default: the batches of the epochs that warm-up and "
        "range tracking leave; at most 30 where images cost so much that they are few)",
        low=0,
    )
    block_batch_size: int = setting(32, "images in each update of a block", low=1)
    block_rate: float = setting(
        0.02, "Adam learning rate of a block's weights, in units of their quantization step", low=0.0
    )
    bits: Bits = setting(Bits("w4a4"), "bit widths of weights and activations, from 2 to 8 each")  # noqa: RUF009 (immutable)
    size: Size | None = setting(  # noqa: RUF009 (immutable)
        None,
        "largest size of the student's file, such as 1.5MB (in B, kB or MB): each layer's weights get the 2 to 8 "
        "bits that do the least harm, in place of those in bits (default: no limit)",
    )
    protocol: str = setting(
        "activations",
        f"what is quantized beside weights: {'; '.join(f'{name}, {what}' for name, what in PROTOCOLS.items())}",
        choices=PROTOCOLS,
    )
    input_bits: int | None = setting(None, "bits of the network input in protocol integer (default: 8)", low=2, high=8)
    first_bits: int | None = setting(None, "bits of the first layer's weights (default: those in bits)", low=2, high=8)
    last_bits: int | None = setting(
        None, "bits of the last layer's weights and, in protocol integer, input (default: those in bits)", low=2, high=8
    )
    weight_ranges: str | None = setting(
        None,
        "how the range of each output channel of a weight is found: its extremes, percentiles, or least squared "
        "error; by-bits is mse below 8 bits, minmax at 8 (default: mse with method blockwise, else minmax)",
        choices=RANGES,
    )
    activation_ranges: str | None = setting(
        None,
        "how ranges of activations are found, from batch to batch, in the same ways (default: by-bits with method "
        "blockwise, else minmax)",
        choices=RANGES,
    )
    range_lr: float = setting(
        0.0,
        "Adam learning rate of the logarithms of the activations' ranges while the student trains, by its schedule, "
        "as in LSQ; 0: they stay",
        low=0.0,
    )
    epochs: int = setting(
        14,
        "epochs in all, warm-up and range tracking included; with method blockwise, those left count for each block",
        symbol="L2",
        low=1,
    )
    steps: int | None = setting(
        None, "batches per epoch (default: 50; with method blockwise fewer where one costs much)", symbol="T2", low=1
    )
    warmup_epochs: int = setting(4, "first epochs, in which the generator alone is trained", low=0)
    range_epochs: int = setting(1, "epochs after the warm-up in which activation ranges are tracked", low=1)
    generator_updates: str = setting(
        "always",
        "train the generator throughout (GDFQ) or only in the warm-up (Algorithm 1)",
        choices=("always", "warmup"),
    )
    mixed_share: float = setting(
        0.0, "share of the generator's images that belong to several classes at once (Qimera: 0.4)", low=0.0, high=1.0
    )
    mixed_classes: int = setting(2, "classes of each of these", low=2)
    low_pass: float = setting(
        0.0, "standard deviation, in pixels, of a Gaussian blur of all images (SynQ); 0: none", low=0.0
    )
    class_weight: float = setting(
        1.0, "weight of the cross-entropy in the generator's objective once the student trains (AdaDFQ: 0)", low=0.0
    )
    adaptability_weight: float = setting(
        0.0, "weight of a game against the student in the same objective, likewise (AdaDFQ: 1)", low=0.0
    )
    hard_step: float = setting(
        0.0,
        "step on an image along the sign of the student's gradient before the student learns from it (HAST)",
        low=0.0,
    )
    student_clip: float | None = setting(None, "largest gradient norm of the student (default: no clipping)", low=1e-9)
    ce_weight: float = setting(1.0, "weight of the cross-entropy in L_S, the student's loss", low=0.0)
    kd_weight: float = setting(1.0, "weight of the distillation from the teacher in L_S", symbol="α", low=0.0)
    kd_temperature: float = setting(20.0, "temperature of that distillation", symbol="T", low=1e-3, high=1e6)
    kd_reduction: str = setting(
        "mean",
        "mean of the distillation: mean also divides by the class count, as GDFQ does; batchmean does not",
        choices=REDUCTIONS,
    )
    ce_gate: float = setting(
        1.0,
        "leaves out the cross-entropy of images to whose label the teacher gives a probability of 1 minus this, or "
        "less (SynQ); 1: of none",
        low=1e-6,
        high=1.0,
    )
    disagreement_weight: float = setting(
        0.0, "weight of -T^2 H(softmax((t - s) / T)) in L_S, for logits t, s and entropy H (AdaDFQ's game)", low=0.0
    )
    feature_weight: float = setting(
        0.0, "weight of the gap in features behind residual blocks in L_S (HAST: 1000 at student_lr 1e-5)", low=0.0
    )
    flip_share: float = setting(
        0.0,
        "share of a layer's integer weights that a step of the student must change (AIT: 0.001); 0: none",
        low=0.0,
        high=0.5,
    )
    allow_partial: bool = setting(False, "leave in floating point what cannot be quantized, and go on")
    onnx: bool = setting(
        False,
        "also write student.onnx, checked in onnxruntime, and measure its latency beside the network in floating point",
    )

    def require_consistent(self) -> None:
        """Raise InputError if settings that are fine one by one do not go together."""
        super().require_consistent()
        self._require_something_to_learn()
        if self.method == "gdfq" and self.generator_updates == "warmup" and self.warmup_epochs == 0:
            raise InputError("generator_updates is warmup, and warmup_epochs 0 train nothing; raise warmup_epochs")
        if self.method not in ("dfq", "zeroq") and self.warmup_epochs + self.range_epochs >= self.epochs:
            raise InputError(
                f"epochs ({self.epochs}) must exceed warmup_epochs + range_epochs "
                f"({self.warmup_epochs} + {self.range_epochs}); raise epochs"
            )

    @property
    def phases(self) -> tuple[str, ...]:
        """Return the phase of each epoch. All methods that train the student train it for the same number of epochs.

        With method blockwise, each block is one more phase.
        """
        warm_up, tracking = (WARM_UP,) * self.warmup_epochs, (TRACKING,) * self.range_epochs
        training = (TRAINING,) * (self.epochs - self.warmup_epochs - self.range_epochs)
        others = {
            "blockwise": (*warm_up, REFINING, *tracking),
            "dfq": (),
            "zeroq": tracking,
            "zeroq-kd": tracking + training,
            "dfc": tracking + training,
        }
        return others.get(self.method, warm_up + tracking + training)

    def block_updates(self, steps: int) -> int:
        """Return the updates of each block: as asked for, or those of the epochs that warm-up and range tracking leave.

        steps: the batches per epoch.
        """
        if self.block_steps is not None:
            return self.block_steps
        return (self.epochs - self.warmup_epochs - self.range_epochs) * steps

    def _require_something_to_learn(self) -> None:
        losses = ("ce_weight", "kd_weight", "disagreement_weight", "feature_weight")
        trained = self.method not in ("dfq", "zeroq", "blockwise")
        if trained and not any(getattr(self, name) for name in losses):
            raise InputError(
                "ce_weight, kd_weight, disagreement_weight and feature_weight are all 0, so that the student has "
                "nothing to learn; raise one of them"
            )
        resting = self.method != "gdfq" or self.generator_updates == "warmup"
        if not (resting or self.class_weight or self.bns_weight or self.adaptability_weight):
            raise InputError(
                "class_weight, bns_weight and adaptability_weight are all 0, so that the generator has nothing to "
                "learn; raise one of them"
            )

    @property
    def generator_spec(self) -> GeneratorSpec | None:
        """Return the generator for this seed; None for a method without a generator."""
        return super().generator_spec if self.method in GENERATOR_METHODS else None

    @property
    def quantization(self) -> Quantization:
        """Return the settings of the quantization, but for bits of single layers, which are chosen by ``size``."""
        names = {field.name for field in dataclasses.fields(Quantization)} - {"layer_bits"}
        chosen = {name: getattr(self, name) for name in names}
        blockwise = self.method == "blockwise"
        chosen["weight_ranges"] = self.weight_ranges or ("mse" if blockwise else "minmax")
        chosen["activation_ranges"] = self.activation_ranges or ("by-bits" if blockwise else "minmax")
        return Quantization(**chosen)
