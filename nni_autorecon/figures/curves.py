"""Pictures of metrics over epochs: a function ``*_info`` computes plain data, and a function ``plot_*`` draws them."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from ..errors import InputError
from .canvas import DPI, SERIES_COLOURS, Floats, literal, new_canvas

History = Sequence[Mapping[str, float | None]]
"""The rows of a table of metrics, each by the names of its columns."""


def loss_curves_info(history: History, *, x: str, series: Sequence[str]) -> dict[str, tuple[Floats, Floats]]:
    """Return each series as (x, y), both [rows], with one point per row of ``history``.

    A value that a row lacks, or has as None, is NaN in y.
    Raises InputError if there is no row or no series, or if a row has no finite ``x``.
    """
    if not history or not series:
        raise InputError(f"nothing to plot: {len(history)} rows, {len(series)} series; give at least one of each")
    rows = [[np.nan if row.get(name) is None else row[name] for name in (x, *series)] for row in history]
    positions, *columns = np.array(rows, dtype=np.float64).T  # [1 + series, rows]
    if not np.isfinite(positions).all():
        row = int(np.argmin(np.isfinite(positions)))
        raise InputError(f"row {row} of the history has no number under {x!r}; its keys: {', '.join(history[row])}")
    return {name: (positions, column) for name, column in zip(series, columns, strict=True)}


def plot_loss_curves(
    history: History, *, x: str = "epoch", series: Sequence[str], title: str, log: bool = False
) -> Figure:
    """Draw one line per series over ``x``; a line has gaps where a value is missing (or, if ``log``, not positive).

    log: draw the vertical axis in logarithmic scale.  Raises InputError as :func:`loss_curves_info` does.
    """
    curves = loss_curves_info(history, x=x, series=series)
    figure, axes = new_canvas(6.5, 3.8, title)
    for index, (name, (positions, values)) in enumerate(curves.items()):
        seen = np.isfinite(values) & ((values > 0) | (not log))
        lonely = seen & ~np.pad(seen, 1)[:-2] & ~np.pad(seen, 1)[2:]  # a point without neighbours needs a marker
        (line,) = axes.plot(positions, np.where(seen, values, np.nan), linewidth=1.8)
        line.set(color=SERIES_COLOURS[index % 7], linestyle=("-", "--", "-.", ":")[index % 4])
        line.set(marker="osD^vPX"[index % 7], markersize=4, markevery=lonely | (len(values) <= 30))
        line.set_label(name if seen.any() else f"{name} (no values)")
    if not (positions % 1).any():
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set(xlabel=x, ylabel=series[0] if len(series) == 1 else "value", yscale="log" if log else "linear")
    axes.tick_params(labelsize=9)
    axes.grid(color="#E3E3E3", linewidth=0.7)
    axes.spines[["left", "bottom"]].set_visible(True)
    if len(series) > 1:
        figure.legend(loc="outside right center", fontsize=9, frameon=False)
    return figure


def plot_runs(runs: Sequence[tuple[str, History]], *, series: Mapping[str, str]) -> Figure | None:
    """Draw a panel for each series, over the epoch or the candidate, with a line for each run.

    Runs of one name share a colour. A series is left out if no run has two values of it; without any, return None.
    runs: names and histories.  series: the labels of columns; losses and errors have a logarithmic axis.
    """
    found = {column: [(name, *_finite(history, column)) for name, history in runs] for column in series}
    found = {column: lines for column, lines in found.items() if any(len(x) > 1 for _, x, _ in lines)}
    if not found:
        return None
    names, height = list(dict.fromkeys(name for name, _ in runs)), (len(found) + 1) // 2
    size = (8.4 + 2.4 * (len(names) > 1), max(3.0 * height + 0.2, 0.25 * len(names)))
    figure = Figure(figsize=size, dpi=DPI, layout="constrained")
    panels = figure.subplots(height, 2, squeeze=False).flat
    for (column, lines), axes in zip(found.items(), panels, strict=False):
        for name, x, y in lines:
            index = names.index(name)
            style = {"color": SERIES_COLOURS[index % 7], "linestyle": ("-", "--", "-.", ":")[index // 7 % 4]}
            axes.plot(x, y, label=literal(name), lw=1.5, marker="o" if len(x) == 1 else None, ms=4, **style)
        axes.set(xlabel=" or ".join(dict.fromkeys(_position(history) for _, history in runs if history)))
        axes.set(ylabel=series[column], yscale="log" if column.endswith(("loss", "error")) else "linear")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(color="#E3E3E3", linewidth=0.7)
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(labelsize=9)
    for axes in panels:  # an odd number of series leaves one over
        axes.set_axis_off()
    keys = {label: key for axes in figure.axes for key, label in zip(*axes.get_legend_handles_labels(), strict=True)}
    if len(names) > 1:
        labels = [textwrap.fill(label, 32) for label in keys]
        figure.legend([*keys.values()], labels, loc="outside right center", fontsize=9, frameon=False)
    return figure


def _position(history: History) -> str:
    return "candidate" if "candidate" in history[0] else "epoch"


def _finite(history: History, column: str) -> tuple[Floats, Floats]:
    """Return positions and values, both [rows], of the rows that have a finite value."""
    points = np.array([(row.get(_position(history)), row.get(column)) for row in history], dtype=float).reshape(-1, 2)
    x, y = points[np.isfinite(points).all(axis=1)].T
    return x, y
