"""A command ends in the next one to type, with the words that name the same network."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from ..config.common import NETWORK, Config
from ..config.compress import CompressConfig
from ..config.distill import DistillConfig
from ..config.search import SearchConfig
from ..errors import InputError
from .new_folder import as_flags
from .screen import command_line


def after_search(config: SearchConfig, genotype: Path) -> str:
    """Compress the same network by the generator found."""
    values = {name: getattr(config, name) for name in NETWORK if getattr(config, name) != getattr(SearchConfig, name)}
    if config.bns_weight == 0:  # the network has no BatchNorm
        values["bns_weight"] = 0
    return command_line("compress", *as_flags({**values, "genotype": genotype}))


def after_experiment(details: Mapping[str, Any], genotype: Path) -> str:
    """Compress the network of a genotype that an experiment found; say nothing if it cannot be named from here."""
    try:
        config = SearchConfig.from_record(details.get("config", {}), source=str(genotype))
    except InputError:
        return ""
    return after_search(config, genotype) if all(Path(file).exists() for file in config.files.values()) else ""


def after_student(config: CompressConfig | DistillConfig, folder: Path) -> str:
    """Write a student as ONNX, if it can be and has not been; else make a report of it."""
    if not isinstance(config, CompressConfig) or config.onnx or find_spec("onnxscript") is None:
        return command_line("report", str(folder), "-o", f"{folder}-report")
    return command_line("to-onnx", str(folder / "student.safetensors"), *code(config))


def code(config: Config) -> list[str]:
    """Return the flag that names the network's code, which no file of a student may name by itself."""
    from ..teacher.sources import names_code

    return ["--teacher", config.teacher] if names_code(config.teacher) else []
