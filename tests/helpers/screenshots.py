"""The pictures of NNI's web UI in docs/: ``python -m tests.helpers.screenshots``, some ten minutes on two cores.

The experiments of docs/web-ui.md, each shown where it is most telling.
"""

import json
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from tests.helpers import managers
from tests.helpers.browser import Page, web_ui
from tests.helpers.managers import ROOT, experiment, wait_until_done


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


def main(names: list[str]) -> None:
    for name in names or EXPERIMENTS:
        with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
            environment = managers.environment(Path(folder))
            with experiment(environment, Path(folder), **EXPERIMENTS[name]) as (_, port):
                wait_until_done(port, 1800)
                photograph(port, VIEWS[name], Path(folder, "browser"), ROOT / "docs" / f"webui-{name}.png")


def photograph(port: int, show: Callable[[Page], None], profile: Path, picture: Path) -> None:
    with web_ui(port, profile, height=1080) as page:
        page.open("detail")
        page.wait_for(lambda: page.find("//*[@role='row'][@data-item-index]"), "the trials")
        show(page)
        # The icons are a font from the network, which may be out of reach: empty boxes are no ornament.
        style = "i {visibility: hidden !important}"
        page.driver.execute_script(
            "document.head.append(Object.assign(document.createElement('style'), arguments[0]))", {"textContent": style}
        )
        page.driver.save_screenshot(str(picture))


if __name__ == "__main__":
    main(sys.argv[1:])
