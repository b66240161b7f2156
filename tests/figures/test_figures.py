"""The numbers behind every picture, by hand; the pictures themselves: right size, something drawn, nothing overlaps."""

from __future__ import annotations

import ast
import inspect
import itertools
import math
import random
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from pathlib import Path

import matplotlib.image
import numpy as np
import pytest
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Text

from nni_autorecon.errors import InputError
from nni_autorecon.figures import architecture, canvas
from nni_autorecon.figures import curves as line_plots
from nni_autorecon.figures import images as image_grids
from nni_autorecon.figures import layers as layer_plots
from nni_autorecon.generator.topology import EDGES, NONE

NAN = math.nan
IMAGES = torch.rand(7, 3, 5, 5), torch.arange(7) % 5
HISTORY = [
    {"epoch": 1, "total": 5.0, "class": None, "bns": 0.5},
    {"epoch": 2, "total": 3.0, "bns": NAN},
    {"epoch": 3, "total": 2.0, "class": 7.0},
    {"epoch": 5, "total": -1.0, "class": NAN},
    {"epoch": 7, "total": 1.0, "class": 2.0},
]


def random_choices(seed: int) -> dict[str, str]:
    rng = random.Random(seed)
    return {edge.label: rng.choice(edge.candidates) for edge in EDGES}


def random_probabilities(seed: int) -> dict[str, dict[str, float]]:
    rng = np.random.default_rng(seed)
    draws = {edge: rng.dirichlet(np.ones(len(edge.candidates))) for edge in EDGES}
    return {edge.label: dict(zip(edge.candidates, map(float, draw), strict=True)) for edge, draw in draws.items()}


def numbered_images(count: int, channels: int, height: int, width: int) -> torch.Tensor:
    return torch.arange(count * channels * height * width).view(count, channels, height, width).float()


LAYERS = [{"name": f"block${n}.conv", "bits": 2 + n, "sqnr": 5.0 * n, "share": n / 28} for n in range(7)]
CHOICES = [{"bits": bits, "bytes": size, "harm": harm} for bits, size, harm in (("22", 2e4, 3.0), ("24", 3e4, 0.2))]
MIXED = {"size": 25_000, "chosen": CHOICES[0], "frontier": CHOICES, "uniform": [CHOICES[0]]}

FIGURES = {  # figure, inches
    "loss": (lambda: line_plots.plot_loss_curves(HISTORY, series=["total", "class"], title="Losses"), (6.5, 3.8)),
    "log": (lambda: line_plots.plot_loss_curves(HISTORY, series=["total"], title="long " * 25, log=True), (6.5, 3.8)),
    "probabilities": (lambda: architecture.plot_probabilities(random_probabilities(0), title="softmax"), (7.4, 9.4)),
    "genotype": (lambda: architecture.plot_genotype(random_choices(0), "found " * 30), (11.5, 5.7)),
    "layers": (lambda: layer_plots.plot_layers(LAYERS, title="w3.1a8"), (7.4, 2.63)),
    "frontier": (lambda: layer_plots.plot_frontier(MIXED, title="w2.0a8"), (6.5, 3.8)),
    "images": (lambda: image_grids.plot_images(*IMAGES, per_class=2, max_classes=3, title="x" * 19), (2.4, 2.8)),
}


def test_loss_curves_leave_gaps_where_a_row_lacks_a_value() -> None:
    curves = line_plots.loss_curves_info(HISTORY, x="epoch", series=["class", "total", "bns", "never"])
    assert list(curves) == ["class", "total", "bns", "never"]
    for positions, _ in curves.values():
        np.testing.assert_array_equal(positions, [1, 2, 3, 5, 7])
    np.testing.assert_array_equal(curves["class"][1], [NAN, NAN, 7, NAN, 2])
    np.testing.assert_array_equal(curves["total"][1], [5, 3, 2, -1, 1])
    np.testing.assert_array_equal(curves["bns"][1], [0.5, NAN, NAN, NAN, NAN])
    np.testing.assert_array_equal(curves["never"][1], [NAN] * 5)


def test_a_lonely_point_of_a_long_history_has_a_marker() -> None:
    history = [{"epoch": i, "y": NAN if i in (4, 6, 7) else 1.0} for i in range(40)]
    (line,) = line_plots.plot_loss_curves(history, series=["y"], title="").axes[0].lines
    assert np.flatnonzero(line.get_markevery()).tolist() == [5]


def test_a_log_plot_breaks_at_values_that_are_not_positive() -> None:
    (line,) = line_plots.plot_loss_curves(HISTORY, series=["total"], title="", log=True).axes[0].lines
    np.testing.assert_array_equal(line.get_ydata(), [5, 3, 2, NAN, 1])


@pytest.mark.parametrize("log", [False, True])
def test_a_series_without_values_is_named_so(log: bool) -> None:
    figure = line_plots.plot_loss_curves(HISTORY, series=["never", "total"], title="", log=log)
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["never (no values)", "total"]
    assert png(figure).std() > 0


def test_the_loss_plot_names_what_it_cannot_place() -> None:
    with pytest.raises(InputError, match=r"row 1 .*'epoch'"):
        line_plots.loss_curves_info([{"epoch": 1, "y": 2}, {"y": 3}], x="epoch", series=["y"])
    with pytest.raises(InputError, match="0 rows"):
        line_plots.loss_curves_info([], x="epoch", series=["y"])
    with pytest.raises(InputError, match="0 series"):
        line_plots.loss_curves_info(HISTORY, x="epoch", series=[])


def test_layers_stand_in_their_order_with_bits_errors_and_shares() -> None:
    errors, shares = layer_plots.plot_layers(LAYERS, title="").axes
    assert [label.get_text() for label in errors.get_yticklabels()][:2] == [r"block\$0.conv, w2", r"block\$1.conv, w3"]
    np.testing.assert_array_equal(errors.lines[0].get_xdata(), [each["sqnr"] for each in LAYERS])
    assert errors.yaxis_inverted()
    assert [bar.get_width() for bar in shares.patches] == [100 * each["share"] for each in LAYERS]


def test_the_frontier_is_in_kilobytes_and_marks_what_was_chosen() -> None:
    np.testing.assert_array_equal(layer_plots.frontier_info(CHOICES), [[20, 30], [3, 0.2]])
    axes = layer_plots.plot_frontier(MIXED, title="").axes[0]
    drawn = {line.get_label(): line for line in axes.lines}
    assert [*drawn["chosen"].get_xdata(), *drawn["chosen"].get_ydata()] == [20, 3]
    assert list(drawn["asked for"].get_xdata()) == [25, 25]
    assert [text.get_text() for text in axes.texts] == ["w2"]


@pytest.mark.parametrize("seed", range(3))
def test_the_heat_map_holds_the_probabilities_and_their_argmax(seed: int) -> None:
    probabilities = random_probabilities(seed)
    table = architecture.probabilities_info(probabilities)
    assert table.shape == (33, 9)
    for edge, row in zip(EDGES, table, strict=True):
        assert {op: p for op, p in zip(architecture.OPERATIONS, row, strict=True) if not np.isnan(p)} == probabilities[
            edge.label
        ]
        best = max(probabilities[edge.label], key=probabilities[edge.label].__getitem__)
        assert architecture.OPERATIONS[np.nanargmax(row)] == best


def test_the_heat_map_frames_each_argmax() -> None:
    probabilities = random_probabilities(0)
    axes = architecture.plot_probabilities(probabilities).axes[0]
    framed = {(int(frame.get_y()), int(frame.get_x())) for frame in axes.patches}
    expected = np.nanargmax(architecture.probabilities_info(probabilities), axis=1)
    assert framed == set(enumerate(expected.tolist()))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"B1-N1 > B1-N9": {"nearest": 1.0}}, "'B1-N1 > B1-N9' is missing or unknown"),
        ({"B1-N1 > B1-N2": {"nearest": 1.0}}, "candidates are nearest, bilinear"),
        ({"B1-N1 > B1-N2": {"nearest": 0.7, "bilinear": 0.7}}, "no probability distribution"),
        ({"B1-N1 > B1-N2": {"nearest": 1.5, "bilinear": -0.5}}, "no probability distribution"),
        ({"B1-N1 > B1-N2": {"nearest": NAN, "bilinear": 1.0}}, "no probability distribution"),
        ({"B1-N1 > B1-N2": {"nearest": 0.0, "bilinear": NAN}}, "no probability distribution"),
    ],
)
def test_the_heat_map_refuses_what_is_no_softmax(change: dict[str, dict[str, float]], message: str) -> None:
    with pytest.raises(InputError, match=message):
        architecture.probabilities_info(random_probabilities(0) | change)


def test_every_edge_of_a_genotype_is_drawn_once_between_its_nodes() -> None:
    choices = random_choices(1)
    positions, lines = architecture.genotype_graph_info(choices)
    assert len(positions) == 15 + 3 + 1
    searched = [line for line in lines if line.operation != architecture.FIXED]
    assert [(f"{line.source} > {line.target}", line.operation) for line in searched] == list(choices.items())
    assert [line.active for line in searched] == [operation != NONE for operation in choices.values()]
    fixed = {(line.source, line.target) for line in lines if line.operation == architecture.FIXED}
    assert fixed == {
        ("z1", "B1-N1"),
        ("z2", "B2-N1"),
        ("z3", "B3-N1"),
        ("B1-N5", "B2-N1"),
        ("B2-N5", "B3-N1"),
        ("B3-N5", "image"),
    }
    for line in lines:  # both ends lie on the border of their nodes
        for node, end in ((line.source, line.path[0]), (line.target, line.path[-1])):
            across, along = np.abs(np.subtract(end, positions[node])) / half_size(node)
            assert max(across, along) == pytest.approx(1)


def test_no_line_shares_a_stretch_with_another_or_runs_through_a_node() -> None:
    positions, lines = architecture.genotype_graph_info(random_choices(2))
    stretches = [(line, *np.sort(pair, axis=0)) for line in lines for pair in itertools.pairwise(line.path)]
    for _, low, high in stretches:
        assert np.count_nonzero(high - low) == 1  # along an axis
        assert max(high - low) >= 0.2  # room for the round corner
    for (line, low, high), (other, other_low, other_high) in itertools.combinations(stretches, 2):
        common = np.minimum(high, other_high) - np.maximum(low, other_low)
        parallel = np.argmax(high - low) == np.argmax(other_high - other_low)
        if line is not other and parallel and common.max() > 0:
            assert common.min() < -0.07, (line, other)  # a gap between them
    for line, low, high in stretches:
        for node, place in positions.items():
            inside = np.minimum(high, place + half_size(node)) - np.maximum(low, place - half_size(node))
            assert inside.min() < 0 or node in (line.source, line.target), (line, node)


def test_the_graph_refuses_a_choice_that_is_no_candidate() -> None:
    with pytest.raises(InputError, match="cannot be 'conv_1x1'; choose from nearest, bilinear"):
        architecture.genotype_graph_info(random_choices(0) | {"B1-N1 > B1-N2": "conv_1x1"})
    with pytest.raises(InputError, match="'B1-N1 > B1-N2' is missing"):
        architecture.genotype_graph_info({edge.label: NONE for edge in EDGES[1:]})


def test_the_image_grid_has_classes_in_rows_and_scales_each_image() -> None:
    images = numbered_images(7, 3, 2, 5)
    grid = image_grids.image_grid_info(images, torch.tensor([4, 9, 4, 1, 9, 4, 4]), per_class=3, max_classes=2)
    assert grid.shape == (2, 3, 2, 5, 3)
    scaled = (np.arange(30) / 29).reshape(3, 2, 5).transpose(1, 2, 0)  # every image is a ramp
    np.testing.assert_allclose(grid[0, 0], scaled, atol=1e-12)  # class 1: the fourth image
    np.testing.assert_allclose(grid[1], np.stack([scaled] * 3), atol=1e-12)  # class 4
    assert np.isnan(grid[0, 1:]).all()


def test_the_image_grid_picks_the_first_images_of_each_class() -> None:
    images = torch.zeros(5, 1, 2, 3)
    for index in range(5):
        images[index, 0, index % 2, index % 3] = 1 + index  # one bright pixel, elsewhere in each image
    grid = image_grids.image_grid_info(images, torch.tensor([1, 0, 1, 1, 0]), per_class=2)
    bright = [[divmod(int(np.argmax(image)), 3) for image in row] for row in grid]
    assert bright == [[(1, 1), (0, 1)], [(0, 0), (0, 2)]]  # images 1 and 4, then 0 and 2


def test_the_image_grid_averages_other_channel_counts_and_blackens_constants() -> None:
    images = torch.tensor([[0.0, 2.0], [4.0, 2.0]]).view(1, 2, 1, 2).repeat(2, 1, 1, 1)  # mean over channels: 2, 2
    images[1, 0, 0, 1] = 6.0  # mean over channels: 2, 4
    grid = image_grids.image_grid_info(images, torch.tensor([0, 0]), per_class=2)
    np.testing.assert_array_equal(grid, np.array([0.0, 0.0, 0.0, 1.0]).reshape(1, 2, 1, 2, 1))


@pytest.mark.parametrize(
    ("shape", "labels", "per_class"),
    [((2, 3, 5), 2, 1), ((2, 3, 5, 5), 3, 1), ((2, 3, 5, 5), 2, 0), ((0, 3, 5, 5), 0, 1)],
)
def test_the_image_grid_refuses_shapes_that_do_not_fit(shape: tuple[int, ...], labels: int, per_class: int) -> None:
    with pytest.raises(InputError, match="give images"):
        image_grids.image_grid_info(torch.zeros(shape), torch.zeros(labels), per_class=per_class)


def test_diversity_is_the_variance_within_classes_over_all_of_it() -> None:
    generator = torch.Generator().manual_seed(0)
    images, labels = torch.randn(400, 1, 5, 5, generator=generator), torch.arange(400) % 4
    assert image_grids.diversity(images, labels) == pytest.approx(1.0, abs=0.01)  # classes look alike
    means = torch.tensor([-3.0, 3.0])[labels % 2].view(-1, 1, 1, 1)
    assert image_grids.diversity(images + means, labels) == pytest.approx(1 / (1 + 9), rel=0.05)
    assert image_grids.diversity(images[labels], labels) == 0.0  # all of a class are the same
    few = torch.arange(8) // 2
    assert image_grids.diversity(images[:8], few) == pytest.approx(1.0, abs=0.3)  # as with many
    assert image_grids.diversity(images[:4], labels[:4]) is None
    assert image_grids.diversity(images[:1].expand(4, -1, -1, -1), few[:4]) is None


def test_the_diversity_stands_below_the_images() -> None:
    images = torch.tensor([0.0, 2.0, 4.0, 6.0]).view(4, 1, 1, 1).expand(4, 1, 2, 3)
    (axes,) = image_grids.plot_images(images, torch.tensor([0, 0, 1, 1]), per_class=2).axes
    assert axes.get_xlabel() == "variance in a class / in all: 0.30"  # 4 / 2 of 20 / 3
    (axes,) = image_grids.plot_images(images, torch.arange(4), per_class=2).axes
    assert axes.get_xlabel() == ""


def test_the_image_rows_are_named_and_the_title_admits_what_is_left_out() -> None:
    figure = FIGURES["images"][0]()
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == ["0", "1", "2"]
    assert " ".join(figure.get_suptitle().split()) == "x" * 19 + " (first 3 of 5 classes)"


def test_dollars_are_no_mathematics(tmp_path: Path) -> None:
    title = r"x$\bad$.json"
    figure = architecture.plot_genotype(random_choices(0), title=title)
    canvas.save_figure(figure, tmp_path / "figure.png")
    assert figure.get_suptitle() == title.replace("$", r"\$")  # which matplotlib shows as the title


@pytest.mark.parametrize("name", FIGURES)
def test_a_figure_is_a_png_of_its_size_with_something_on_it(name: str, tmp_path: Path) -> None:
    make, (width, height) = FIGURES[name]
    canvas.save_figure(make(), tmp_path / "deep" / "figure.png")
    pixels = matplotlib.image.imread(tmp_path / "deep" / "figure.png")
    assert pixels.shape == (round(200 * height), round(200 * width), 4)
    assert np.unique(pixels[..., 0]).size > 20
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["figure.png"]


@pytest.mark.parametrize("name", FIGURES)
def test_no_text_overlaps_another_or_leaves_the_figure(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    figure, drawn, draw = FIGURES[name][0](), {}, Text.draw
    monkeypatch.setattr(Text, "draw", lambda self, renderer: (drawn.update({self: 1}), draw(self, renderer))[1])
    FigureCanvasAgg(figure).draw()
    texts = [text for text in drawn if text.get_visible() and text.get_text().strip()]
    boxes = [(text, text.get_window_extent()) for text in texts if text.get_rotation() in (0, 90)]  # boxes that fit
    assert len(boxes) >= 5
    for text, box in boxes:
        assert (figure.bbox.min <= box.min).all(), text
        assert (box.max <= figure.bbox.max).all(), text
    for (text, box), (other, other_box) in itertools.combinations(boxes, 2):
        assert not box.padded(-1).overlaps(other_box.padded(-1)), (text, other)


def test_a_failed_save_leaves_the_old_picture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "figure.png"
    path.write_bytes(b"old")

    def fail(self: Figure, file: BytesIO, **_: object) -> None:
        file.write(b"half")
        raise RuntimeError("disk gone")

    monkeypatch.setattr(Figure, "savefig", fail)
    with pytest.raises(RuntimeError, match="disk gone"):
        canvas.save_figure(Figure(), path)
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_only_png_is_written(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"not as figure\.pdf; give a name that ends in \.png"):
        canvas.save_figure(Figure(), tmp_path / "figure.pdf")


def test_threads_draw_the_same_pictures() -> None:
    make = FIGURES["loss"][0]
    alone = png(make())
    with ThreadPoolExecutor(2) as pool:
        for pixels in pool.map(lambda _: png(make()), range(4)):
            np.testing.assert_array_equal(pixels, alone)


def test_pyplot_is_not_imported() -> None:
    nodes = [
        node
        for module in (architecture, canvas, line_plots, image_grids)
        for node in ast.walk(ast.parse(inspect.getsource(module)))
    ]
    imported = [alias.name for node in nodes if isinstance(node, ast.Import | ast.ImportFrom) for alias in node.names]
    assert "pyplot" not in " ".join(imported)


def png(figure: Figure) -> np.ndarray:
    file = BytesIO()
    figure.savefig(file, format="png")
    file.seek(0)
    return matplotlib.image.imread(file)


def half_size(node: str) -> np.ndarray:
    return np.array([0.25 if node.startswith("z") else 0.42, 0.25])
