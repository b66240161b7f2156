"""A report as a page: what is in it and what is not, and that nothing leads out of it or into its markup."""

import re
from collections import Counter
from html.parser import HTMLParser

import pytest

from nni_autorecon.errors import InputError
from nni_autorecon.quantization.coverage import Coverage
from nni_autorecon.reports.artifacts import Artifacts, read_artifacts
from nni_autorecon.reports.page import PARTS, to_html
from nni_autorecon.reports.report import make_report
from nni_autorecon.runs.records import RUNNING, read_folder
from tests.helpers.report_runs import COVERAGE, SEARCHES, TABLE_2, VERSIONS, found, in_folder, run

COSTS = {"w8a8": (90.0, 9000), "w4a4": (88.0, 5000)}


@pytest.fixture
def students(tmp_path):
    """Two students of different bits, with sizes but without latencies."""
    return [
        in_folder(run(a, bits=bits, name=f"runs/{bits}", metrics={"file_bytes": size}), tmp_path / bits)
        for bits, (a, size) in COSTS.items()
    ]


@pytest.fixture
def searches(tmp_path):
    return [in_folder(found(0.5, seed=seed, name=f"runs/{seed}"), tmp_path / str(seed)) for seed in (0, 1)]


class Elements(HTMLParser):
    """The elements of a page, each with its attributes, and all text outside of the style sheet."""

    def __init__(self, text):
        super().__init__()
        self.elements, self.words, self._inside = [], [], ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        self._inside = tag

    def handle_data(self, data):
        if self._inside != "style" and data.strip():
            self.words.append(" ".join(data.split()))

    def named(self, *tags):
        return [attributes for tag, attributes in self.elements if tag in tags]


def page(runs, title="mine"):
    return Elements(to_html(make_report(runs), title=title))


def parts(runs):
    return [each["id"] for each in page(runs).named("section")]


def follows(words, *expected):
    """Return True if ``expected`` stand in ``words``, one right behind the other."""
    return any(tuple(words[i : i + len(expected)]) == expected for i in range(len(words)))


def test_a_page_has_the_parts_that_the_runs_have(students, searches):
    assert parts(students) == ["results", "costs", "curves", "images", "layers", "runs", "settings"]
    assert parts(searches) == ["results", "curves", "generators", "images", "runs", "settings"]
    assert parts(TABLE_2) == parts(SEARCHES) == ["results", "runs", "settings"]


def test_the_links_at_the_top_lead_to_the_parts(students):
    shown = page(students)
    assert [each["href"] for each in shown.named("a")] == [f"#{each['id']}" for each in shown.named("section")]
    assert set(parts(students)) < set(PARTS)


def test_one_result_is_not_drawn(students):
    assert parts(students[:1]) == ["results", "curves", "images", "layers", "runs", "settings"]
    assert len(page(students[:1]).named("svg")) == 1  # the curves


def test_an_unfinished_run_has_curves_alone(tmp_path):
    unfinished = in_folder(run(status=RUNNING), tmp_path)
    (tmp_path / "images.png").write_bytes(b"half a picture")
    assert parts([unfinished]) == ["results", "curves", "runs", "settings"]


def test_the_tables_are_those_of_the_report(students):
    words = page(students).words
    assert follows(words, "generator", "w8a8", "w4a4", "MMACs", "parameters (k)")
    assert follows(words, "gdfq", "90.00, n=1", "88.00, n=1", "28.7", "430")
    assert follows(words, "gdfq", "9.0, n=1", "5.0, n=1")
    assert follows(words, "runs/w4a4", "w4a4", "finished", "88.00", "99.10")


def test_layers_have_their_bits_and_parts_in_floating_point_their_reason(students):
    words = page(students).words
    assert follows(words, "stem", "Conv2d", "16×3×3×3", "8", "30.0", "25.0 %")
    assert follows(words, "head.<b>", "Linear", "10×16", "4", "29.0", "25.0 %")
    assert follows(words, "odd", "no kernel & no hope", "pool", "its input is a <b>sum</b>")
    assert "quantized weights: 1 Conv2d at 8 bits, 1 Linear at 4 bits" in words
    assert not any("not quantized: odd" in word for word in words)


def test_layers_of_which_no_cost_is_known_have_their_bits(tmp_path, students):
    result = students[0].folder / "result.json"
    result.write_text(re.sub('"layers": .*?]', '"layers": null', result.read_text(), flags=re.DOTALL))
    with pytest.raises(InputError, match="its sha256 is of other values"):
        page(students)
    result.write_text(re.sub(',\\s*"sha256".*', "}", result.read_text(), flags=re.DOTALL))
    assert follows(page(students).words, "stem", "Conv2d", "16×3×3×3", "8", "–", "–")


def test_a_search_shows_what_it_found(searches):
    shown = page(searches)
    assert len(shown.named("details")) == 3  # two generators, and the settings at their defaults
    assert "open" in shown.named("details")[0]
    assert "B1-N2 = conv_3x3(B1-N1)" not in shown.words
    assert any("B1-N4 = conv_3x3(B1-N2) + conv_3x3(B1-N3)" in word for word in shown.words)
    assert {"softmax", "B1-N2 > B1-N4", "dil_conv_5x5"} <= {word.split("(")[0].strip() for word in shown.words}


def test_settings_are_told_apart_by_whether_they_are_defaults():
    runs = [run(90.0, seed=seed, student_lr=0.5, versions={**VERSIONS, "torch": f"2.{14 + seed}"}) for seed in (0, 1)]
    words = page(runs).words
    assert follows(words, "student_lr", "0.5")
    assert follows(words, "seed", "0, 1")
    assert follows(words, "torch", "2.14, 2.15")
    assert words.index("student_lr") < next(i for i, word in enumerate(words) if word.endswith("at their defaults"))
    assert words.index("teacher") > words.index("student_lr")
    assert "They are not recorded." in page([run(90.0, versions={})]).words


EVIL = "<script>alert(1)</script><img src=x onerror=alert(1)>\"'&"


def test_what_files_say_is_text(tmp_path):
    runs = [
        run(
            90.0 + i,
            name=f"{EVIL}{i}",
            generator=f"searched:{EVIL}.json",
            bits=bits,
            checkpoint=EVIL,
            versions={EVIL: EVIL},
            metrics={"file_bytes": 9},
        )
        for i, bits in enumerate(("w8a8", "w4a4"))
    ]
    runs = [in_folder(each, tmp_path / each.settings["bits"]) for each in runs]
    shown = page(runs, title=EVIL)
    assert not shown.named("script", "b", "i")
    assert all(each["src"].startswith("data:image/png;base64,") for each in shown.named("img"))
    assert not any(name.startswith("on") for _, attributes in shown.elements for name in attributes)
    assert EVIL in shown.words
    assert follows(shown.words, f"{EVIL}0", "w8a8")
    assert f"searched:{EVIL}.json" in shown.words


@pytest.mark.parametrize("kind", ["students", "searches"])
def test_a_page_needs_nothing_but_itself(kind, request):
    runs = request.getfixturevalue(kind)
    text = to_html(make_report(runs), title="mine")
    shown = Elements(text)
    targets = [v for _, each in shown.elements for k, v in each.items() if k in ("src", "href", "xlink:href")]
    styles = [v for _, each in shown.elements for v in each.values() if v and "url(" in v]
    targets += [target for style in styles for target in re.findall(r"url\((.*?)\)", style)]
    ids = Counter(each["id"] for _, each in shown.elements if "id" in each)
    assert len(targets) > 10
    assert all(target.startswith("data:image/png;base64,") or target.removeprefix("#") in ids for target in targets)
    assert max(ids.values()) == 1
    assert not shown.named("script", "link", "iframe", "object")
    assert "@import" not in text
    assert "default-src 'none'" in text


def test_a_page_is_the_same_each_time(searches):
    assert to_html(make_report(searches), title="x") == to_html(make_report(searches), title="x")


@pytest.mark.parametrize("name", ["metrics.csv", "genotype.json", "probabilities.json", "images.png"])
def test_a_damaged_file_is_named(name, searches):
    damaged = searches[1].folder / name
    damaged.write_bytes(b"" if name == "metrics.csv" else b"{")
    with pytest.raises(InputError, match=re.escape(str(damaged))) as error:
        page(searches)
    assert "\n" not in str(error.value)


def test_probabilities_that_are_none_are_named(searches):
    (searches[0].folder / "probabilities.json").write_text("{}")
    with pytest.raises(InputError, match=r"probabilities\.json is damaged \('B1-N1 > B1-N2' is missing"):
        page(searches)


def test_a_run_that_is_not_here_left_nothing(students):
    assert read_artifacts(run(90.0)) == Artifacts()
    assert read_artifacts(students[0]).layers is not None


def test_the_folder_of_a_run_is_known(students, tmp_path):
    (tmp_path / "w8a8" / "config.json").write_text('{"command": "compress", "config": {}}')
    assert read_folder(tmp_path / "w8a8").folder == tmp_path / "w8a8"


@pytest.mark.parametrize("coverage", [COVERAGE, Coverage((), (), None, ())])
def test_a_coverage_is_read_as_it_was_written(coverage):
    assert Coverage.from_dict(coverage.to_dict()) == coverage
