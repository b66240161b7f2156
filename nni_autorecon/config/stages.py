"""One table says what a stage is: its name, its settings, its metrics and its files."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from .common import Config
from .compress import CompressConfig
from .distill import DistillConfig
from .search import SearchConfig

COSTS = ("generator_macs", "generator_parameters", "seconds")
TAKEN_AWAY = ("file_bytes", "latency", "float_latency")
"""A student's file costs its user bytes, and milliseconds for an image, beside those of the float network."""
PROGRAMS = ("nni-autorecon", "nni_autorecon")
"""The command line has these names: its own, and that of the package, after ``python -m``."""
_COMPRESS_FIGURES = ("loss.png", "agreement.png", "images.png", "layers.png", "frontier.png")
ACCURACIES = ("accuracy", "teacher_accuracy", "ranges_only_accuracy", "agreement")


@dataclass(frozen=True)
class Stage:
    """A stage; the command that runs it, also as a trial, and the script for trials have its name."""

    name: str
    help: str
    """The command's line in the help."""
    config: type[Config]
    default: str
    """The metric that NNI's ``default`` stands for."""
    symbol: str
    """The name of that metric for a person."""
    metrics: tuple[str, ...]
    """The metrics of a result, under their names in result.json."""
    files: tuple[str, ...]
    """The files that the stage leaves in its folder beside the files of every run."""

    @property
    def makes_student(self) -> bool:
        """Return True if the stage's result is a student."""
        return self.default == "agreement"


STAGES = {
    stage.name: stage
    for stage in (
        Stage(
            "search",
            "search an architecture for the generator of images (stage 1, optional)",
            SearchConfig,
            "loss",
            "L_r",
            ("loss", "class_loss", "bns_loss", "updates", *COSTS),
            ("genotype.json", "probabilities.json", "loss.png", "probabilities.png", "genotype.png", "images.png"),
        ),
        Stage(
            "compress",
            "make a quantized student of a trained network, the teacher (stage 2)",
            CompressConfig,
            "agreement",
            "agreement",
            (*ACCURACIES, *COSTS, *TAKEN_AWAY),
            ("student.safetensors", "student.onnx", "images.npz", *_COMPRESS_FIGURES),
        ),
        Stage(
            "distill",
            "train another, smaller network to answer as the teacher does",
            DistillConfig,
            "agreement",
            "agreement",
            (*ACCURACIES, *COSTS),
            ("student.pt", "loss.png", "agreement.png", "images.png"),
        ),
    )
}


def stage_of_settings(settings: Mapping[str, Any]) -> Stage:
    """Return the stage to which ``settings`` belong: it has most names in common with them."""
    return max(STAGES.values(), key=lambda stage: len(settings.keys() & stage.config.__dataclass_fields__.keys()))


def stage_of_command(command: str) -> Stage | None:
    """Return the stage that a ``trialCommand`` runs, by its command or its script; return None if it runs no stage.

    Raises ValueError if the command cannot be read.
    """
    words = [Path(word).name for word in shlex.split(command)]
    commands = {word for program, word in pairwise(words) if program in PROGRAMS}
    return next((stage for stage in STAGES.values() if stage.name in commands or f"{stage.name}.py" in words), None)
