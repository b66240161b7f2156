"""A report becomes one page of HTML, to be sent around: it loads nothing, and looks well on any screen."""

from __future__ import annotations

import base64
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from ..config.stages import STAGES
from ..figures.architecture import plot_genotype, plot_probabilities
from ..figures.curves import plot_runs
from ..figures.layers import plot_frontier
from ..figures.svg import to_svg
from ..version import __version__
from .artifacts import Artifacts, read_artifacts
from .comparable import SCALE, Entry, row_settings, varying
from .figure import plot_costs, plot_report, row_name
from .report import DESCRIPTIONS, Report, show, table_lines
from .tables import MEASURES

CURVES = {
    "loss": "L_r",
    "candidate_loss": "L_r of the candidate",
    "block_error": "error of a block's output",
    "student_loss": "loss of the student",
    "agreement": "agreement with the teacher",
    "confidence": "confidence of α",
}
"""These columns of metrics.csv are drawn, under these labels."""
PARTS = {
    "results": "Results",
    "costs": "Size and latency",
    "curves": "Curves",
    "generators": "Generators found",
    "images": "Images",
    "layers": "Layers",
    "runs": "Runs",
    "settings": "Settings",
}
"""The parts of a page, in their order; a part of which the runs have nothing is left out."""


@dataclass(frozen=True)
class Shown:
    """A run, with what a page shows of it; drawings are SVG elements, or None if the run left nothing to draw."""

    name: str
    source: str
    kept: Artifacts

    @property
    def drawing(self) -> str | None:
        """Return the drawing of the generator found."""
        return self._svg(self.kept.genotype and plot_genotype(self.kept.genotype.choices, title=""), "genotype")

    @property
    def heat_map(self) -> str | None:
        """Return the heat map of α."""
        return self._svg(self.kept.probabilities and plot_probabilities(self.kept.probabilities), "probabilities")

    @property
    def frontier(self) -> str | None:
        """Return the drawing of all choices of bits, if bits were chosen for a size."""
        mixed = self.kept.layers and self.kept.layers.mixed_precision
        return self._svg(mixed and plot_frontier(mixed, title=""), "frontier")

    @property
    def images(self) -> str | None:
        """Return the run's images as a data URI."""
        png = self.kept.images
        return None if png is None else f"data:image/png;base64,{base64.b64encode(png).decode()}"

    def _svg(self, figure: Any, name: str) -> str | None:
        return to_svg(figure, name=f"{name} of {self.source}") if figure else None


def to_html(report: Report, *, title: str) -> str:
    """Return ``report``, and what the folders of its runs hold, as a page. Raises InputError for a damaged file."""
    runs = [
        Shown(name, entry.run.source, read_artifacts(entry.run))
        for name, entry in zip(_names(report, seeds=True), report.entries, strict=True)
    ]
    histories = [(name, run.kept.history) for name, run in zip(_names(report, seeds=False), runs, strict=True)]
    several = sum(cell.mean is not None for each in report.sections for cell in each.tables[0].cells.values()) > 1
    figures = {
        "results": plot_report(report) if several else None,
        "costs": plot_costs(report) if several else None,
        "curves": plot_runs(histories, series=CURVES),
    }
    drawn = {name: figure and to_svg(figure, name=name) for name, figure in figures.items()}
    parts = {
        **drawn,
        "results": {"sections": _sections(report), "figure": drawn["results"]},
        "generators": [run for run in runs if run.kept.genotype],
        "images": [run for run in runs if run.kept.images],
        "layers": [run for run in runs if run.kept.layers],
        "runs": _runs(report.frame),
        "settings": _settings(report),
    }
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    shown = {name: (heading, parts[name]) for name, heading in PARTS.items() if parts[name]}
    headline, settings, _, *left_out = report.caption.splitlines()
    return environment.get_template("page.html").render(
        title=title, caption=[headline, *left_out], settings=settings, parts=shown, version=__version__
    )


def _names(report: Report, *, seeds: bool) -> list[str]:
    """Return a name for each run: the settings by which the report tells runs apart, with or without the seed."""
    entries = report.entries
    split = varying(entries, among=["bits", SCALE, "protocol", *(["seed"] if seeds else [])])
    names = (*row_settings(entries, report.stage), *split)
    return [row_name(names, tuple(entry.settings.get(name) for name in names)) for entry in entries]


def _sections(report: Report) -> list[dict[str, Any]]:
    """Return heading, tables and note of each section; the first table of each needs no description."""
    return [
        {
            "heading": section.heading,
            "note": section.note,
            "tables": [
                {
                    "text": "" if table is section.tables[0] else DESCRIPTIONS[table.metric],
                    "lines": table_lines(table),
                    "numbers_from": len(table.row_names),
                }
                for table in section.tables
            ],
        }
        for section in report.sections
    ]


def _runs(frame: pd.DataFrame) -> dict[str, Any]:
    """Return the line of each run, its metrics behind the settings in which runs differ, and where numbers begin."""
    names = [str(name) for name in frame]
    place = names.index("status")
    settings = [name for name in names[:place] if name == "run" or frame[name].nunique(dropna=False) > 1]
    columns = [*settings, *(name for name in names[place:] if frame[name].notna().any())]
    heads = [MEASURES[name].head if name in MEASURES else name for name in columns]
    rows = [[_text(name, value) for name, value in zip(columns, row, strict=True)] for row in frame[columns].values]
    return {"lines": [heads, *rows], "numbers_from": columns.index("status") + 1}


def _text(name: str, value: Any) -> str:
    if pd.isna(value):
        return "–"
    return MEASURES[name].spread([MEASURES[name].factor * value]) if name in MEASURES else show(value)


def _settings(report: Report) -> dict[str, Any]:
    """Return the settings that are not their defaults in some run, those that are, and all versions."""
    defaults = STAGES[report.stage].config().to_dict()
    names = dict.fromkeys(name for entry in report.entries for name in entry.run.settings)
    values = {name: _distinct(report.entries, name) for name in names}
    plain = [name for name in names if values[name] == [show(defaults.get(name))]]
    versions: dict[str, dict[str, None]] = {}
    for entry in report.entries:
        for package, version in entry.run.versions.items():
            versions.setdefault(package, {})[version] = None
    return {
        "changed": [(name, ", ".join(values[name])) for name in names if name not in plain],
        "defaults": [(name, values[name][0]) for name in plain],
        "versions": [(package, ", ".join(map(str, found))) for package, found in versions.items()],
    }


def _distinct(entries: Iterable[Entry], name: str) -> list[str]:
    """Return the values of a setting, each once, as a person reads them."""
    return list(dict.fromkeys(show(e.run.settings[name]) for e in entries if name in e.run.settings))
