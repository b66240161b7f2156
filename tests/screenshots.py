"""The pictures of NNI's web UI in docs/: ``python -m tests.screenshots``, some ten minutes on two cores.

Short runs of the three kinds of experiments, each shown where it is most telling.
"""

import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from . import managers
from .browser import Page, web_ui
from .managers import ROOT, experiment, wait_until_done

STUDENT = "--epochs 10 --warmup-epochs 3 --steps 25 --genotype search_spaces/digits/seed-0.json"
COMPRESS = f"python trials/compress.py --teacher digits --threads 1 {STUDENT}"
MAXIMIZE = {"name": "GridSearch", "classArgs": {"optimize_mode": "maximize"}}


def choices(**values: list[Any]) -> dict[str, Any]:
    return {name: {"_type": "choice", "_value": given} for name, given in values.items()}


EXPERIMENTS: Mapping[str, Mapping[str, Any]] = {
    "search": {
        "experimentName": "AutoReCon search",
        "trialCommand": "python trials/search.py --teacher digits --threads 1 --epochs 16 --weight-steps 8 "
        "--architecture-steps 4 --final-steps 60",
        "searchSpace": choices(seed=[0, 1], relaxation=["logits", "paper"]),
    },
    "compress": {
        "experimentName": "AutoReCon compression",
        "trialCommand": COMPRESS,
        "searchSpace": choices(bits=["w4a4", "w3a3", "w2a2"], student_lr=[0.001, 0.0003]),
        "tuner": MAXIMIZE,
    },
    "compare": {
        "experimentName": "AutoReCon Table 2",
        "trialCommand": COMPRESS,
        "searchSpace": choices(generator=["gdfq@equal-macs", "random:{seed}", "searched"], bits=["w3a3", "w2a4"]),
        "tuner": MAXIMIZE,
    },
}


def show_search(page: Page) -> None:
    page.button("Intermediate result")
    page.wait_for(lambda: page.find("//canvas"), "the curves")
    time.sleep(3)  # they are drawn slowly, for show


def show_compress(page: Page) -> None:
    page.button("Hyper-parameter")
    page.button("Add/Remove axes")
    page.choose(["bits", "student_lr", "default", "accuracy", "ranges_only_accuracy", "compression_ratio"])
    page.wait_for(lambda: page.find("//*[@class='parcoords']//*[text()='accuracy']"), "the axes")


def show_compare(page: Page) -> None:
    page.button("Add/Remove columns")
    wanted = ["generator (space)", "bits (space)", "accuracy (metric)", "generator_macs (metric)"]
    page.choose(["Trial No.", "Default metric", *wanted])
    page.wait_for(lambda: "generator_macs" in page.text, "the columns")


VIEWS: Mapping[str, Callable[[Page], None]] = {
    "search": show_search, "compress": show_compress, "compare": show_compare,
}  # fmt: skip


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
