"""Figures as SVG within a page."""

import re
from xml.etree import ElementTree

import numpy as np
from matplotlib import rcParams

from nni_autorecon.figures.canvas import INK, MUTED, new_canvas
from nni_autorecon.figures.curves import plot_loss_curves, plot_runs
from nni_autorecon.figures.svg import to_svg

HISTORY = [{"epoch": 1.0, "loss": 3.0}, {"epoch": 2.0, "loss": 2.0}]
SVG = "{http://www.w3.org/2000/svg}"


def figure():
    return plot_loss_curves(HISTORY, series=["loss"], title="a < b & $c$")


def test_text_is_text_and_takes_the_pages_ink():
    drawn = ElementTree.fromstring(to_svg(figure(), name="a"))
    texts = {"".join(each.itertext()): each for each in drawn.iter(f"{SVG}text")}
    assert {"a < b & $c$", "epoch", "loss"} <= set(texts)
    assert "fill: var(--ink)" in texts["a < b & $c$"].get("style")


def test_colours_of_the_page_are_variables_and_others_stay():
    canvas, axes = new_canvas(2, 2, "")
    for colour in (INK, MUTED, "#000000", "#0072B2"):
        axes.plot([0, 1], color=colour)
    strokes = set(re.findall(r"stroke: ([^;\"]*)", to_svg(canvas, name="a")))
    assert {"var(--ink)", "var(--muted)", "#0072b2"} <= strokes
    assert not strokes & {"#222222", "#666666", "#000000"}


def test_figures_share_no_id_and_style_nothing_else():
    first, second = (to_svg(figure(), name=name) for name in "ab")
    ids = [set(re.findall(r'\bid="([^"]*)"', text)) for text in (first, second)]
    assert ids[0]
    assert not ids[0] & ids[1]
    assert first == to_svg(figure(), name="a")
    assert "<style" not in first


def test_drawing_leaves_matplotlibs_settings():
    before = dict(rcParams)
    to_svg(figure(), name="a")
    assert dict(rcParams) == before


def test_a_line_for_each_run_and_a_panel_for_each_series():
    runs = [
        ("a", [*HISTORY, {"epoch": 3.0, "loss": np.nan}]),
        ("a", [{"epoch": 1.0, "loss": 5.0, "agreement": 0.5}, {"epoch": 3.0, "loss": 4.0, "agreement": 0.75}]),
        ("b", [{"candidate": 1.0, "loss": 7.0}]),
        ("c", []),
    ]
    drawn = plot_runs(runs, series={"agreement": "how alike", "loss": "L_r", "confidence": "sure"})
    first, second = drawn.axes
    assert [axes.get_ylabel() for axes in drawn.axes] == ["how alike", "L_r"]
    assert [axes.get_yscale() for axes in drawn.axes] == ["linear", "log"]
    assert first.get_xlabel() == "epoch or candidate"
    points = [line.get_xydata().tolist() for line in second.lines]
    assert points == [[[1, 3], [2, 2]], [[1, 5], [3, 4]], [[1, 7]], []]
    assert second.lines[0].get_color() == second.lines[1].get_color() != second.lines[2].get_color()
    assert [text.get_text() for text in drawn.legends[0].get_texts()] == ["a", "b", "c"]


def test_without_two_values_there_are_no_curves():
    assert plot_runs([("a", HISTORY[:1]), ("b", [])], series={"loss": "L_r"}) is None
