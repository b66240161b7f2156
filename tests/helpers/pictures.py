"""The pictures in docs/: ``python -m tests.helpers.pictures``, some ten minutes on two idle cores.

All of them, or those that are named: ``students first-student web-ui-search web-ui-compress``. The runs are those of
the pages on which the pictures stand. Pictures of the web UI need a browser.
"""

import json
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import nni_autorecon as nar
from benchmarks import front_picture
from tests.helpers import managers
from tests.helpers.browser import Page, web_ui
from tests.helpers.managers import ROOT, experiment, get, wait_until_done

DOCS = ROOT / "docs"


def space(name: str, **changes: list[Any]) -> dict[str, Any]:
    values: dict[str, Any] = json.loads((ROOT / "search_spaces" / f"{name}.json").read_text())
    return {**values, **{name: {"_type": "choice", "_value": given} for name, given in changes.items()}}


EXPERIMENTS: Mapping[str, Mapping[str, Any]] = {
    "search": {
        "experimentName": "AutoReCon search",
        "trialCommand": "python trials/search.py --teacher digits --threads 1",
        "searchSpace": space("search"),
    },
    "compress": {
        "experimentName": "AutoReCon compression",
        "trialCommand": "python trials/compress.py --teacher digits --threads 1",
        "searchSpace": space("compress", genotype=["search_spaces/digits/seed-0.json"]),
        "tuner": {"name": "GridSearch", "classArgs": {"optimize_mode": "maximize"}},
    },
}
"""The experiments of experiment.yml and experiments/compress.yml."""


def show_search(page: Page) -> None:
    page.button("Intermediate result")
    page.wait_for(lambda: page.find("//canvas"), "the curves")
    time.sleep(3)  # they are drawn slowly, for show


def show_compress(page: Page) -> None:
    page.button("Hyper-parameter")
    page.button("Add/Remove axes")
    page.choose(["bits", "default", "accuracy", "ranges_only_accuracy", "compression_ratio"])
    page.wait_for(lambda: page.find("//*[@class='parcoords']//*[text()='accuracy']"), "the axes")


VIEWS: Mapping[str, Callable[[Page], None]] = {"search": show_search, "compress": show_compress}


def draw_students(folder: Path) -> None:
    """Draw the README's picture, and write its numbers."""
    front_picture.main(["--output", str(DOCS / "students"), "--force"])


def draw_first_student(folder: Path) -> None:
    """Copy what the search of docs/first-student.md leaves in its folder."""
    nar.search(seed=1, threads=1, folder=folder / "search", progress="lines")
    for name, picture in (("loss", "search"), ("genotype", "genotype")):
        shutil.copy(folder / "search" / f"{name}.png", DOCS / f"{picture}.png")


def photograph(name: str, folder: Path) -> None:
    """Take a picture of an experiment of docs/web-ui.md, where it is most telling."""
    environment = managers.environment(folder)
    with experiment(environment, folder, **EXPERIMENTS[name]) as (_, port):
        wait_until_done(port, 3600)
        assert {trial["status"] for trial in get(port, "trial-jobs")} == {"SUCCEEDED"}
        with web_ui(port, folder / "browser", height=1080) as page:
            page.open("detail")
            page.wait_for(lambda: page.find("//*[@role='row'][@data-item-index]"), "the trials")
            VIEWS[name](page)
            # The icons are a font from the network, which may be out of reach: empty boxes are no ornament.
            style = "i {visibility: hidden !important}"
            page.driver.execute_script(
                "document.head.append(Object.assign(document.createElement('style'), arguments[0]))",
                {"textContent": style},
            )
            page.driver.save_screenshot(str(DOCS / f"webui-{name}.png"))


PICTURES: Mapping[str, Callable[[Path], None]] = {
    "students": draw_students,
    "first-student": draw_first_student,
    **{f"web-ui-{name}": partial(photograph, name) for name in EXPERIMENTS},
}


def main(names: list[str]) -> None:
    for name in names or PICTURES:
        with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
            PICTURES[name](Path(folder))


if __name__ == "__main__":
    main(sys.argv[1:])
