"""A run's folder keeps more than a report's tables need: curves, the generator found, images, bits by layer."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import pandas as pd

from ..errors import InputError, one_line
from ..figures.architecture import probabilities_info
from ..figures.curves import History
from ..files import read_text
from ..generator.genotype import Genotype
from ..quantization.coverage import Coverage, Gap
from ..runs.records import FINISHED, Run, read_run_file
from ..student.layer_bits import MixedPrecision

Read = TypeVar("Read")
PNG = b"\x89PNG\r\n\x1a\n"
"""Every PNG begins so."""


@dataclass(frozen=True)
class Layer:
    """A layer with a quantized weight; its SQNR in dB and its share of the file are None if they were not measured."""

    name: str
    kind: str
    shape: tuple[int, ...]
    bits: int
    sqnr: float | None = None
    share: float | None = None


@dataclass(frozen=True)
class Layers:
    """The parts of a student that are quantized, counted and layer by layer, and those that stay in floating point."""

    counts: tuple[str, ...]
    quantized: tuple[Layer, ...]
    left: tuple[Gap, ...]
    mixed_precision: Mapping[str, Any] | None
    """The record of how bits were chosen for a size, if they were."""


@dataclass(frozen=True)
class Artifacts:
    """The parts of a run's folder that a page shows; those that the run did not leave are None or empty."""

    history: History = ()
    genotype: Genotype | None = None
    probabilities: Mapping[str, Mapping[str, float]] | None = None
    images: bytes | None = None
    """This is a PNG."""
    layers: Layers | None = None


def read_artifacts(run: Run) -> Artifacts:
    """Return what ``run`` left; an unfinished one left its curves alone. Raises InputError for a damaged file."""
    if run.folder is None:
        return Artifacts()
    history = _read(run.folder / "metrics.csv", _history) or ()
    if run.status != FINISHED:
        return Artifacts(history)
    return Artifacts(
        history,
        _read(run.folder / "genotype.json", Genotype.load),
        _read(run.folder / "probabilities.json", _probabilities),
        _read(run.folder / "images.png", _png),
        _read(run.folder / "result.json", _layers),
    )


def _read(path: Path, read: Callable[[Path], Read]) -> Read | None:
    """Return what ``read`` makes of ``path``, or None if it is not there. Raises InputError if it is damaged."""
    if not path.exists():
        return None
    try:
        return read(path)
    except (AttributeError, KeyError, OSError, OverflowError, TypeError, ValueError) as error:
        if isinstance(error, InputError) and str(path) in str(error):
            raise
        raise InputError(f"{path} is damaged ({one_line(error)}); run it again or leave its folder out") from error


def _history(path: Path) -> History:
    """Return the rows of metrics.csv, without what is not a number."""
    table = pd.read_csv(io.StringIO(read_text(path, "run file"))).select_dtypes("number")
    return [{str(name): float(value) for name, value in row.items()} for row in table.to_dict("records")]


def _probabilities(path: Path) -> Mapping[str, Mapping[str, float]]:
    values = read_run_file(path)
    probabilities_info(values)
    return values


def _png(path: Path) -> bytes:
    content = path.read_bytes()
    if not content.startswith(PNG):
        raise ValueError("it is no PNG")
    return content


def _layers(path: Path) -> Layers | None:
    """Return the layers in the result of a compression; None for another stage."""
    values = read_run_file(path)
    if values.get("coverage") is None:
        return None
    coverage, costs = Coverage.from_dict(values["coverage"]), values.get("layers") or ()
    measured = {each["name"]: (float(each["sqnr"]), each["share"] and float(each["share"])) for each in costs}
    quantized = tuple(
        Layer(each.name, each.kind, each.shape or (), each.bits, *measured.get(each.name, (None, None)))
        for each in coverage.weights
    )
    mixed = values.get("mixed_precision") and MixedPrecision.from_dict(values["mixed_precision"]).to_dict()
    counts = coverage.summary().splitlines()[:3]  # the gaps follow
    return Layers(tuple(counts), quantized, (*coverage.gaps, *(coverage.float_inputs or ())), mixed)
