"""Pictures of the generator show the genotype as a graph (Figure 2) and softmax(α) as a heat map."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from matplotlib import patheffects
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import FancyBboxPatch, PathPatch, Polygon, Rectangle
from matplotlib.path import Path as Outline

from ..errors import InputError
from ..generator.topology import CANDIDATES, CROSS, EDGE_BY_LABEL, EDGES, NONE, NORMAL, NUM_BLOCKS, UP, Edge, Node
from .canvas import INK, MARK, MUTED, SHADE, Floats, Point, new_canvas

OPERATIONS = (*CANDIDATES[NORMAL][:-1], *CANDIDATES[UP], NONE)
"""All operations that an edge of any kind can have; they are the columns of the heat map."""
FIXED = "not searched"
"""Connections that every generator has are drawn and listed under this name."""
STROKES: dict[str, tuple[str, float, str | tuple[float, tuple[float, ...]]]] = {  # operation: colour, width, dashes
    "conv_1x1": ("#56B4E9", 1.6, "solid"),
    "conv_3x3": ("#0072B2", 2.2, "solid"),
    "conv_5x5": ("#2B2170", 2.9, "solid"),
    "dil_conv_3x3": ("#E69F00", 2.2, "solid"),
    "dil_conv_5x5": ("#D55E00", 2.9, "solid"),
    "identity": ("#000000", 1.6, "solid"),
    "nearest": ("#009E73", 2.0, (0, (3.2, 1.1))),
    "bilinear": ("#CC79A7", 2.0, "solid"),
    NONE: ("#B4B4B4", 0.9, (0, (1.0, 2.2))),
    FIXED: (MUTED, 1.2, "solid"),
}


def probabilities_info(probabilities: Mapping[str, Mapping[str, float]]) -> Floats:
    """Return softmax(α) as a table [33, 9]; rows are ``EDGES``, columns are ``OPERATIONS``.

    An operation that is no candidate of an edge has NaN there. Raises InputError unless each of the 33 edges has a
    distribution over exactly its own candidates.
    """
    _require_every_edge(probabilities)
    table = np.full((len(EDGES), len(OPERATIONS)), np.nan)
    for row, edge in enumerate(EDGES):
        given = probabilities[edge.label]
        if set(given) != set(edge.candidates):
            raise InputError(f"{edge.label} has {', '.join(given)}; its candidates are {', '.join(edge.candidates)}")
        if not (min(given.values()) >= 0 and abs(sum(given.values()) - 1) < 0.01):  # NaN fails, rounding errors pass
            raise InputError(f"{edge.label}: {dict(given)} is no probability distribution; give softmax(α)")
        table[row, [OPERATIONS.index(operation) for operation in given]] = list(given.values())
    return table


def plot_probabilities(probabilities: Mapping[str, Mapping[str, float]], *, title: str = "") -> Figure:
    """Draw softmax(α) as a heat map.

    The most probable operation of each edge is framed. Operations that are no candidates of an edge are hatched.
    probabilities: by edge label and operation.  Raises InputError as :func:`probabilities_info` does.
    """
    table = probabilities_info(probabilities)
    best = np.nanargmax(table, axis=1)  # [33]
    figure, axes = new_canvas(7.4, 9.4, title)
    axes.patch.set(facecolor="#FAFAFA", edgecolor="#DCDCDC", hatch="//////", linewidth=0)
    mesh = axes.pcolormesh(np.ma.masked_invalid(table), cmap="Blues", vmin=0, vmax=1, edgecolors="white", lw=0.8)
    for row, column in np.argwhere(np.isfinite(table)):
        text = axes.text(column + 0.5, row + 0.52, f"{table[row, column]:.2f}", ha="center", va="center", fontsize=8)
        text.set_color("white" if table[row, column] > 0.6 else INK)
        if column == best[row]:
            text.set_fontweight("bold")
            axes.add_patch(Rectangle((column + 0.05, row + 0.08), 0.9, 0.84, fill=False, edgecolor=MARK, lw=1.8))
    axes.set_xticks(np.arange(len(OPERATIONS)) + 0.5, OPERATIONS, rotation=35, ha="left", rotation_mode="anchor")
    axes.set_yticks(np.arange(len(EDGES)) + 0.5, EDGE_BY_LABEL)
    axes.tick_params(length=0, labeltop=True, labelbottom=False, labelsize=8.5)
    axes.invert_yaxis()
    for block in range(1, NUM_BLOCKS + 1):
        rows = [row for row, edge in enumerate(EDGES) if edge.target.block == block]
        axes.axhline(rows[0], xmin=-0.29, color=INK, linewidth=1.2, clip_on=False)
        text = axes.text(-0.275, rows[0] + len(rows) / 2, f"Block {block}", transform=axes.get_yaxis_transform())
        text.set(rotation=90, ha="center", va="center", fontsize=10, weight="bold")
    bar = figure.colorbar(mesh, ax=axes, shrink=0.4, aspect=24, pad=0.02, anchor=(0, 1))
    bar.set_label("probability, softmax(α)", fontsize=9)
    bar.ax.tick_params(labelsize=8.5)
    for each in (mesh, *bar.ax.collections):
        each.set_rasterized(True)  # an SVG of hundreds of paths would be large
    return figure


class GraphEdge(NamedTuple):
    """A line of the graph, with the names of its two ends."""

    source: str
    target: str
    operation: str
    active: bool  # False if the operation is ``none``, so that the edge carries nothing
    path: tuple[Point, ...]  # start, bends and end, in drawing units


# Lines run along the axes, and no two lines run on top of each other: each has ports of its own at both nodes, and
# each cross edge has a lane of its own above or below the blocks. All numbers are in drawing units.
_PITCH, _HALF_WIDTH, _HALF_HEIGHT, _ROUND = 5.3, 0.42, 0.25, "round,pad=0,rounding_size=0.15"
_OFFSETS = {1: (0.0, 0.0), 2: (1.1, 1.0), 3: (1.1, -1.0), 4: (2.3, 0.0), 5: (3.55, 0.0)}
_PLACES = {Node(1 + b, n): (b * _PITCH + x, y) for b in range(NUM_BLOCKS) for n, (x, y) in _OFFSETS.items()}


# The keys are the positions of source and target. The values are the lane and the ports' offsets at both nodes.
_ABOVE = {(2, 5): (2, -0.14, 0.16), (2, 4): (1, 0.14, 0.12), (4, 4): (0, 0.32, -0.08)}
_BELOW = {(3, 5): (2, -0.14, 0.26), (3, 4): (1, 0.14, 0.0), (4, 5): (0, 0.32, 0.02)}


def genotype_graph_info(choices: Mapping[str, str]) -> tuple[dict[str, Point], list[GraphEdge]]:
    """Return the positions of the 15 nodes, the latent chunks (``z1``) and the image, and the lines between them.

    The first 33 lines are ``topology.EDGES``. The other lines always exist; their operation is ``FIXED``.
    Raises InputError unless each edge has one of its own candidates.
    """
    _require_every_edge(choices)
    lines = []
    for edge in EDGES:
        operation = choices[edge.label]
        if operation not in edge.candidates:
            raise InputError(f"{edge.label} cannot be {operation!r}; choose from {', '.join(edge.candidates)}")
        lines.append(GraphEdge(str(edge.source), str(edge.target), operation, operation != NONE, _route(edge)))
    positions = {"image": (NUM_BLOCKS * _PITCH - 0.35, 0.0)} | {str(node): place for node, place in _PLACES.items()}
    for block in range(1, NUM_BLOCKS + 1):
        latent, first, last = f"z{block}", f"B{block}-N1", f"B{block}-N5"
        following = f"B{block + 1}-N1" if block < NUM_BLOCKS else "image"
        left, x = positions[first][0] - _HALF_WIDTH, positions[first][0] - 0.85
        positions[latent] = (x, -0.9)
        lines.append(GraphEdge(latent, first, FIXED, True, ((x, _HALF_HEIGHT - 0.9), (x, -0.12), (left, -0.12))))
        ends = (positions[last][0] + _HALF_WIDTH, 0.0), (positions[following][0] - _HALF_WIDTH, 0.0)
        lines.append(GraphEdge(last, following, FIXED, True, ends))
    return positions, lines


def plot_genotype(choices: Mapping[str, str], title: str = "") -> Figure:
    """Draw the generator from latent chunks to image (Figure 2), each edge in the colour of its operation.

    choices: operations by edge label.  Raises InputError as :func:`genotype_graph_info` does.
    """
    positions, lines = genotype_graph_info(choices)
    figure, axes = new_canvas(11.5, 5.7, title)
    axes.set(xlim=(-1.2, 16.0), ylim=(-3.5, 3.5), aspect="equal", xticks=[], yticks=[])
    for block, sizes in enumerate(("1/8 → 1/4 size", "1/4 → 1/2 size", "1/2 → full size")):
        x = block * _PITCH - 1.15
        axes.add_patch(FancyBboxPatch((x, -1.7), _PITCH - 0.1, 3.4, _ROUND, color=SHADE, zorder=0))
        axes.text(x + 0.12, 1.4, f"Block {block + 1}", fontsize=10.5, weight="bold", color=INK)
        axes.text(x + 0.12, -1.55, sizes, fontsize=8.5, color=MUTED)
    for line in sorted(lines, key=lambda line: line.active):
        _draw_edge(axes, line)
    for name, (x, y) in positions.items():
        half, text = (_HALF_HEIGHT, f"$z_{name[1:]}$") if name.startswith("z") else (_HALF_WIDTH, name)
        corner = (x - half, y - _HALF_HEIGHT)
        axes.add_patch(FancyBboxPatch(corner, 2 * half, 2 * _HALF_HEIGHT, _ROUND, fc="white", ec=INK, zorder=5))
        axes.text(x, y - 0.01, text, ha="center", va="center", fontsize=8.8, zorder=6)
    uses = Counter(line.operation for line in lines)
    keys = [Line2D([], [], color=c, lw=w, ls=d, label=f"{n} ({uses[n]})") for n, (c, w, d) in STROKES.items()]
    by_column = [key for pair in zip(keys[:5], keys[5:], strict=True) for key in pair]
    figure.legend(handles=by_column, loc="outside lower center", ncols=5, fontsize=9, frameon=False, handlelength=2.6)
    return figure


def _route(edge: Edge) -> tuple[Point, ...]:
    """Return the points of an edge's line, from the border of its source to the border of its target."""
    (x0, y0), (x1, y1) = _PLACES[edge.source], _PLACES[edge.target]
    if edge.kind == CROSS:
        ends = edge.source.position, edge.target.position
        side, (lane, start, end) = (1, _ABOVE[ends]) if ends in _ABOVE else (-1, _BELOW[ends])
        height = side * (2.0 + 0.27 * (lane + 3 * (edge.target.block == 2)))
        border = side * _HALF_HEIGHT
        return (x0 + start, y0 + border), (x0 + start, height), (x1 + end, height), (x1 + end, y1 + border)
    side = -1 if y0 + y1 < 0 else 1
    if edge.kind == UP:
        return (x0, side * _HALF_HEIGHT), (x0, y1), (x1 - _HALF_WIDTH, y1)
    if y0 == y1:
        return (x0 + _HALF_WIDTH, y0), (x1 - _HALF_WIDTH, y1)
    x, y = x1 - 0.28, y0 + side * (0.1 if edge.target.position == 5 else -0.1)
    return (x0 + _HALF_WIDTH, y), (x, y), (x, side * _HALF_HEIGHT)


def _draw_edge(axes: Axes, edge: GraphEdge) -> None:
    """Draw an edge with round corners, an arrowhead, and a white halo that sets it off from the lines it crosses."""
    colour, width, dashes = STROKES[edge.operation]
    bends = np.array(edge.path)
    ways = np.sign(np.diff(bends, axis=0))  # unit vectors, as every piece of the line lies along an axis
    vertices, codes = [bends[0]], [Outline.MOVETO]
    for corner, into, out in zip(bends[1:-1], ways[:-1], ways[1:], strict=True):
        vertices += [corner - 0.2 * into, corner, corner + 0.2 * out]
        codes += [Outline.LINETO, Outline.CURVE3, Outline.CURVE3]
    tip, back, aside = bends[-1], (0.1 + 0.035 * width) * ways[-1], (0.04 + 0.02 * width) * ways[-1][::-1]
    path = Outline([*vertices, tip - 0.9 * back], [*codes, Outline.LINETO])
    halo = [patheffects.withStroke(linewidth=width + 2.6, foreground="white")] * edge.active
    axes.add_patch(PathPatch(path, fill=False, ec=colour, lw=width, ls=dashes, path_effects=halo, zorder=2))
    if edge.active:
        axes.add_patch(Polygon([tip, tip - back + aside, tip - back - aside], color=colour, lw=0, zorder=3))


def _require_every_edge(choices: Mapping[str, object]) -> None:
    if odd := set(choices) ^ set(EDGE_BY_LABEL):
        raise InputError(f"{min(odd)!r} is missing or unknown; give each of the generator's {len(EDGES)} edges")
