"""Records of runs that never were, for reports to be made of."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from nni_autorecon.config.compress import CompressConfig
from nni_autorecon.config.search import SearchConfig
from nni_autorecon.figures.canvas import save_figure
from nni_autorecon.figures.images import plot_images
from nni_autorecon.files import sealed, write_json, write_text
from nni_autorecon.generator.genotype import Genotype, uniform_choices
from nni_autorecon.generator.topology import EDGES
from nni_autorecon.quantization.coverage import Coverage, Gap, Quantized
from nni_autorecon.runs.records import FAILED, FINISHED, INCOMPLETE, RUNNING, WAITING, Run

VERSIONS = {"nni-autorecon": "0.1.0", "torch": "2.15.0"}
_number = itertools.count()


def run(
    accuracy: float | None = None,
    *,
    status: str | None = None,
    name: str | None = None,
    metrics: Mapping[str, Any] = {},
    command: str = "compress",
    versions: dict[str, str] = VERSIONS,
    **settings: Any,
) -> Run:
    """A finished run if it has an accuracy in %; settings that CompressConfig lacks are taken as they are."""
    status = status or (INCOMPLETE if accuracy is None and not metrics else FINISHED)
    measured = {"teacher_accuracy": 0.991, "generator_macs": 28.7e6, "generator_parameters": 430_000, "seconds": 5.0}
    measured |= {} if accuracy is None else {"accuracy": accuracy / 100, "agreement": 0.9}
    settings = {**CompressConfig().to_dict(), "generator": "gdfq", **settings}
    return Run(
        name or f"run-{next(_number)}",
        command,
        settings,
        status,
        {**measured, **metrics} if status == FINISHED else {},
        versions,
    )


def found(
    loss: float | None = None,
    *,
    status: str | None = None,
    name: str | None = None,
    metrics: Mapping[str, Any] = {},
    **settings: Any,
) -> Run:
    """A search, finished if it has an L_r."""
    config, status = SearchConfig(**settings), status or (INCOMPLETE if loss is None else FINISHED)
    measured = {"loss": loss, "class_loss": 0.25, "bns_loss": 0.0035, "updates": config.updates, "seconds": 5.0}
    measured |= {"generator_macs": 7.1e6, **metrics}
    name = name or f"search-{next(_number)}"
    return Run(name, "search", config.to_dict(), status, measured if status == FINISHED else {}, VERSIONS)


TABLE_2 = [
    *(run(a, bits="w4a4", seed=i, generator="gdfq") for i, a in enumerate((91.0, 91.5, 91.1))),
    *(run(a, bits="w4a4", seed=i, generator=f"searched:a-{i}.json") for i, a in enumerate((92.1, 92.5, 92.33))),
    *(run(a, bits="w3a3", seed=i, generator="gdfq") for i, a in enumerate((78.4, 77.8))),
    run(status=FAILED, name="lost", bits="w3a3", seed=2, generator="gdfq"),
    run(70.0, bits="w3a3", seed=0, generator="searched:a-0.json", metrics={"generator_macs": 9e6}),
    run(status=RUNNING, name="now", bits="w3a3", seed=1, generator="searched:a-1.json"),
]
"""Compressions at two bit-widths: GDFQ's generator and searched ones, one run failed and one under way."""

SEARCHES = [
    *(found(loss, strategy="tpe", seed=seed) for seed, loss in enumerate((0.7, 0.74))),
    found(strategy="tpe", seed=2, status=FAILED, name="lost"),
    *(found(loss, seed=seed, metrics={"seconds": 30 + seed}) for seed, loss in enumerate((0.52, 0.55, 0.5))),
    Run("trial w", None, {"strategy": "random", "seed": 0}, WAITING),
]
"""Searches with three strategies: one run failed and one waiting."""

COVERAGE = Coverage(
    (Quantized("stem", "Conv2d", 8, (16, 3, 3, 3)), Quantized("head.<b>", "Linear", 4, (10, 16))),
    (Quantized("x", "network input", 8), Quantized("relu", "relu", 4)),
    (Gap("pool", "its input is a <b>sum</b>"),),
    (Gap("odd", "no kernel & no hope"),),
)
"""Two layers of 8 and of 4 bits, and two parts in floating point, with names that a page must escape."""


def in_folder(run: Run, folder: Path) -> Run:
    """``run`` with a folder, and in it what a page shows: curves, and if it has finished what its stage leaves."""
    rows = ["epoch,phase,loss,agreement", "1,images,3.5,", "2,images,2.5,0.5", "3,images,2.25,0.75"]
    write_text(folder / "metrics.csv", "\n".join(rows) + "\n")
    if run.status == FINISHED:
        images = torch.rand(4, 1, 5, 5, generator=torch.Generator().manual_seed(0))
        save_figure(plot_images(images, torch.arange(4) % 2, per_class=2), folder / "images.png")
        if run.command == "search":
            Genotype(uniform_choices("conv_3x3"), 5, 7).save(folder / "genotype.json")
            even = {edge.label: {name: 1 / len(edge.candidates) for name in edge.candidates} for edge in EDGES}
            write_json(folder / "probabilities.json", even)
        else:
            costs = [{"name": each.name, "sqnr": 30.0 - i, "share": 0.25} for i, each in enumerate(COVERAGE.weights)]
            write_json(folder / "result.json", sealed({"coverage": COVERAGE.to_dict(), "layers": costs}))
    return dataclasses.replace(run, folder=folder)
