"""The figure of a report shows accuracy against bit width or scale, or row by row if there is one column."""

from __future__ import annotations

import textwrap
from typing import Any, Literal, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from ..figures.canvas import DPI, INK, MUTED, SERIES_COLOURS, literal
from .comparable import NOT_USED, SCALE
from .report import Report, show
from .tables import USER_COSTS, Row, Table

Floats = NDArray[np.float64]

GRID = "#E3E3E3"
LABELS = {
    "accuracy": "test accuracy (%)",
    "agreement": "agreement with the teacher (%)",
    "loss": "L_r of the generator found",
}
SPEAKING = ("method", "generator", "strategy", "bits")
"""The values of these settings say by themselves what they are of."""
COST_LABELS = {"file_bytes": "the student's file (kB)", "latency": "latency of an image (ms)"}


class Series(NamedTuple):
    """A row of a table: mean and sample standard deviation [columns] as printed, NaN for a missing value."""

    name: str
    mean: Floats
    std: Floats


def comparison_info(table: Table) -> tuple[Floats, list[Series], list[str]]:
    """Return the columns' positions (log2 of a scale), a series for each row, and the missing points in words."""
    positions = np.log2(table.columns) if table.column == SCALE else np.arange(len(table.columns), dtype=float)
    series, missing = [], []
    for row in table.rows:
        cells = [table.cell(row, column) for column in table.columns]
        statistics = [[np.nan if v is None else v for v in (cell.mean, cell.std)] for cell in cells]
        series.append(Series(row_name(table.row_names, row), *np.array(statistics, dtype=float).T))
        for head, cell, column in zip(table.column_heads(), cells, table.columns, strict=True):
            if cell.mean is None:
                where = f" at {head}" if len(table.columns) > 1 else ""
                missing.append(f"{series[-1].name}{where} ({table.text(row, column).replace('–', 'not run')})")
    return np.asarray(positions, dtype=float), series, missing


def plot_report(report: Report) -> Figure:
    """Draw one panel for each section, all on one scale: lines with error bars, or dots if there is one column.

    Each row of a table is a line or a dot. Error bars are one standard deviation; beside a dot, a ring stands for each
    seed. The dashed line is the teacher, if it is near. Missing points are named below the panels.
    """
    tables = [section.tables[0] for section in report.sections]
    lines = max(len(table.columns) for table in tables) > 1
    height = 4.0 if lines else 1.6 + 0.45 * max(len(table.rows) for table in tables)
    figure = Figure(figsize=(4.6 * len(tables) + 2.4, height), dpi=DPI, layout="constrained")
    alike = len({table.metric for table in tables}) == 1
    panels = figure.subplots(1, len(tables), squeeze=False, sharey=lines and alike, sharex=not lines and alike)[0]
    notes = []
    for axes, section, table in zip(panels, report.sections, tables, strict=True):
        (_draw_lines if lines else _draw_dots)(axes, table)
        axes.set_title(section.heading, fontsize=11, color=INK)
        axes.tick_params(labelsize=9)
        axes.spines[["top", "right"]].set_visible(False)
        if missing := ", ".join(comparison_info(table)[2]):
            notes.append(f"{section.heading}: {missing}" if section.heading else missing)
    for axes, table in zip(panels, tables, strict=True):  # the scale is known only now
        _end_at_all(axes, table, upright=not lines)
        _draw_teacher(axes, report.teacher_accuracy, upright=not lines)
    keys = {label: key for axes in panels for key, label in zip(*axes.get_legend_handles_labels(), strict=True)}
    labels = sorted(keys, key=lambda label: label.startswith("teacher"))  # the teacher comes last
    if labels:
        handles = [keys[label] for label in labels]
        place: Literal["outside right center", "outside upper center"]
        place = "outside right center" if lines else "outside upper center"
        labels = [textwrap.fill(label, 32) for label in labels]
        figure.legend(handles, labels, loc=place, fontsize=9, frameon=False)
    if notes:
        text = textwrap.fill(f"Not shown: {'; '.join(notes)}", int(14 * figure.get_figwidth()))
        figure.supxlabel(text, fontsize=8, color=MUTED, x=0.01, ha="left")
    return figure


def plot_costs(report: Report) -> Figure | None:
    """Draw accuracy, or agreement, over the size of the file and over latency; None if neither was measured.

    Each point is the mean over the seeds of a row and column; the points of a row are joined from the cheapest on.
    """
    costs = [
        name for name in USER_COSTS if any(name == t.metric for section in report.sections for t in section.tables)
    ]
    if not costs:
        return None
    figure = Figure(figsize=(4.6 * len(costs) + 2.4, 4.0), dpi=DPI, layout="constrained")
    panels = figure.subplots(1, len(costs), squeeze=False, sharey=True)[0]
    for axes, cost in zip(panels, costs, strict=True):
        index = 0
        for section in report.sections:
            found = {table.metric: table for table in section.tables}
            if cost in found:
                index = _draw_costs(axes, section.tables[0], found[cost], index, section.heading)
        axes.set_xlabel(COST_LABELS[cost])
        axes.set_ylabel(LABELS[report.sections[0].tables[0].metric] if axes is panels[0] else "")
        axes.grid(color=GRID, linewidth=0.7)
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(labelsize=9)
        _end_at_all(axes, report.sections[0].tables[0], upright=False)
        _draw_teacher(axes, report.teacher_accuracy, upright=False)
    keys = {label: key for axes in panels for key, label in zip(*axes.get_legend_handles_labels(), strict=True)}
    labels = sorted(keys, key=lambda label: label.startswith("teacher"))  # the teacher comes last
    handles, texts = [keys[label] for label in labels], [textwrap.fill(label, 32) for label in labels]
    figure.legend(handles, texts, loc="outside right center", fontsize=9, frameon=False)
    return figure


def _draw_costs(axes: Axes, quality: Table, cost: Table, index: int, heading: str) -> int:
    """Draw a line for each row of two tables, from the style ``index`` on; return the next one."""
    for row in quality.rows:
        cells = [(quality.cell(row, column).mean, cost.cell(row, column).mean) for column in quality.columns]
        points = sorted((x, y, head) for (y, x), head in zip(cells, quality.column_heads(), strict=True) if x and y)
        name = ", ".join(part for part in (row_name(quality.row_names, row), heading) if part)
        axes.plot([x for x, *_ in points], [y for _, y, _ in points], label=literal(name), **_style(index, caps=False))
        for x, y, head in points if quality.column is not None else ():
            axes.annotate(head, (x, y), xytext=(4, -9), textcoords="offset points", fontsize=7, color=MUTED)
        index += 1
    return index


def row_name(names: tuple[str, ...], row: Row) -> str:
    """Return a row's name: values alone for the settings in ``SPEAKING``, names with values for others."""
    pairs = [(name, show(value)) for name, value in zip(names, row, strict=True) if value != NOT_USED]
    return ", ".join(value if name in SPEAKING else f"{name}={value}" for name, value in pairs)


def _draw_lines(axes: Axes, table: Table) -> None:
    positions, series, _ = comparison_info(table)
    step = min(0.05, 0.3 / len(series))  # error bars stand side by side
    for index, (name, mean, std) in enumerate(series):
        x = positions + (index - (len(series) - 1) / 2) * step
        dashes = ("-", "--", "-.", ":")[index % 4]
        axes.errorbar(x, mean, std, label=literal(name), linestyle=dashes, **_style(index))
    axes.set_xticks(positions, table.column_heads())
    axes.set_xlim(positions.min() - 0.3, positions.max() + 0.3)
    axes.set_xlabel("scale of the generator's channels" if table.column == SCALE else "bit widths")
    axes.set_ylabel(LABELS[table.metric])
    axes.grid(axis="y", color=GRID, linewidth=0.7)


def _draw_dots(axes: Axes, table: Table) -> None:
    """Draw the rows from top to bottom, each in the colour of its generator or strategy."""
    _, series, _ = comparison_info(table)
    place = 0 if table.row_names[0] == "strategy" else -1
    kinds = list(dict.fromkeys(row[place] for row in table.rows))
    for index, (row, (_, mean, std)) in enumerate(zip(table.rows, series, strict=True)):
        style, by_seed = _style(kinds.index(row[place])), table.cell(row, table.columns[0]).by_seed
        axes.errorbar(mean, [index], xerr=std, **style)
        if len(by_seed) > 1:
            values = list(by_seed.values())
            axes.plot(values, [index] * len(values), "o", ms=4, mfc="none", mec=MUTED, label="one seed", zorder=3)
    axes.set_yticks(range(len(series)), [textwrap.fill(literal(name), 44) for name, *_ in series])
    axes.set_ylim(len(series) - 0.5, -0.5)
    axes.set_xlabel(f"{LABELS[table.metric]}{'' if table.column is None else f', {table.column_heads()[0]}'}")
    axes.grid(axis="x", color=GRID, linewidth=0.7)


def _style(index: int, *, caps: bool = True) -> dict[str, Any]:
    style = {"color": SERIES_COLOURS[index % 7], "marker": "osD^vPX"[index % 7], "ms": 5, "lw": 1.6}
    return {**style, "capsize": 3} if caps else style


def _end_at_all(axes: Axes, table: Table, *, upright: bool) -> None:
    """Let a scale in percent end at 100, with room for a marker there."""
    if table.metric not in ("accuracy", "agreement"):
        return
    low, high = axes.get_xlim() if upright else axes.get_ylim()
    high = min(high, 100 + 0.05 * (100 - low))
    if upright:
        axes.set_xlim(low, high)
    else:
        axes.set_ylim(low, high)


def _draw_teacher(axes: Axes, accuracy: float | None, *, upright: bool) -> None:
    """Draw the teacher's line, unless it would squeeze the points into under half of the panel, and name its value."""
    if accuracy is None:
        return
    low, high = axes.get_xlim() if upright else axes.get_ylim()
    near = low - (high - low) < accuracy < high + (high - low)
    style: dict[str, Any] = {"color": MUTED, "linestyle": (0, (4, 3)), "linewidth": 1, "zorder": 0}
    style["label"] = f"teacher, {accuracy:.2f}" + ("" if near else " (off the scale)")
    if near:
        (axes.axvline if upright else axes.axhline)(accuracy, **style)
    else:
        axes.plot([], [], **style)
