"""These are the settings of stage 1 of Algorithm 1: their types, defaults, ranges and paper symbols."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from ..errors import InputError
from ..quantization.specification import Bits
from ..shapes import LARGEST_SIZE
from .common import SCHEDULES, Config
from .presets import SEARCH_PRESETS
from .rules import MULTI_TRIAL, SEARCH_RULES, STRATEGIES, Rule
from .settings import Presets, setting

if TYPE_CHECKING:
    from torch import Tensor


RELAXATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "logits": lambda alpha: alpha,  # this is log p up to a constant, which the softmax of the scores removes
    "paper": lambda alpha: alpha.softmax(-1),
}
"""Each maps an edge's architecture parameters α [..., F] to the values to which Gumbel noise is added: log p, or p as
in eq. 7."""

TEMPERATURES: dict[str, Callable[[float, float, float], float]] = {
    "constant": lambda start, end, progress: start,
    "linear": lambda start, end, progress: start + (end - start) * progress,
    "exponential": lambda start, end, progress: start * (end / start) ** progress,
    "cosine": lambda start, end, progress: end + (start - end) * (1 + math.cos(math.pi * progress)) / 2,
}
"""Each path maps ``start``, ``end`` and a progress in [0, 1] to the temperature."""

FINAL_VALIDATION_STEPS = 16
"""The generator found is measured on this many batches."""


@dataclass(frozen=True, kw_only=True)
class SearchConfig(Config):
    """Settings of stage 1 of Algorithm 1. The defaults search a generator for the digits teacher in about a minute.

    Args:
        **settings: Settings by name, such as ``seed=1``; all others have their defaults, or what a preset sets.

    Raises:
        InputError: If a name is not a setting, or a value is of a wrong type or out of range.

    Example:
        >>> SearchConfig(preset="best").epochs
        37
    """

    PRESETS: ClassVar[Presets] = {"preset": SEARCH_PRESETS}
    RULES: ClassVar[tuple[Rule, ...]] = SEARCH_RULES
    GROUPS: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "what most people set": (
            "teacher", "checkpoint", "image_size", "mean", "std", "preset", "seed", "epochs", "width", "mac_penalty",
            "device", "threads",
        ),
        "the network and the loss (eq. 1)": (
            "num_classes", "checkpoint_key", "bns_weight", "bns_form", "batch_size", "latent_dim",
        ),
        "the search": ("strategy", "weight_steps", "architecture_steps", "validation_steps", "candidate_steps"),
        "the relaxation (eq. 4 and 7)": (
            "relaxation", "sampling", "temperature_start", "temperature_end", "temperature_schedule",
        ),
        "weights W": (
            "weight_lr", "weight_schedule", "weight_beta1", "weight_beta2", "weight_decay", "inherit_weights",
            "final_steps",
        ),
        "architecture parameters": (
            "architecture_lr", "architecture_beta1", "architecture_beta2", "architecture_decay", "architecture_init",
            "entropy_penalty",
        ),
        "a game against a student, and a tournament": (
            "adaptability_weight", "student_bits", "student_lr", "tournament", "tournament_steps",
        ),
    }  # fmt: skip

    preset: str | None = setting(
        None,
        "sets other settings, for 32×32 images: paper, the paper's; best, ours for minutes on a CPU; a setting that "
        "is given stands",
        choices=SEARCH_PRESETS,
    )
    strategy: str = setting(
        "autorecon",
        "autorecon, or one of NNI's at the same cost: enas, by shared weights and a controller; random, evolution and "
        "tpe, which train one candidate after another",
        choices=STRATEGIES,
    )
    weight_lr: float = setting(0.016, "Adam learning rate of the generator's weights W", low=0.0)
    weight_schedule: str = setting(
        "cosine",
        "course of that learning rate while one generator is trained, a candidate or the one found; while "
        "candidates share weights it stays",
        choices=SCHEDULES,
    )
    latent_dim: int = setting(100, "dimensions of the latent vector z", symbol="z", low=3, high=LARGEST_SIZE)
    width: int = setting(
        16, "channels of every node of the generator (in the paper: 64)", symbol="C", low=1, high=LARGEST_SIZE
    )
    epochs: int = setting(8, "search epochs", symbol="L1", low=1)
    weight_steps: int = setting(
        16, "batches per epoch that update the generator's weights W, with alpha fixed", symbol="T1", low=1
    )
    architecture_steps: int = setting(
        16,
        "batches per epoch that update the architecture parameters alpha, or reward ENAS's controller, with W fixed",
        symbol="V1",
        low=1,
    )
    validation_steps: int = setting(8, "batches on which the loss is measured after each epoch or candidate", low=1)
    candidate_steps: int = setting(
        8,
        "batches that train each candidate of strategies random, evolution and tpe; there are as many candidates as "
        "epochs * (weight_steps + architecture_steps) batches allow",
        low=1,
    )
    relaxation: str = setting(
        "logits",
        "what Gumbel noise is added to: the logarithms of the operations' probabilities (logits), or the "
        "probabilities, as eq. 7 prints it (paper)",
        choices=RELAXATIONS,
    )
    sampling: str = setting(
        "soft",
        "soft mixes the operations of an edge by their weights; hard runs the one that is sampled, with a "
        "straight-through gradient",
        choices=("soft", "hard"),
    )
    temperature_start: float = setting(
        5.0, "temperature of the Gumbel softmax in the first epoch", symbol="τ", low=1e-3
    )
    temperature_end: float = setting(1.5, "that in the last epoch", symbol="τ", low=1e-3)
    temperature_schedule: str = setting("exponential", "path between the two", choices=TEMPERATURES)
    architecture_lr: float = setting(
        0.1, "Adam learning rate of the architecture parameters, or of ENAS's controller", symbol="α", low=0.0
    )
    architecture_beta1: float = setting(0.5, "Adam beta 1 for the same", low=0.0, high=0.9999)
    architecture_beta2: float = setting(0.999, "Adam beta 2 for the same", low=0.0, high=0.999999)
    architecture_decay: float = setting(0.0, "Adam weight decay for the same", low=0.0)
    architecture_init: float = setting(1e-3, "standard deviation of alpha at the start", low=0.0)
    mac_penalty: float = setting(
        0.0,
        "weight of the generator's expected multiply-accumulates (1: those of uniform alpha) in the loss of alpha, "
        "so that a cheap one is found",
        low=0.0,
    )
    entropy_penalty: float = setting(
        0.0,
        "weight of the entropy of an edge's probabilities (1: that of uniform ones) in the loss of alpha, so that "
        "edges get decided; it is reached by equal steps over the epochs",
        low=0.0,
    )
    adaptability_weight: float = setting(
        0.0,
        "weight, beside L_r, of a game against a low-bit student that learns along (AdaDFQ), from the second "
        "quarter of the epochs on; 0: none",
        low=0.0,
    )
    student_bits: Bits = setting(Bits("w4a4"), "bit widths of that student")  # noqa: RUF009 (immutable)
    student_lr: float = setting(1e-3, "its SGD learning rate", low=0.0)
    tournament: int = setting(
        0,
        "architectures drawn from softmax(alpha) at the end, which compete with the most probable one: all are "
        "trained a little from scratch, and the best is taken",
        low=0,
    )
    tournament_steps: int = setting(24, "batches that train each of these", low=1)
    inherit_weights: bool = setting(
        False, "start the final training of the found generator from the weights of the search, not from scratch"
    )
    final_steps: int = setting(150, "batches that train the found generator; its L_r afterwards is the result", low=1)

    @property
    def epoch_steps(self) -> int:
        """Return the batches of an epoch."""
        return self.weight_steps + self.architecture_steps

    @property
    def candidates(self) -> int:
        """Return how many candidates a multi-trial strategy can train at the cost of AutoReCon's search."""
        return self.epochs * self.epoch_steps // self.candidate_steps

    @property
    def updates(self) -> int:
        """Return the search's batches before the final training: they update W or α, or reward a controller."""
        if self.strategy in MULTI_TRIAL:
            return self.candidates * self.candidate_steps
        return self.epochs * self.epoch_steps + self.tournament_updates

    @property
    def tournament_updates(self) -> int:
        """Return how many of these batches train the architectures that compete at the end."""
        return (self.tournament + 1) * self.tournament_steps if self.tournament else 0

    def require_consistent(self) -> None:
        """Raise InputError if a given setting would have no effect, or if settings allow no candidate."""
        self.require_used()
        if self.adaptability_weight and self.epochs == 1:
            raise InputError("adaptability_weight takes effect from the second epoch on; give 2 epochs or more")
        if self.strategy == "enas" and self.architecture_steps == 1:
            raise InputError("strategy enas compares the architectures of an epoch; give architecture_steps 2 or more")
        if self.strategy in MULTI_TRIAL and not self.candidates:
            raise InputError(
                f"candidate_steps ({self.candidate_steps}) exceeds epochs * (weight_steps + architecture_steps) "
                f"({self.epochs * self.epoch_steps}); lower it"
            )
