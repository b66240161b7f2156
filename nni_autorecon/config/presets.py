"""Presets are settings that go together: those of papers, by their names, and ours."""

from __future__ import annotations

from typing import Any

PAPER_SEARCH = {
    "relaxation": "paper",
    "bns_weight": 0.1,
    "width": 64,
    "batch_size": 64,
    "epochs": 60,
    "weight_steps": 100,
    "architecture_steps": 50,
    "final_steps": 2000,
    "weight_lr": 2e-3,
    "weight_schedule": "constant",
    "architecture_lr": 0.02,
}
"""The paper's relaxation and width, on 32×32 images. All settings that it leaves open, such as rates, are ours."""
BEST_SEARCH = {"bns_weight": 1.0, "epochs": 37}
"""These found the best generators for a ResNet-20, in 1,184 batches; eight random genotypes cost about as much."""
SEARCH_PRESETS: dict[str, dict[str, Any]] = {"paper": PAPER_SEARCH, "best": BEST_SEARCH}
GDFQ = {
    "method": "gdfq",
    "bns_weight": 0.1,
    "batch_size": 200,
    "epochs": 400,
    "steps": 200,
    "student_lr": 1e-4,
    "student_schedule": "step",
    "weight_schedule": "step",
}
"""The paper adopts GDFQ's training for CIFAR (Xu et al., 2020)."""
BEST = {
    "method": "gdfq",
    "bns_form": "kl",
    "bns_weight": 100.0,
    "weight_lr": 3e-3,
    "batch_size": 64,
    "activation_ranges": "percentile",
    "range_lr": 0.01,
    "feature_weight": 100.0,
}
"""These made the best w4a4 and w3a3 students of a ResNet-20 in some hundred batches, for which they were chosen."""
COMPRESS_PRESETS: dict[str, dict[str, Any]] = {
    "paper": {**GDFQ, "generator": "searched"},
    "gdfq": {**GDFQ, "generator": "gdfq"},
    "best": BEST,
}
GDFQ_LOSSES: dict[str, Any] = {
    "class_weight": 1.0,
    "adaptability_weight": 0.0,
    "ce_weight": 1.0,
    "ce_gate": 1.0,
    "kd_weight": 1.0,
    "kd_reduction": "mean",
    "disagreement_weight": 0.0,
    "feature_weight": 0.0,
    "mixed_share": 0.0,
    "low_pass": 0.0,
    "hard_step": 0.0,
    "flip_share": 0.0,
}
_CHANGES: dict[str, dict[str, Any]] = {
    "gdfq": {},
    "batchmean": {"kd_reduction": "batchmean"},
    "adadfq": {
        "class_weight": 0.0,
        "adaptability_weight": 1.0,
        "ce_weight": 0.0,
        "kd_weight": 0.0,
        "disagreement_weight": 1.0,
    },
    "hast": {"feature_weight": 100.0, "hard_step": 0.01},  # HAST has 1000 at a tenth of GDFQ's learning rate
    "qimera": {"mixed_share": 0.4},
    "synq": {"low_pass": 0.5, "ce_gate": 0.5},
    "ait": {"ce_weight": 0.0, "flip_share": 0.001},
}
LOSSES = {name: GDFQ_LOSSES | changes for name, changes in _CHANGES.items()}
"""Changes of other papers to GDFQ's losses, by the name of the paper; the rest, such as the weight of the distillation
term, stays GDFQ's. ``batchmean`` does not divide that term by the class count."""
