"""A search is weighed against other uses of the same time, by its students: the table docs/results/worth.md.

    python benchmarks/worth.py --output docs/results/worth

Every generator gets the same time of one thread; a searched one spends half of it on the search. Then its images are
refined, and the blocks of a student are fitted to them, alike for all. ``noise`` has no generator: its pixels are
refined for as long. ``--networks FOLDER`` adds the networks of CIFAR that lie there. About a quarter of an hour a seed
for the digits, half an hour for another.
"""

from __future__ import annotations

import argparse
import itertools
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import teachers
import torch

import nni_autorecon as nar
from nni_autorecon.cache import cache_folder
from nni_autorecon.cli.exits import report_errors
from nni_autorecon.files import require_absent, write_text

NAMES = ("digits", "cifar10", "cifar100")
EPOCHS = 10
"""L_r is known at the end of each of so many epochs."""
WIDTH = 16
STUDENT: dict[str, Any] = {"refine_steps": 30, "block_images": 1024, "block_steps": 400}
SEARCHED, GDFQ = "searched, the search included", "GDFQ's"
GENERATORS = {
    "noise": "noise",
    GDFQ: "gdfq",
    "GDFQ's at the MACs of the searched": "gdfq@equal-macs",
    "random": "random:{seed}",
    "dil_conv_5x5 on all normal edges": "all:dil_conv_5x5",
    SEARCHED: "searched",
    "searched before, the search not counted": "searched",
}


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, metavar="NAME", help="write NAME.md and NAME.csv")
    parser.add_argument("--force", action="store_true", help="replace them if they exist")
    parser.add_argument("--teachers", nargs="+", choices=NAMES, default=NAMES, metavar="NAME")
    parser.add_argument("--seeds", nargs="+", type=int, default=(0, 1, 2))
    parser.add_argument("--bits", default="w3a3", help="of the students (default: w3a3)")
    parser.add_argument("--minutes", type=float, default=1.0, help="of a thread for the images (default: 1)")
    parser.add_argument("--networks", type=Path, help="a folder with models.py, cifar10/ and cifar100/")
    arguments = parser.parse_args(argv)
    for suffix in (".md", ".csv"):
        require_absent(arguments.output.with_suffix(suffix), force=arguments.force)
    torch.set_num_threads(1)
    bench = teachers.Bench(teachers.FASHION, arguments.networks, cache_folder() / "teachers")
    bench.folder.mkdir(parents=True, exist_ok=True)
    rows: list[dict[str, Any]] = []
    made = {
        name: teachers.TEACHERS[name].settings(bench) | {"threads": 1, "progress": False}
        for name in arguments.teachers
        if bench.networks or not teachers.TEACHERS[name].needs_networks
    }
    for seed, name in itertools.product(arguments.seeds, made):
        for row in compared(made[name] | {"seed": seed, "bits": arguments.bits}, seconds=60 * arguments.minutes):
            rows.append({"teacher": name, "seed": seed, **row})
            print(", ".join(f"{key} {value}" for key, value in rows[-1].items()), flush=True)
            frame = pd.DataFrame(rows)  # it is written after each, for a run may be ended early
            write_text(arguments.output.with_suffix(".csv"), frame.to_csv(index=False))
            write_text(arguments.output.with_suffix(".md"), to_markdown(frame, arguments))


def compared(settings: dict[str, Any], *, seconds: float) -> Iterator[dict[str, Any]]:
    """Yield a row for each generator, which learns for so many seconds."""
    target = None
    with tempfile.TemporaryDirectory() as folder:
        genotype = Path(folder) / "genotype.json"
        searched(settings, seconds / 2).genotype.save(genotype)
        for name, spec in GENERATORS.items():
            own: dict[str, Any] = {"generator": spec.format(seed=settings["seed"])}
            if "searched" in spec or "equal-macs" in spec:
                own["genotype"] = str(genotype)
            elif not spec.startswith(("noise", "gdfq")):
                own["width"] = WIDTH
            row, curve = student({**settings, **own}, seconds / 2 if name == SEARCHED else seconds)
            before = seconds / 2 if name == SEARCHED else 0.0
            if name == GDFQ:
                target = row["L_r"]
            reached = [before + at for at, loss in curve if target is not None and loss <= target]
            yield {"generator": name, **row, "seconds to GDFQ's L_r": round(reached[0]) if reached else None}


def searched(settings: dict[str, Any], seconds: float) -> nar.SearchResult:
    """Return what a search of so many seconds finds; the training of the generator found is cut short."""
    clock = Clock()
    of_search = {name: value for name, value in settings.items() if name not in ("bits", "test_data")}
    of_search |= {"width": WIDTH, "final_steps": 1}
    nar.search(**of_search, epochs=2, on_epoch=clock.mark)
    (first, _), (second, _) = clock.marks
    return nar.search(**of_search, epochs=max(round(seconds / (second - first)), 1))


def student(settings: dict[str, Any], seconds: float) -> tuple[dict[str, Any], list[tuple[float, float]]]:
    """Return a row, and pairs of seconds and L_r while the generator learned for so many seconds."""
    pilot, clock = Clock(), Clock()
    if settings["generator"] == "noise":
        nar.compress(**settings, **STUDENT | {"refine_steps": 2, "block_steps": 0}, on_epoch=pilot.mark)
        length = {"refine_steps": STUDENT["refine_steps"] + round(seconds / (pilot.seconds("images") / 2))}
    else:
        few: dict[str, Any] = {
            "epochs": 4,
            "warmup_epochs": 2,
            "steps": 4,
            "block_images": 64,
            "refine_steps": 0,
            "block_steps": 0,
        }
        nar.compress(**settings, **few, on_epoch=pilot.mark)
        steps = round(seconds / (pilot.seconds("warm-up") / few["steps"]) / EPOCHS)
        length = {"steps": max(steps, 1), "epochs": EPOCHS + 2, "warmup_epochs": EPOCHS}
    clock.start()
    result = nar.compress(**settings, **STUDENT | length, on_epoch=clock.mark)
    assert result.loss is not None
    assert result.accuracy is not None
    curve = [(at, row["loss"]) for at, row in clock.marks if row["phase"] == "warm-up" and "loss" in row]
    return {
        "MMACs": round((result.generator_macs or 0) / 1e6, 1),
        "L_r": round(curve[-1][1], 3) if curve else None,
        "L_r of the images": round(result.loss["loss"], 3),
        "student": round(100 * result.accuracy, 2),
        "agreement": round(100 * result.agreement, 2),
        "seconds": round(clock.marks[-1][0]),
    }, curve


class Clock:
    """The CPU seconds of this process at the end of each epoch, beside the epoch's metrics."""

    def __init__(self) -> None:
        self.start()

    def start(self) -> None:
        self.marks: list[tuple[float, Mapping[str, Any]]] = []
        self.started = time.process_time()

    def mark(self, metrics: Mapping[str, Any]) -> None:
        self.marks.append((time.process_time() - self.started, metrics))

    def seconds(self, phase: str) -> float:
        """Return the seconds of the last epoch of a phase."""
        times = [0.0, *(at for at, _ in self.marks)]
        last = max(number for number, (_, row) in enumerate(self.marks) if row["phase"] == phase)
        return times[last + 1] - times[last]


def to_markdown(rows: pd.DataFrame, arguments: argparse.Namespace) -> str:
    """Return the table for readers: a line for each teacher and generator, mean ± standard deviation over seeds."""
    measures = ["MMACs", "L_r", "seconds to GDFQ's L_r", "L_r of the images", "student"]
    lines = [
        "# What a search is worth for students",
        "",
        f"By `python benchmarks/worth.py`: students of {arguments.bits}, {arguments.minutes:g} min of a CPU thread "
        "for each generator (a searched one: half of it for the search, where it is included). L_r is the mean of the "
        "last tenth of the batches, then that of the images to which the student is fitted, after their pixels were "
        "refined. Students in percent of the test images, after the last block; mean ± standard deviation over seeds.",
        "",
        f"| teacher | generator | seeds | {' | '.join(measures)} |",
        "|---|---|---|" + "---|" * len(measures),
    ]
    for (teacher, generator), group in rows.groupby(["teacher", "generator"], sort=False):
        cells = [spread(group[measure].dropna()) for measure in measures]
        lines.append(f"| {teacher} | {generator} | {len(group)} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def spread(values: pd.Series) -> str:
    if not len(values):
        return "–"
    return f"{values.mean():.4g}" + (f" ± {values.std():.2g}" if len(values) > 1 else "")


if __name__ == "__main__":
    sys.exit(report_errors(main))
