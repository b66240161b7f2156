"""Figures become SVG that stands within a page of HTML and takes the page's colours, in the light and in the dark."""

from __future__ import annotations

import io
import re
from typing import Any

from matplotlib import rc_context
from matplotlib.figure import Figure

from .canvas import INK, MUTED, SHADE

VARIABLES = {
    INK: "ink",
    "#000000": "ink",
    MUTED: "muted",
    "#e3e3e3": "grid",
    "#ffffff": "paper",
    SHADE.lower(): "shade",
    "#2b2170": "indigo",
}
"""These colours of figures are CSS variables of the page; all others can be seen on light and on dark paper."""


def to_svg(figure: Figure, *, name: str) -> str:
    """Return ``figure`` as an SVG element whose text is text, and at 9 points never smaller than 9 pixels.

    name: different for each figure of a page, so that no two have an id in common.
    """
    # matplotlib has no other way to set these; they hold for the time of the drawing alone.
    settings: dict[Any, Any] = {"svg.fonttype": "none", "svg.hashsalt": name, "font.sans-serif": ["DejaVu Sans"]}
    file = io.StringIO()
    with rc_context(settings):
        nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        figure.savefig(file, format="svg", facecolor="none", metadata=nothing)
    text = file.getvalue()
    text = text[text.index("<svg") :].strip()
    text = re.sub(r"<defs>\s*<style.*?</defs>", "", text, count=1, flags=re.DOTALL)  # it would style the whole page
    used = set(re.findall(r"#(\w+)", text))
    text = re.sub(r' id="([^"]*)"', lambda each: each[0] if each[1] in used else "", text)
    text = re.sub(r'width="([\d.]+)pt" height="[\d.]+pt"', r'style="min-width: \1px; max-width: \1pt"', text, count=1)
    return re.sub(r'(?<= style=")[^"]*', _with_variables, text)


def _with_variables(style: re.Match[str]) -> str:
    return re.sub("#[0-9a-f]{6}", lambda colour: _variable(colour[0]), style[0])


def _variable(colour: str) -> str:
    return f"var(--{VARIABLES[colour]})" if colour in VARIABLES else colour
