"""All pictures share these colours, sizes, the empty canvas and the function that writes a figure.

Figures are made without pyplot: nothing global is changed, no display is needed, and any thread may draw. The colours
are Okabe and Ito's, which colour-blind readers can tell apart.
"""

from __future__ import annotations

import textwrap
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from ..errors import InputError
from ..files import write_atomically

Floats = NDArray[np.float64]
Point = tuple[float, float]
DPI = 200
INK, MUTED, SHADE, MARK = "#222222", "#666666", "#F1F3F5", "#D55E00"
SERIES_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")


def save_figure(figure: Figure, path: str | Path) -> None:
    """Write ``figure`` as a PNG of 200 dots per inch, whole or not at all.

    Raises InputError if the name does not end in .png, or if the file cannot be written.
    """
    path = Path(path)
    if path.suffix.lower() != ".png":
        raise InputError(f"figures are written as PNG, not as {path.name}; give a name that ends in .png")
    write_atomically(path, lambda file: figure.savefig(file, format="png", dpi=DPI))


def literal(text: str) -> str:
    """Return ``text`` so that matplotlib shows it unchanged: it would read text between two dollars as mathematics."""
    return text.replace("$", r"\$")


def new_canvas(width: float, height: float, title: str) -> tuple[Figure, Axes]:
    """Return an empty figure of ``width`` × ``height`` inches with a title, and its axes without a frame."""
    figure = Figure(figsize=(width, height), dpi=DPI, layout="constrained")
    figure.suptitle(textwrap.fill(literal(title), int(10 * width)), fontsize=11, color=INK)
    axes = figure.add_subplot()
    axes.spines[:].set_visible(False)
    return figure, axes
