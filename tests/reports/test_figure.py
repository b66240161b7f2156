"""The numbers behind a report's figure, and that nothing on it overlaps or is lost."""

import itertools

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.text import Text

from nni_autorecon.reports.figure import comparison_info, plot_costs, plot_report
from nni_autorecon.reports.report import make_report
from nni_autorecon.runs.records import FAILED
from tests.helpers.report_runs import SEARCHES, TABLE_2, found, run

NAN = np.nan


def scales(**settings):
    return [run(80.0 + s + seed, generator_scale=s, seed=seed, **settings) for s in (0.5, 1, 4) for seed in (0, 1)]


def objectives():
    return [
        run(60.0 + 9 * r + a + seed, seed=seed, reconstruction_weight=r, adversarial_weight=a, generator=generator)
        for r, a, seed in itertools.product((0.0, 1.0), (0.0, 1.0), (0, 1))
        for generator in ("gdfq", "searched:a.json")
    ]


REPORTS = {
    "bits": TABLE_2,
    "scales": [
        *scales(protocol="activations"),
        *scales(protocol="integer"),
        run(status=FAILED, generator_scale=2.0, protocol="activations"),
    ],
    "objectives": [*objectives(), run(status=FAILED, reconstruction_weight=2.0)],
    "nothing yet": [run(status=FAILED), run(status=FAILED, bits="w3a3")],
    "one": [run(90.0)],
    "dollars": [
        run(90.0 + seed, generator=f"searched:{name}.json", seed=seed) for name in ("$x$", "$\\bad$") for seed in (0, 1)
    ],
    "dollars in lines": [run(90.0, generator="searched:$\\bad$.json", bits=bits) for bits in ("w4a4", "w3a3")],
    "searches": [*SEARCHES, *(found(0.6 + seed, relaxation="paper", seed=seed) for seed in (0, 1))],
    "searches waiting": [SEARCHES[-1]],
}


def test_a_series_per_row_has_means_and_deviations_and_gaps():
    runs = [*TABLE_2, run(status=FAILED, generator="all:identity", bits="w3a3")]
    positions, series, missing = comparison_info(make_report(runs).sections[0].tables[0])
    np.testing.assert_array_equal(positions, [0, 1])
    assert [name for name, *_ in series] == ["gdfq", "all:identity", "searched"]
    np.testing.assert_allclose(series[0].mean, [91.2, 78.1])
    np.testing.assert_allclose(series[0].std, [np.std([91, 91.5, 91.1], ddof=1), np.std([78.4, 77.8], ddof=1)])
    np.testing.assert_array_equal(series[1].mean, [NAN, NAN])
    np.testing.assert_allclose(series[2].std, [np.std([92.1, 92.5, 92.33], ddof=1), NAN])
    assert missing == ["all:identity at w4a4 (not run)", "all:identity at w3a3 (failed)"]


def test_panels_have_one_scale():
    figure = plot_report(make_report(REPORTS["scales"]))
    first, second = (axes.get_ylim() for axes in figure.axes)
    assert first == second


def test_scales_stand_at_their_logarithms():
    positions, ((_, mean, std),), _ = comparison_info(make_report(scales()).sections[0].tables[0])
    np.testing.assert_array_equal(positions, [-1, 0, 2])
    np.testing.assert_allclose(mean, [81, 81.5, 84.5])
    np.testing.assert_allclose(std, [np.sqrt(0.5)] * 3)


def test_lines_have_the_tables_points_and_the_teacher():
    figure = plot_report(make_report(TABLE_2))
    (axes,) = figure.axes
    means = [container.lines[0].get_ydata() for container in axes.containers]
    np.testing.assert_allclose(means, [[91.2, 78.1], [92.31, 70.0]])
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["gdfq", "searched", "teacher, 99.10"]
    assert axes.lines[-1].get_ydata()[0] == pytest.approx(99.1)


def test_a_teacher_far_away_does_not_squeeze_the_points():
    figure = plot_report(
        make_report([run(30.0 + seed, seed=seed, bits=b) for seed in (0, 1) for b in ("w3a3", "w2a2")])
    )
    assert figure.axes[0].get_ylim()[1] < 35
    assert figure.legends[0].get_texts()[-1].get_text() == "teacher, 99.10 (off the scale)"


def test_one_column_is_drawn_row_by_row():
    axes = plot_report(make_report(objectives())).axes[0]
    names = [" ".join(label.get_text().split()) for label in axes.get_yticklabels()]
    assert names[:2] == [
        "reconstruction_weight=0, adversarial_weight=0, gdfq",
        "reconstruction_weight=0, adversarial_weight=0, searched:a.json",
    ]
    assert [container.lines[0].get_xdata()[0] for container in axes.containers][:4] == [60.5, 60.5, 61.5, 61.5]
    assert axes.get_ylim() == (7.5, -0.5)  # the first row on top


def test_a_search_is_a_ring_for_each_seed_and_a_strategy_has_one_colour():
    figure = plot_report(make_report(REPORTS["searches"]))
    (axes,) = figure.axes
    assert [label.get_text() for label in axes.get_yticklabels()] == [
        "autorecon, relaxation=logits",
        "autorecon, relaxation=paper",
        "random",
        "tpe",
    ]
    rings = [line for line in axes.lines if line.get_label() == "one seed"]
    assert [(line.get_ydata()[0], sorted(line.get_xdata())) for line in rings] == [
        (0, [0.5, 0.52, 0.55]),
        (1, [0.6, 1.6]),
        (3, [0.7, 0.74]),
    ]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["one seed"]
    logits, paper, _, tpe = (container.lines[0].get_color() for container in axes.containers)
    assert logits == paper != tpe
    assert axes.get_xlabel() == "L_r of the generator found"
    assert figure.get_supxlabel() == "Not shown: random (waiting)"


def costly(accuracy, size, latency, **settings):
    return run(accuracy, metrics={"file_bytes": size, **({"latency": latency} if latency else {})}, **settings)


@pytest.mark.parametrize("bits", [("w4a4",), ("w4a4", "w3a3")], ids=["dots", "lines"])
def test_no_scale_goes_far_beyond_all(bits):
    report = make_report([costly(100.0, 4000, None, bits=each) for each in bits])
    (axes,), (costs,) = plot_report(report).axes, plot_costs(report).axes
    for low, high in (axes.get_ylim() if len(bits) > 1 else axes.get_xlim(), costs.get_ylim()):
        assert low < 100 < high < 101


def test_accuracy_stands_over_size_and_over_latency():
    bits = {"w8a8": (90.0, 200_000, 1.0), "w4a4": (88.0, 100_000, 1.1)}
    runs = [costly(a + seed, size, time, bits=b, seed=seed) for b, (a, size, time) in bits.items() for seed in (0, 1)]
    figure = plot_costs(make_report(runs))
    size, latency = ([*axes.get_lines()[0].get_xydata()] for axes in figure.axes)
    np.testing.assert_allclose(size, [(100, 88.5), (200, 90.5)])
    np.testing.assert_allclose(latency, [(1.0, 90.5), (1.1, 88.5)])
    (alone,) = plot_costs(make_report([costly(90.0, 5_000, None)])).axes
    assert alone.get_xlabel() == "the student's file (kB)"
    assert plot_costs(make_report([run(90.0)])) is None


def test_missing_points_are_named_below():
    assert plot_report(make_report(TABLE_2)).get_supxlabel() == ""
    text = " ".join(plot_report(make_report(REPORTS["scales"])).get_supxlabel().split())
    assert text == "Not shown: protocol activations: gdfq at s = 2 (failed)"


@pytest.mark.parametrize("name", REPORTS)
def test_no_text_overlaps_another_or_leaves_the_figure(name, monkeypatch):
    figure, drawn, draw = plot_report(make_report(REPORTS[name])), {}, Text.draw
    monkeypatch.setattr(Text, "draw", lambda self, renderer: (drawn.update({self: 1}), draw(self, renderer))[1])
    FigureCanvasAgg(figure).draw()
    boxes = [(text, text.get_window_extent()) for text in drawn if text.get_visible() and text.get_text().strip()]
    assert len(boxes) >= 3
    for text, box in boxes:
        assert (figure.bbox.min <= box.min).all(), text
        assert (box.max <= figure.bbox.max).all(), text
    for (text, box), (other, other_box) in itertools.combinations(boxes, 2):
        assert not box.padded(-1).overlaps(other_box.padded(-1)), (text, other)
