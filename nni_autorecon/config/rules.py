"""Which setting is used when: one table for every setting that only some methods or strategies use."""

from __future__ import annotations

MULTI_TRIAL = ("random", "evolution", "tpe")


STRATEGIES = ("autorecon", "enas", *MULTI_TRIAL)


STRATEGY_SETTINGS: dict[tuple[str, ...], tuple[str, ...]] = {
    ("autorecon",): (
        "relaxation", "sampling", "temperature_start", "temperature_end", "temperature_schedule", "architecture_init",
        "mac_penalty", "entropy_penalty", "adaptability_weight", "student_bits", "student_lr", "tournament",
        "tournament_steps",
    ),
    ("autorecon", "enas"): (
        "architecture_lr", "architecture_beta1", "architecture_beta2", "architecture_decay", "inherit_weights",
    ),
    MULTI_TRIAL: ("candidate_steps",),
}  # fmt: skip
"""Which settings of a search only some strategies use."""


IDLE_SETTINGS = {"tournament": ("tournament_steps",), "adaptability_weight": ("student_bits", "student_lr")}
"""Which do nothing while another one is 0."""


USED_BY: dict[tuple[str, ...], tuple[str, ...]] = {
    ("gdfq",): (
        "generator_scale", "width", "latent_dim", "generator_updates", "mixed_share",
        "weight_lr", "weight_beta1", "weight_beta2", "weight_decay", "weight_schedule",
    ),
    ("zeroq", "zeroq-kd", "dfc"): ("image_count",),
    ("dfq", "zeroq", "zeroq-kd", "dfc"): ("image_steps", "image_lr"),
    ("gdfq", "dfc"): ("bns_form",),
    ("gdfq", "zeroq", "zeroq-kd", "dfc"): ("activation_ranges", "range_epochs", "steps"),
    ("gdfq", "zeroq-kd", "dfc"): (
        "epochs", "warmup_epochs", "student_lr", "student_momentum", "student_decay", "student_schedule",
        "student_clip", "range_lr", "ce_weight", "ce_gate", "kd_weight", "kd_temperature", "kd_reduction",
        "disagreement_weight", "feature_weight", "hard_step", "flip_share",
    ),
}  # fmt: skip
"""The settings that are of use to some methods alone."""
