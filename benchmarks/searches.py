"""Variants of the search, and generators that were not searched, are each trained and measured alike.

    python benchmarks/searches.py --output docs/results/searches

About an hour and a half on two CPU cores for the digits teacher. Flags are those of `nni-autorecon search`; for
another teacher:

    python benchmarks/searches.py --output NAME --teacher nni_autorecon.networks:resnet20 --checkpoint FILE ...

``--variants`` chooses some of the searches.
L_r alone is compared: no real image enters it. Runs that stand in --runs are not run again.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import re
import statistics
import sys
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
import torch

from nni_autorecon.api import search
from nni_autorecon.cli.exits import report_errors
from nni_autorecon.config.flags import add_flags, from_flags
from nni_autorecon.config.search import FINAL_VALIDATION_STEPS, SearchConfig
from nni_autorecon.errors import InputError
from nni_autorecon.files import require_absent, write_json, write_text
from nni_autorecon.generator.by_name import generator_from_spec
from nni_autorecon.generator.genotype import Genotype
from nni_autorecon.generator.latent import LatentSource
from nni_autorecon.generator.training import measure_generator, objective_for, train_generator
from nni_autorecon.runs.provenance import versions
from nni_autorecon.teacher.configured import configured_teacher

SEEDS = (0, 1, 2, 3, 4, 5)
RANDOM = 8
"""Random genotypes for each seed, of which the best is taken as well."""
SEARCHES = 3
"""Searches for each seed, of which the best is taken as well; they take about as many batches as RANDOM trainings."""
BASELINE = "searched"

Result = Mapping[str, Any]
"""``losses`` (L_r after each training), ``generator_macs`` and, if a search or a choice was made, its ``updates``."""


class Candidate(NamedTuple):
    """A generator as ``generator_from_spec`` takes it, the batches that finding it took, if any, and its L_r then."""

    spec: str
    updates: int | None = None
    loss: float | None = None


def variants(config: SearchConfig) -> dict[str, dict[str, Any]]:
    """Settings that differ from ``config``, by name."""
    half, steps = max(1, config.epochs // 2), config.epoch_steps
    for_tournament = max(1, (config.epochs - half) * steps // 9)
    in_full = {"tournament": RANDOM - 2, "tournament_steps": config.final_steps}  # costs about what trying RANDOM does
    return {
        BASELINE: {},
        "eq. 7 as printed": {"relaxation": "paper"},
        "hard samples": {"sampling": "hard"},
        "half as many steps of α as of W": {"weight_steps": steps - steps // 3, "architecture_steps": steps // 3},
        "α's rate 0.02": {"architecture_lr": 0.02},
        "τ to 0.3": {"temperature_end": 0.3},
        "τ = 1": {"temperature_start": 1.0, "temperature_end": 1.0},
        "entropy penalty 1": {"entropy_penalty": 1.0},
        "MAC penalty 0.1": {"mac_penalty": 0.1},
        "MAC penalty 0.5": {"mac_penalty": 0.5},
        "MAC penalty 2": {"mac_penalty": 2.0},
        f"as many batches as the best of {RANDOM}": {"epochs": max(1, RANDOM * config.final_steps // steps)},
        "half the epochs, tournament": {"epochs": half, "tournament": 8, "tournament_steps": for_tournament},
        f"tournament of {RANDOM - 1}, each trained in full": in_full,
        "MAC penalty 0.1 and this tournament": {"mac_penalty": 0.1, **in_full},
        "game against a w4a4 student": {"adaptability_weight": 1.0},
    }


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, metavar="NAME", help="write NAME.md and NAME.csv")
    parser.add_argument("--force", action="store_true", help="replace it if it exists")
    parser.add_argument("--runs", type=Path, default=Path("runs/searches"), metavar="FOLDER", help="of the searches")
    parser.add_argument(
        "--variants",
        nargs="+",
        choices=list(variants(SearchConfig())),
        metavar="NAME",
        help=f"besides {BASELINE!r}, as the table calls them (default: all)",
    )
    parser.add_argument(
        "--trainings",
        type=int,
        default=4,
        metavar="N",
        help="of each generator, for one alone says more of its luck than of the generator (default: 4, at least 2)",
    )
    parser.add_argument("--jobs", type=int, default=2, help="runs at once, one CPU thread each (default: 2)")
    parser.set_defaults(config=None)
    add_flags(parser, SearchConfig)
    arguments = parser.parse_args(argv)
    if {"seed", "threads"} & set(vars(arguments)):
        parser.error(f"seeds are {SEEDS}, and each run has one thread; leave out --seed and --threads")
    if arguments.trainings < 2:
        parser.error(f"--trainings {arguments.trainings} is too few to tell by how much they differ; give 2 or more")
    for suffix in (".md", ".csv"):
        require_absent(arguments.output.with_suffix(suffix), force=arguments.force)
    config = from_flags(SearchConfig, arguments).override({"threads": 1})
    chosen = [name for name in variants(config) if name == BASELINE or name in (arguments.variants or variants(config))]
    configured_teacher(config)  # the digits' is trained once, before the processes ask for it
    with ProcessPoolExecutor(arguments.jobs, mp_context=multiprocessing.get_context("spawn")) as pool:
        places = [(name, seed) for name in chosen for seed in SEEDS]
        found = {place: pool.submit(find, config, *place, arguments.runs) for place in places}
        best = {seed: pool.submit(best_of_random, config, seed, arguments.runs) for seed in SEEDS}
        candidates = {place: job.result() for place, job in found.items()}
        repeated = {seed: pool.submit(best_of_searches, config, seed, arguments.runs) for seed in SEEDS}
        for seed in SEEDS:
            controls = {
                f"best of {SEARCHES} searches": repeated[seed].result(),
                f"best of {RANDOM} random genotypes": best[seed].result(),
                "random genotype": Candidate(f"random:{RANDOM * seed}"),
                "dil_conv_5x5 on all normal edges": Candidate("all:dil_conv_5x5"),
                "GDFQ's": Candidate("gdfq"),
                "GDFQ's at the MACs of the searched": Candidate("gdfq@equal-macs"),
            }
            candidates |= {(name, seed): candidate for name, candidate in controls.items()}
        jobs = {
            place: pool.submit(measure, config, *place, candidate, arguments.runs, trainings=arguments.trainings)
            for place, candidate in candidates.items()
        }
        rows: dict[str, list[Result]] = {}
        for (name, _), job in jobs.items():
            rows.setdefault(name, []).append(job.result())
    text = table(rows, config, trainings=arguments.trainings)
    print(text)
    write_text(arguments.output.with_suffix(".md"), text)
    write_text(arguments.output.with_suffix(".csv"), by_seed(rows))


def find(config: SearchConfig, name: str, seed: int, runs: Path) -> Candidate:
    """Return what one variant finds at one seed."""
    folder = runs / f"{slug(name)}-{seed}"
    config = config.override({**variants(config)[name], "seed": seed})
    if not (folder / "result.json").exists():
        search(config=config, folder=folder, mode="trial", progress=False)
    require_same(json.loads((folder / "config.json").read_text())["config"], config, folder)
    result = json.loads((folder / "result.json").read_text())
    return Candidate(f"searched:{folder / 'genotype.json'}", result["updates"], result["loss"])


def best_of_searches(config: SearchConfig, seed: int, runs: Path) -> Candidate:
    """Return what the search with the least L_r found; the first has been made. No other seed has theirs."""
    best = min((find(config, BASELINE, seed + 100 * n, runs) for n in range(SEARCHES)), key=lambda found: found.loss)
    return best._replace(updates=SEARCHES * (config.updates + config.final_steps))


def best_of_random(config: SearchConfig, seed: int, runs: Path) -> Candidate:
    """The random genotype with the least L_r after a training as of a generator that was found."""
    config, specs = config.override({"seed": seed}), [f"random:{RANDOM * seed + n}" for n in range(RANDOM)]
    losses = once(runs / f"random-{seed}.json", config, specs, lambda: [train(spec, config)[0] for spec in specs])
    return Candidate(specs[losses.index(min(losses))], RANDOM * config.final_steps)


def measure(config: SearchConfig, name: str, seed: int, candidate: Candidate, runs: Path, *, trainings: int) -> Result:
    """L_r of a candidate after each training, with seeds that neither its search nor its choice had; and its MACs."""
    config = config.override({"seed": seed})
    genotype = runs / f"{slug(BASELINE)}-{seed}" / "genotype.json"  # says what equal MACs are
    kind, _, file = candidate.spec.partition(":")
    trained = once(
        runs / "trained" / f"{slug(name)}-{seed}.json",
        config,
        [candidate.spec, Genotype.load(file if kind == "searched" else genotype).to_json(), trainings],
        lambda: [
            train(candidate.spec, config.override({"seed": trainings * (seed + 1) + n}), str(genotype))
            for n in range(trainings)
        ],
    )
    losses = [loss for loss, _ in trained]
    print(f"{name}, seed {seed}: L_r {', '.join(f'{loss:.4f}' for loss in losses)}", flush=True)
    return {"losses": losses, "generator_macs": trained[0][1], "updates": candidate.updates}


def once(file: Path, config: SearchConfig, what: Any, make: Callable[[], Any]) -> Any:
    """Return what ``make`` gives, kept in ``file``. Raises InputError if that has other settings or not ``what``."""
    if not file.exists():
        file.parent.mkdir(parents=True, exist_ok=True)
        write_json(file, {"config": config.to_dict(), "what": what, "made": make()})
    stored: dict[str, Any] = json.loads(file.read_text())
    require_same(stored["config"], config, file)
    if stored["what"] != what:
        raise InputError(f"{file} is of other generators; choose another folder with --runs")
    return stored["made"]


def train(spec: str, config: SearchConfig, genotype: str | None = None) -> tuple[float, int]:
    """L_r of a generator trained as those found by a search are, and its MACs."""
    teacher = configured_teacher(config)
    torch.manual_seed(config.seed)
    generator = generator_from_spec(
        spec,
        image=teacher.image,
        num_classes=teacher.num_classes,
        latent_dim=config.latent_dim,
        genotype=genotype,
        width=None if spec.startswith("gdfq") else config.width,
    ).to(teacher.device)
    objective = objective_for(teacher.observed, config)
    source = LatentSource(config.batch_size, config.latent_dim, teacher.num_classes, config.seed, teacher.device)
    train_generator(generator, objective, source, config, stream="final", steps=config.final_steps)
    result = measure_generator(generator, objective, source, stream="final-validation", steps=FINAL_VALIDATION_STEPS)
    return result["loss"], generator.macs()


def require_same(stored: Mapping[str, Any], config: SearchConfig, where: Path) -> None:
    """Raise InputError if what stands there was made with other settings."""
    now = config.to_dict()
    if changed := [name for name in now if stored.get(name) != now[name]]:
        raise InputError(f"{where} was made with another {', '.join(changed)}; choose another folder with --runs")


def table(rows: Mapping[str, Sequence[Result]], config: SearchConfig, *, trainings: int) -> str:
    """Mean ± standard deviation over the seeds, as Markdown."""
    defaults = SearchConfig().to_dict()
    changes = {name: value for name, value in config.to_dict().items() if value != defaults[name]}
    settings = ", ".join(f"{name} = {value}" for name, value in changes.items())
    within = statistics.mean(statistics.stdev(result["losses"]) for results in rows.values() for result in results)
    lines = [
        f"`python benchmarks/searches.py`, teacher {config.teacher}, seeds {', '.join(map(str, SEEDS))}, mean ± "
        f"standard deviation. L_r after {config.final_steps} batches of {config.batch_size} from fresh weights, on "
        f"{FINAL_VALIDATION_STEPS} others, is for each seed the mean of {trainings} trainings, which differ by a "
        f"standard deviation of {within:.3f} (mean over generators) and have the same seeds for all; updates are "
        f"batches of the search, or of the choice, before these. Settings beside defaults: {settings}. "
        + ", ".join(f"{name} {version}" for name, version in versions().items())
        + ".",
        "",
        f"| generator | L_r | more than {BASELINE} | MMACs | updates |",
        "|---|---|---|---|---|",
    ]
    means = {name: [statistics.mean(result["losses"]) for result in results] for name, results in rows.items()}
    for name, results in rows.items():
        more = [loss - of_searched for loss, of_searched in zip(means[name], means[BASELINE], strict=True)]
        macs = [result["generator_macs"] / 1e6 for result in results]
        updates = "–" if results[0]["updates"] is None else results[0]["updates"]
        gap = "–" if name == BASELINE else spread(more, "+.3f")
        lines.append(f"| {name} | {spread(means[name], '.3f')} | {gap} | {spread(macs, '.1f')} | {updates} |")
    return "\n".join(lines) + "\n"


def by_seed(rows: Mapping[str, Sequence[Result]]) -> str:
    """A line for every training, as CSV: what the table's means and differences are of."""
    lines = [
        {"generator": name, "seed": seed, "training": index, "loss": loss, "generator_macs": result["generator_macs"]}
        for name, results in rows.items()
        for seed, result in zip(SEEDS, results, strict=True)
        for index, loss in enumerate(result["losses"])
    ]
    return str(pd.DataFrame(lines).to_csv(index=False))


def slug(name: str) -> str:
    return re.sub(r"\W+", "-", name.lower())


def spread(values: Sequence[float], form: str) -> str:
    return f"{statistics.mean(values):{form}} ± {statistics.stdev(values):{form.removeprefix('+')}}"


if __name__ == "__main__":
    sys.exit(report_errors(main))
