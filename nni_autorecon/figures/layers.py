"""Pictures of a student's layers: the error and the size of each, and the bits that were chosen among all others."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from .canvas import DPI, INK, MARK, MUTED, SERIES_COLOURS, Floats, literal, new_canvas

GRID = "#E3E3E3"


def frontier_info(choices: Sequence[Mapping[str, Any]]) -> Floats:
    """Return kB and nats, [2, choices], of choices of bits, each a mapping with ``bytes`` and ``harm``."""
    return np.array([[each["bytes"] / 1000, each["harm"]] for each in choices], dtype=np.float64).reshape(-1, 2).T


def plot_frontier(mixed: Mapping[str, Any], *, title: str) -> Figure:
    """Draw harm over the size of the file: the Pareto frontier, the same bits in all layers, and the chosen ones.

    mixed: what ``MixedPrecision.to_dict`` returns.
    """
    figure, axes = new_canvas(6.5, 3.8, title)
    axes.plot(*frontier_info(mixed["frontier"]), color=SERIES_COLOURS[0], lw=1.8, label="bits by layer")
    sizes, harms = frontier_info(mixed["uniform"])
    axes.plot(sizes, harms, "s", color=MUTED, ms=4, label="the same bits in all layers")
    for each, size, harm in zip(mixed["uniform"], sizes, harms, strict=True):
        bits = max(set(each["bits"]), key=each["bits"].count)
        axes.annotate(f"w{bits}", (size, harm), xytext=(4, 3), textcoords="offset points", fontsize=8, color=MUTED)
    axes.plot(*frontier_info([mixed["chosen"]]), "o", color=MARK, ms=7, label="chosen")
    axes.axvline(mixed["size"] / 1000, color=MUTED, lw=1, ls=(0, (4, 3)), label="asked for")
    axes.set(xlabel="the student's file (kB)", ylabel="harm (nats)", yscale="log")
    axes.tick_params(labelsize=9)
    axes.grid(color=GRID, linewidth=0.7)
    axes.spines[["left", "bottom"]].set_visible(True)
    figure.legend(loc="outside right center", fontsize=9, frameon=False)
    return figure


def plot_layers(layers: Sequence[Mapping[str, Any]], *, title: str) -> Figure:
    """Draw the SQNR of each layer's output, from the first layer at the top to the last, and its share of the file.

    layers: mappings with ``name``, ``bits``, ``sqnr`` in dB and ``share`` as a fraction.
    """
    rows = np.arange(len(layers))
    figure = Figure(figsize=(7.4, 1.3 + 0.19 * len(layers)), dpi=DPI, layout="constrained")
    figure.suptitle(literal(title), fontsize=11, color=INK)
    left, right = figure.subplots(1, 2, sharey=True, width_ratios=(3, 2))
    left.plot([each["sqnr"] for each in layers], rows, "o", color=SERIES_COLOURS[0], ms=4)
    left.set(xlabel="SQNR of its output (dB)", ylim=(len(layers) - 0.5, -0.5))
    left.set_yticks(rows, [literal(f"{each['name']}, w{each['bits']}") for each in layers])
    right.barh(rows, [100 * each["share"] for each in layers], height=0.6, color=SERIES_COLOURS[4])
    right.set(xlabel="share of the file (%)")
    right.tick_params(axis="y", length=0)
    for axes in (left, right):
        axes.tick_params(labelsize=8, colors=INK)
        axes.grid(axis="x", color=GRID, linewidth=0.7)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
    return figure
