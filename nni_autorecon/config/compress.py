"""Settings of stage 2 of Algorithm 1, and of the methods of Table 5."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from ..errors import InputError
from .common import BITS, bit_widths
from .presets import BEST, GDFQ, LOSSES
from .rules import USED_BY
from .settings import Presets, setting
from .student import StudentConfig

METHODS = ("gdfq", "dfq", "zeroq", "zeroq-kd", "dfc")


RANGES = ("minmax", "percentile", "mse")


WARM_UP, TRACKING, TRAINING = "warm-up", "ranges", "training"
"""Phases of stage 2: the generator alone learns, the ranges of activations are tracked, the student learns."""


@dataclass(frozen=True, kw_only=True)
class CompressConfig(StudentConfig):
    """Stage 2 of Algorithm 1, and the methods of Table 5."""

    PRESETS: ClassVar[Presets] = {
        "preset": {"paper": GDFQ, "gdfq": {**GDFQ, "generator": "gdfq"}, "best": BEST},
        "losses": LOSSES,
    }

    preset: str | None = setting(
        None, "for 32×32 images: gdfq, its training with its generator; paper, the same with the one searched; best, "
        "ours for a short training; other settings override its own",
        choices=("paper", "gdfq", "best"),
    )  # fmt: skip
    losses: str | None = setting(
        None, "what these papers add to GDFQ's losses, or put in their place; other settings override its own",
        choices=tuple(LOSSES),
    )  # fmt: skip
    method: str = setting(
        "gdfq",
        "gdfq: a generator trains along, and the student on its images; without a generator: dfq (statistics alone), "
        "zeroq (distilled images set the ranges), zeroq-kd (and train the student), dfc (the same, images of classes)",
        choices=METHODS,
    )
    image_count: int = setting(256, "images that are distilled (methods zeroq, zeroq-kd, dfc)", low=2)
    image_steps: int = setting(200, "updates of each distilled image", low=1)
    image_lr: float = setting(0.5, "Adam learning rate of distilled images", low=0.0, high=1e6)
    bits: str = setting("w4a4", "bit widths of weights and activations", pattern=BITS)
    protocol: str = setting(
        "gdfq",
        "what is quantized beside weights: gdfq, activation functions; integer, all that an integer engine stores",
        choices=("gdfq", "integer"),
    )
    input_bits: int | None = setting(None, "bits of the network input in protocol integer (default: 8)", low=2, high=8)
    first_bits: int | None = setting(None, "bits of the first layer's weights (default: as all)", low=2, high=8)
    last_bits: int | None = setting(
        None, "bits of the last layer's weights and, in protocol integer, input (default: as all)", low=2, high=8
    )
    weight_ranges: str = setting("minmax", "ranges of weights, per output channel", choices=RANGES)
    activation_ranges: str = setting("minmax", "ranges of activations, per batch tracked", choices=RANGES)
    range_lr: float = setting(
        0.0, "Adam learning rate of the logarithms of these ranges while the student trains, by its schedule (LSQ); 0: "
        "they rest", low=0.0,
    )  # fmt: skip
    epochs: int = setting(14, "epochs in all, warm-up and range tracking included", symbol="L2", low=1)
    steps: int = setting(50, "batches per epoch", symbol="T2", low=1)
    warmup_epochs: int = setting(4, "first epochs: only the generator is trained", low=0)
    range_epochs: int = setting(1, "epochs after the warm-up in which activation ranges are tracked", low=1)
    generator_updates: str = setting(
        "always", "train the generator throughout (GDFQ) or only in the warm-up (Algorithm 1)",
        choices=("always", "warmup"),
    )  # fmt: skip
    mixed_share: float = setting(
        0.0, "share of the generator's images that belong to several classes at once (Qimera: 0.4)", low=0.0, high=1.0
    )
    mixed_classes: int = setting(2, "classes of each of these", low=2)
    low_pass: float = setting(
        0.0, "standard deviation in pixels of a Gaussian over all images (SynQ); 0: none", low=0.0
    )
    class_weight: float = setting(
        1.0, "weight of the cross-entropy in the generator's objective once the student trains (AdaDFQ: 0)", low=0.0
    )
    adaptability_weight: float = setting(
        0.0, "weight of AdaDFQ's game in the generator's objective once the student trains (AdaDFQ: 1)", low=0.0
    )
    hard_step: float = setting(
        0.0, "step on an image along the sign of the student's gradient before the student learns from it (HAST)",
        low=0.0,
    )  # fmt: skip
    student_clip: float | None = setting(None, "largest gradient norm of the student (default: no clipping)", low=1e-9)
    ce_weight: float = setting(1.0, "weight of the cross-entropy in L_S", low=0.0)
    kd_weight: float = setting(1.0, "weight of the distillation term in L_S", symbol="α", low=0.0)
    kd_temperature: float = setting(20.0, "temperature of the distillation term", symbol="T", low=1e-3, high=1e6)
    kd_reduction: str = setting(
        "mean", "mean also divides by the class count (as GDFQ does); batchmean does not",
        choices=("mean", "batchmean"),
    )  # fmt: skip
    ce_gate: float = setting(
        1.0, "cross-entropy in L_S only where the teacher's probability of the label exceeds 1 - this (SynQ); 1: all",
        low=1e-6, high=1.0,
    )  # fmt: skip
    disagreement_weight: float = setting(
        0.0, "weight of -T^2 H(softmax((t - s) / T)) in L_S, the student's side of AdaDFQ's game", low=0.0
    )
    feature_weight: float = setting(
        0.0, "weight of feature alignment at residual blocks in L_S (HAST: 1000 for CIFAR-10 at 1e-5)", low=0.0
    )
    flip_share: float = setting(
        0.0, "share of the integers of each weight that a step of the student must change (AIT: 0.001); 0: any step",
        low=0.0, high=0.5,
    )  # fmt: skip
    allow_partial: bool = setting(False, "go on when parts of the network cannot be quantized")

    def require_consistent(self) -> None:
        if self.method != "gdfq" and self.generator is not None:
            given = " and ".join(self._presets_of(["generator"]) or ["--generator"])
            raise InputError(f"method {self.method} takes no generator; leave out {given}, or use method gdfq")
        super().require_consistent()
        self._require_used()
        if self.protocol == "gdfq" and self.input_bits is not None:
            raise InputError("protocol gdfq leaves the network input unquantized; use protocol integer with input_bits")
        if self.method == "gdfq" and self.generator_updates == "warmup" and self.warmup_epochs == 0:
            raise InputError("generator_updates = warmup with warmup_epochs = 0 never trains it; raise warmup_epochs")
        if self.method not in ("dfq", "zeroq") and self.warmup_epochs + self.range_epochs >= self.epochs:
            raise InputError(
                f"epochs ({self.epochs}) must exceed warmup_epochs + range_epochs "
                f"({self.warmup_epochs} + {self.range_epochs}); raise epochs"
            )

    @property
    def phases(self) -> tuple[str, ...]:
        """That of each epoch. All methods that train the student train it for the same number of epochs."""
        warm_up, tracking = (WARM_UP,) * self.warmup_epochs, (TRACKING,) * self.range_epochs
        training = (TRAINING,) * (self.epochs - self.warmup_epochs - self.range_epochs)
        without_warm_up = {"dfq": (), "zeroq": tracking, "zeroq-kd": tracking + training, "dfc": tracking + training}
        return without_warm_up.get(self.method, warm_up + tracking + training)

    def _require_used(self) -> None:
        """Raise InputError if a refinement is asked for where nothing would come of it."""
        defaults, idle = CompressConfig(), not (self.ce_weight or self.kd_weight)
        resting = self.method != "gdfq" or self.generator_updates == "warmup"
        for useless, names, why in (
            *(
                (self.method not in methods, names, f"method {self.method} is given")
                for methods, names in USED_BY.items()
            ),
            (self.bns_weight == 0, ("bns_form",), "bns_weight is 0"),
            (resting, ("class_weight", "adaptability_weight"), "no generator learns while the student does"),
            (self.mixed_share == 0, ("mixed_classes",), "mixed_share is 0"),
            (self.ce_weight == 0, ("ce_gate",), "ce_weight is 0"),
            (self.kd_weight == 0, ("kd_reduction",), "kd_weight is 0"),
            (not (self.kd_weight or self.disagreement_weight), ("kd_temperature",), "kd_weight is 0"),
        ):
            given = [name for name in names if useless and getattr(self, name) != getattr(defaults, name)]
            if given:
                remedy = f"leave out {' and '.join(self._presets_of(given) or given)}"
                raise InputError(f"{why}, so that {', '.join(given)} would do nothing; {remedy}")
        if idle and not (self.disagreement_weight or self.feature_weight) and self.method not in ("dfq", "zeroq"):
            raise InputError(
                "ce_weight, kd_weight, disagreement_weight and feature_weight are all 0, so that the student has "
                "nothing to learn; raise one of them"
            )
        if not (resting or self.class_weight or self.bns_weight or self.adaptability_weight):
            raise InputError(
                "class_weight, bns_weight and adaptability_weight are all 0, so that the generator has nothing to "
                "learn; raise one of them"
            )

    def _presets_of(self, names: list[str]) -> list[str]:
        """The presets that one of them has its value from, as ``losses hast``."""
        said = {preset: meanings.get(str(getattr(self, preset)), {}) for preset, meanings in self.PRESETS.items()}
        return [
            f"{preset} {getattr(self, preset)}"
            for preset, meaning in said.items()
            if any(name in meaning and meaning[name] == getattr(self, name) for name in names)
        ]

    @property
    def generator_spec(self) -> str | None:
        return super().generator_spec if self.method == "gdfq" else None

    @property
    def quantization(self) -> dict[str, Any]:
        """How ``quantize_network`` is to be called."""
        names = ("protocol", "input_bits", "first_bits", "last_bits", "weight_ranges", "activation_ranges")
        return {
            **bit_widths(self.bits),
            **{name: getattr(self, name) for name in names},
            "allow_partial": self.allow_partial,
        }
