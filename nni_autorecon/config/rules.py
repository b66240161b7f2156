"""One table says when each setting is used, for settings that only some methods, strategies or weights use."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from .generator_spec import DRAWN

MULTI_TRIAL = ("random", "evolution", "tpe")
STRATEGIES = ("autorecon", "enas", *MULTI_TRIAL)
METHODS = ("gdfq", "blockwise", "dfq", "zeroq", "zeroq-kd", "dfc")
GENERATOR_METHODS = ("gdfq", "blockwise")
"""These methods take their images from a generator."""


class Rule(NamedTuple):
    """The settings ``names`` are used only if one of the settings ``when`` has one of ``values``.

    Worked example: ``image_count`` is used if ``method`` is zeroq, zeroq-kd or dfc.
    """

    names: tuple[str, ...]
    when: tuple[str, ...]
    values: tuple[str, ...] | None = None
    """None stands for all values but ``others``."""
    others: tuple[Any, ...] = (0,)

    def holds(self, settings: Mapping[str, Any]) -> bool:
        """Return True if the settings are used, also if the deciding setting is unknown (None or absent)."""
        return any(self._decides(settings.get(name)) for name in self.when)

    def _decides(self, value: Any) -> bool:
        if self.values is None:
            return value not in self.others
        return value is None or value in self.values

    def reason(self, settings: Mapping[str, Any]) -> str:
        """Return why the settings are not used, as in ``mixed_share is 0``."""
        return " and ".join(f"{name} is {_plain(settings[name])}" for name in self.when)


def _plain(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


SEARCH_RULES = (
    Rule(
        (
            "relaxation", "sampling", "temperature_start", "temperature_end", "temperature_schedule",
            "architecture_init", "mac_penalty", "entropy_penalty", "adaptability_weight", "student_bits", "student_lr",
            "tournament", "tournament_steps",
        ),
        ("strategy",), ("autorecon",),
    ),
    Rule(
        (
            "architecture_lr", "architecture_beta1", "architecture_beta2", "architecture_decay", "inherit_weights",
        ),
        ("strategy",), ("autorecon", "enas"),
    ),
    Rule(("candidate_steps",), ("strategy",), MULTI_TRIAL),
    Rule(("tournament_steps",), ("tournament",)),
    Rule(("student_bits", "student_lr"), ("adaptability_weight",)),
    Rule(("temperature_end",), ("temperature_schedule",), ("linear", "exponential", "cosine")),
    Rule(("bns_form",), ("bns_weight",)),
)  # fmt: skip

OF_TRAINED_GENERATORS = (
    "genotype",
    "width",
    "latent_dim",
    "generator_scale",
    "warmup_epochs",
    "weight_lr",
    "weight_schedule",
    "weight_beta1",
    "weight_beta2",
    "weight_decay",
    "mixed_share",
    "mixed_classes",
    "low_pass",
)
"""Images that are drawn use none of these settings."""

COMPRESS_RULES = (
    Rule(OF_TRAINED_GENERATORS, ("generator",), others=DRAWN),
    Rule(
        (
            "generator", "genotype", "generator_scale", "width", "latent_dim", "mixed_share", "weight_lr",
            "weight_beta1", "weight_beta2", "weight_decay", "weight_schedule",
        ),
        ("method",), GENERATOR_METHODS,
    ),
    Rule(("generator_updates", "class_weight", "adaptability_weight"), ("method",), ("gdfq",)),
    Rule(
        ("minutes", "block_images", "refine_steps", "block_steps", "block_batch_size", "block_rate"),
        ("method",), ("blockwise",),
    ),
    Rule(("low_pass",), ("method",), (*GENERATOR_METHODS, "zeroq", "zeroq-kd", "dfc")),
    Rule(("image_count", "image_steps", "image_lr"), ("method",), ("zeroq", "zeroq-kd", "dfc")),
    Rule(("bns_form",), ("method",), (*GENERATOR_METHODS, "dfc")),
    Rule(("activation_ranges", "range_epochs", "steps"), ("method",), (*GENERATOR_METHODS, "zeroq", "zeroq-kd", "dfc")),
    Rule(("epochs", "warmup_epochs"), ("method",), (*GENERATOR_METHODS, "zeroq-kd", "dfc")),
    Rule(
        (
            "student_lr", "student_momentum", "student_decay", "student_schedule",
            "student_clip", "range_lr", "ce_weight", "ce_gate", "kd_weight", "kd_temperature", "kd_reduction",
            "disagreement_weight", "feature_weight", "hard_step", "flip_share",
        ),
        ("method",), ("gdfq", "zeroq-kd", "dfc"),
    ),
    Rule(("class_weight", "adaptability_weight"), ("generator_updates",), ("always",)),
    Rule(("input_bits",), ("protocol",), ("integer",)),
    Rule(("bns_form",), ("bns_weight",)),
    Rule(("mixed_classes",), ("mixed_share",)),
    Rule(("ce_gate",), ("ce_weight",)),
    Rule(("kd_reduction",), ("kd_weight",)),
    Rule(("kd_temperature",), ("kd_weight", "disagreement_weight")),
)  # fmt: skip
