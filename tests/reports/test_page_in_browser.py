"""A report's page as a person sees it: by day, by night, and on a narrow screen."""

import pytest

from nni_autorecon.reports.page import to_html
from nni_autorecon.reports.report import make_report
from tests.helpers.browser import CHROMIUM, DRIVER, MISSING, browser
from tests.helpers.report_runs import found, in_folder, run

pytestmark = [pytest.mark.slow, pytest.mark.skipif(not (CHROMIUM and DRIVER), reason=MISSING)]

LONG = "a_name_of_a_folder_that_has_no_place_to_break_" * 3
CONTRAST = """
const canvas = new OffscreenCanvas(1, 1).getContext("2d", {willReadFrequently: true});
const rgba = colour => {
  canvas.clearRect(0, 0, 1, 1); canvas.fillStyle = colour; canvas.fillRect(0, 0, 1, 1);
  return [...canvas.getImageData(0, 0, 1, 1).data];
};
const luminance = colour => {
  const [r, g, b] = rgba(colour).map(v => (v /= 255) <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
  return 0.2126 * r + 0.7152 * g + 0.0722 * b;
};
const ground = element => {
  for (; element; element = element.parentElement) {
    const colour = getComputedStyle(element).backgroundColor;
    if (rgba(colour)[3]) return colour;
  }
  return "white";
};
document.querySelectorAll("details").forEach(each => each.open = true);
const texts = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT), found = [];
while (texts.nextNode()) {
  const element = texts.currentNode.parentElement;
  // Text of a heat map stands on coloured cells.
  if (!texts.currentNode.data.trim() || element.closest("style, figure.light svg")) continue;
  const style = getComputedStyle(element), svg = element.closest("svg");
  const [x, y] = [luminance(svg ? style.fill : style.color), luminance(ground(element))];
  found.push([texts.currentNode.data.trim(), (Math.max(x, y) + 0.05) / (Math.min(x, y) + 0.05)]);
}
return found;
"""


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    """Pages of students and of searches."""
    folder = tmp_path_factory.mktemp("pages")
    students = [
        run(
            90.0 + i,
            bits=bits,
            seed=i,
            name=LONG,
            generator=f"searched:{LONG}.json",
            checkpoint=LONG,
            metrics={"file_bytes": 9000 - i, "latency": 1.5 + i},
        )
        for i, bits in enumerate(("w8a8", "w4a4"))
    ]
    for name, runs in {"students": students, "searches": [found(0.5), found(0.6, seed=1)]}.items():
        runs = [in_folder(each, folder / name / str(i)) for i, each in enumerate(runs)]
        (folder / f"{name}.html").write_text(to_html(make_report(runs), title=LONG), encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def window(tmp_path_factory):
    with browser(tmp_path_factory.mktemp("browser")) as window:
        yield window


@pytest.fixture(params=["students", "searches"])
def name(request):
    return request.param


def look(window, page, *, width=1300, scheme="light"):
    scheme = [{"name": "prefers-color-scheme", "value": scheme}]
    screen = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 500}
    window.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": scheme})
    window.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", screen)
    window.get(page.as_uri())


@pytest.mark.parametrize("width", [360, 800, 1300])
def test_no_page_is_wider_than_the_screen(window, pages, name, width):
    look(window, pages / f"{name}.html", width=width)
    window.execute_script("document.querySelectorAll('details').forEach(each => each.open = true)")
    assert window.execute_script("return innerWidth") == width
    assert window.execute_script("return document.documentElement.scrollWidth") == width
    wide = "return [...document.querySelectorAll('.scroll')].filter(each => each.scrollWidth > each.clientWidth).length"
    assert window.execute_script(wide) > 0 or width > 360


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_all_text_stands_out_from_its_ground(window, pages, name, scheme):
    look(window, pages / f"{name}.html", scheme=scheme)
    found = window.execute_script(CONTRAST)
    assert len(found) > 100
    assert [each for each in found if each[1] < 4.5] == []


def test_the_scheme_is_that_of_the_person(window, pages, name):
    grounds = []
    for scheme in ("light", "dark"):
        look(window, pages / f"{name}.html", scheme=scheme)
        grounds.append(window.execute_script("return getComputedStyle(document.body).backgroundColor"))
    assert len(set(grounds)) == 2


def test_all_images_have_loaded_and_nothing_was_refused(window, pages, name):
    look(window, pages / f"{name}.html")
    widths = window.execute_script("return [...document.images].map(each => each.naturalWidth)")
    drawn = window.execute_script(
        "return [...document.querySelectorAll('details[open] svg, section > figure svg')]"
        ".map(each => each.getBoundingClientRect()).map(each => Math.min(each.width, each.height))"
    )
    assert len(widths) == 2
    assert min(widths) > 0
    assert len(drawn) >= 3
    assert min(drawn) > 100
    assert window.get_log("browser") == []
