"""What makes a search pay: variants of it, and generators that were not searched, each trained and measured alike.

    python benchmarks/searches.py --output docs/results/searches

About an hour on two CPU cores for the digits teacher. Flags are those of `nni-autorecon search`; for another teacher:

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
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from itertools import product
from pathlib import Path
from typing import Any

import torch

from nni_autorecon.endings import report_errors
from nni_autorecon.errors import InputError
from nni_autorecon.files import require_absent, write_json, write_text
from nni_autorecon.generator import generator_from_spec
from nni_autorecon.latent import LatentSource
from nni_autorecon.reconstruction import FINAL_VALIDATION_STEPS, measure_generator, objective_for, train_generator
from nni_autorecon.runs import RunFolder, versions
from nni_autorecon.search import search
from nni_autorecon.search_config import SearchConfig
from nni_autorecon.teacher import configured_teacher

SEEDS = (0, 1, 2)
RANDOM = 8
"""Random genotypes for each seed, of which the best is taken as well."""
BASELINE = "searched"

Result = Mapping[str, float]
"""``loss`` (L_r), ``generator_macs`` and, if a search or a choice was made, its ``updates``."""


def variants(config: SearchConfig) -> dict[str, dict[str, Any]]:
    """Settings that differ from ``config``, by name."""
    half, steps = max(1, config.epochs // 2), config.epoch_steps
    for_tournament = max(1, (config.epochs - half) * steps // 9)
    as_many = {"weight_steps": steps - steps // 2, "architecture_steps": steps // 2}
    whole = {"tournament": RANDOM - 2, "tournament_steps": config.final_steps}  # costs about what trying RANDOM does
    return {
        BASELINE: {},
        "eq. 7 as printed": {"relaxation": "paper"},
        "hard samples": {"sampling": "hard"},
        "as many steps of α as of W": as_many,
        "τ to 0.3": {"temperature_end": 0.3},
        "τ = 1": {"temperature_start": 1.0, "temperature_end": 1.0},
        "entropy penalty 1": {"entropy_penalty": 1.0},
        "MAC penalty 0.5": {"mac_penalty": 0.5},
        "MAC penalty 2": {"mac_penalty": 2.0},
        "half the epochs, tournament": {"epochs": half, "tournament": 8, "tournament_steps": for_tournament},
        f"tournament of {RANDOM - 1}, each trained in full": whole,
        f"as many steps of α as of W, tournament of {RANDOM - 1}, each trained in full": {**as_many, **whole},
        "MAC penalty 0.1, such a tournament": {"mac_penalty": 0.1, **whole},
        "inherited weights": {"inherit_weights": True},
        "game against a w4a4 student": {"adaptability_weight": 1.0},
    }


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, metavar="NAME", help="write NAME.md")
    parser.add_argument("--force", action="store_true", help="replace it if it exists")
    parser.add_argument("--runs", type=Path, default=Path("runs/searches"), metavar="FOLDER", help="of the searches")
    parser.add_argument(
        "--variants", nargs="+", choices=list(variants(SearchConfig())), metavar="NAME",
        help=f"besides {BASELINE!r}, as the table calls them (default: all)",
    )  # fmt: skip
    parser.add_argument("--jobs", type=int, default=2, help="runs at once, one CPU thread each (default: 2)")
    parser.set_defaults(config=None)
    SearchConfig.add_arguments(parser)
    arguments = parser.parse_args(argv)
    if {"seed", "threads"} & set(vars(arguments)):
        parser.error(f"seeds are {SEEDS}, and each run has one thread; leave out --seed and --threads")
    require_absent(arguments.output.with_suffix(".md"), force=arguments.force)
    config = SearchConfig.from_arguments(arguments).override({"threads": 1})
    chosen = [name for name in variants(config) if name == BASELINE or name in (arguments.variants or variants(config))]
    configured_teacher(config)  # the digits' is trained once, before the processes ask for it
    with ProcessPoolExecutor(arguments.jobs, mp_context=multiprocessing.get_context("spawn")) as pool:
        jobs = [(config, seed, name, arguments.runs) for name, seed in product(chosen, SEEDS)]
        searched = list(pool.map(find, *zip(*jobs, strict=True)))
        controls = list(pool.map(measure_controls, [config] * len(SEEDS), SEEDS, [arguments.runs] * len(SEEDS)))
    rows: dict[str, list[Result]] = {}
    for (_, _, name, _), result in zip(jobs, searched, strict=True):
        rows.setdefault(name, []).append(result)
    for of_seed in controls:
        for name, result in of_seed.items():
            rows.setdefault(name, []).append(result)
    text = table(rows, config)
    print(text)
    write_text(arguments.output.with_suffix(".md"), text)


def find(config: SearchConfig, seed: int, name: str, runs: Path) -> Result:
    """One variant at one seed."""
    folder = runs / f"{slug(name)}-{seed}"
    config = config.override({**variants(config)[name], "seed": seed})
    if not (folder / "result.json").exists():
        with RunFolder(folder, force=True, resume=True) as run:
            search(config, run)
            run.finish()
    require_same(json.loads((folder / "config.json").read_text())["config"], config, folder)
    result: Result = json.loads((folder / "result.json").read_text())
    print(f"{name}, seed {seed}: L_r {result['loss']:.4f}", flush=True)
    return result


def measure_controls(config: SearchConfig, seed: int, runs: Path) -> dict[str, Result]:
    """Generators that no search has found; the searched one, of the same seed, says what equal MACs are."""
    file, config = runs / f"controls-{seed}.json", config.override({"seed": seed})
    if not file.exists():
        genotype = str(runs / f"{slug(BASELINE)}-{seed}" / "genotype.json")
        specs = {
            "all dil_conv_5x5": "all:dil_conv_5x5",
            "GDFQ's": "gdfq",
            "GDFQ's at the MACs of the searched": "gdfq@equal-macs",
        }
        results = {name: control(spec, config, genotype) for name, spec in specs.items()}
        drawn = [control(f"random:{RANDOM * seed + n}", config, genotype) for n in range(RANDOM)]
        results["random genotype"] = drawn[0]
        best = min(drawn, key=lambda one: one["choice_loss"])
        results[f"best of {RANDOM} random genotypes"] = {**best, "updates": RANDOM * config.final_steps}
        write_json(file, {"config": config.to_dict(), "results": results})
    stored = json.loads(file.read_text())
    require_same(stored["config"], config, file)
    controls: dict[str, Result] = stored["results"]
    return controls


def control(spec: str, config: SearchConfig, genotype: str) -> dict[str, float]:
    """A generator, trained and measured as those searched are; ``choice_loss`` is L_r on others, to choose by."""
    teacher = configured_teacher(config)
    torch.manual_seed(config.seed)
    generator = generator_from_spec(
        spec, image=teacher.image, num_classes=teacher.num_classes, latent_dim=config.latent_dim, genotype=genotype,
        width=None if spec.startswith("gdfq") else config.width,
    ).to(teacher.device)  # fmt: skip
    objective = objective_for(teacher.observed, config)
    source = LatentSource(config.batch_size, config.latent_dim, teacher.num_classes, config.seed, teacher.device)
    train_generator(generator, objective, source, config, stream="final", steps=config.final_steps)
    choice, final = (
        measure_generator(generator, objective, source, stream=stream, steps=FINAL_VALIDATION_STEPS)["loss"]
        for stream in ("validation", "final-validation")
    )
    print(f"{spec}, seed {config.seed}: L_r {final:.4f}", flush=True)
    return {"loss": final, "choice_loss": choice, "generator_macs": generator.macs()}


def require_same(stored: Mapping[str, Any], config: SearchConfig, where: Path) -> None:
    """Raise InputError if what stands there was made with other settings."""
    now = config.to_dict()
    if changed := [name for name in now if stored.get(name) != now[name]]:
        raise InputError(f"{where} was made with another {', '.join(changed)}; choose another folder with --runs")


def table(rows: Mapping[str, Sequence[Result]], config: SearchConfig) -> str:
    """Mean ± standard deviation over the seeds, as Markdown."""
    defaults = SearchConfig().to_dict()
    changes = {name: value for name, value in config.to_dict().items() if value != defaults[name]}
    settings = ", ".join(f"{name} = {value}" for name, value in changes.items())
    lines = [
        f"`python benchmarks/searches.py`, teacher {config.teacher}, seeds {', '.join(map(str, SEEDS))}, mean ± "
        f"standard deviation. L_r after {config.final_steps} batches of {config.batch_size}, from fresh weights unless "
        f"they are inherited, on {FINAL_VALIDATION_STEPS} others; updates are batches of the search, or of the choice, "
        f"before these. Settings beside defaults: {settings}. "
        + ", ".join(f"{name} {version}" for name, version in versions().items())
        + ".",
        "",
        "| generator | L_r | MMACs | updates |",
        "|---|---|---|---|",
    ]
    for name, results in rows.items():
        losses, macs = ([result[key] for result in results] for key in ("loss", "generator_macs"))
        updates = f"{results[0]['updates']:.0f}" if "updates" in results[0] else "–"
        lines.append(f"| {name} | {spread(losses, '.3f')} | {spread([m / 1e6 for m in macs], '.1f')} | {updates} |")
    return "\n".join(lines) + "\n"


def slug(name: str) -> str:
    return re.sub(r"\W+", "-", name.lower())


def spread(values: Sequence[float], form: str) -> str:
    return f"{statistics.mean(values):{form}} ± {statistics.stdev(values):{form}}"


if __name__ == "__main__":
    sys.exit(report_errors(main))
