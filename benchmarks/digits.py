"""Stage 1 and 2 on the default teacher, several seeds: the table in docs/results/digits.md.

    python benchmarks/digits.py --output docs/results/digits

About 25 minutes on two CPU cores. Nothing is selected on test data; students are those of the last epoch.
"""

from __future__ import annotations

import argparse
import multiprocessing
import platform
import statistics
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import torch

from nni_autorecon.cli import report_errors
from nni_autorecon.compression import run_compression
from nni_autorecon.files import require_absent, write_json, write_text
from nni_autorecon.generator import generator_from_spec
from nni_autorecon.latent import LatentSource
from nni_autorecon.reconstruction import evaluate_generator, objective_for
from nni_autorecon.results import CompressionResult
from nni_autorecon.runs import RunFolder, versions
from nni_autorecon.search import search
from nni_autorecon.search_config import SearchConfig
from nni_autorecon.student_config import CompressConfig
from nni_autorecon.teacher import load_teacher

SEEDS = (0, 1, 2)
BITS = ("w4a4", "w3a3", "w2a2")


Generators = dict[str, tuple[float, int]]
"""L_r and MACs by generator: the searched one and its controls."""


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, metavar="NAME", help="write NAME.md and NAME.json")
    parser.add_argument("--force", action="store_true", help="replace them if they exist")
    parser.add_argument("--jobs", type=int, default=2, help="seeds measured at once, one CPU thread each (default: 2)")
    arguments = parser.parse_args(argv)
    for suffix in (".md", ".json"):
        require_absent(arguments.output.with_suffix(suffix), force=arguments.force)

    load_teacher("digits")  # train it once, before the processes ask for it
    with (
        tempfile.TemporaryDirectory() as folder,
        ProcessPoolExecutor(arguments.jobs, mp_context=multiprocessing.get_context("spawn")) as pool,
    ):
        measured = list(pool.map(measure, SEEDS, [Path(folder)] * len(SEEDS)))
    students = [student for students, _ in measured for student in students]
    generators = [generators for _, generators in measured]
    text = table(students, generators)
    print(text)
    write_text(arguments.output.with_suffix(".md"), text)
    results = {"generators": generators, "students": [student.to_dict() for student in students]}
    write_json(arguments.output.with_suffix(".json"), {**results, "versions": versions()})


def measure(seed: int, folder: Path) -> tuple[list[CompressionResult], Generators]:
    """One seed: its students, and the generators compared."""
    config = SearchConfig(seed=seed, threads=1)
    run = RunFolder(folder / f"search-{seed}")
    found = search(config, run)
    genotype = str(run / "genotype.json")
    generators = {
        "searched": (found.loss["loss"], found.genotype.details["macs"]),
        "random": control(f"random:{seed}", config, genotype),
        "all dil_conv_5x5": control("all:dil_conv_5x5", config, genotype),
        "GDFQ": control("gdfq", config, genotype),
        "GDFQ at equal MACs": control("gdfq@equal-macs", config, genotype),
    }
    print(f"seed {seed}: L_r " + ", ".join(f"{name} {loss:.4f}" for name, (loss, _) in generators.items()), flush=True)
    students = []
    for bits in BITS:
        compress = CompressConfig(seed=seed, bits=bits, generator=f"searched:{genotype}", threads=1)
        students.append(run_compression(compress, RunFolder(folder / f"{bits}-{seed}")))
        print(f"seed {seed}, {bits}: accuracy {students[-1].accuracy:.2%}", flush=True)
    return students, generators


def control(spec: str, config: SearchConfig, genotype: str) -> tuple[float, int]:
    """L_r and MACs of another generator, trained and measured exactly as the one searched, in file ``genotype``, is."""
    teacher = load_teacher(config.teacher)
    torch.manual_seed(config.seed)
    generator = generator_from_spec(
        spec, image=teacher.image, num_classes=teacher.num_classes, latent_dim=config.latent_dim, genotype=genotype
    )
    objective = objective_for(teacher.observed, config)
    source = LatentSource(config.batch_size, config.latent_dim, teacher.num_classes, config.seed)
    return evaluate_generator(generator, objective, source, config)["loss"], generator.macs()


def table(students: Sequence[CompressionResult], generators: Sequence[Generators]) -> str:
    """Mean ± standard deviation over the seeds, as Markdown."""

    def over_seeds(bits: str, name: str) -> str:
        return spread([100 * float(getattr(student, name)) for student in students if student.bits == bits])

    lines = [
        f"`python benchmarks/digits.py`, seeds {', '.join(map(str, SEEDS))}, mean ± standard deviation, last epoch; "
        f"torch {torch.__version__}, one CPU thread, {platform.machine()}.",
        "",
        "| generator | L_r | MMACs |",
        "|---|---|---|",
        *(
            f"| {name} | {spread([of_seed[name][0] for of_seed in generators], '.3f')} "
            f"| {spread([of_seed[name][1] / 1e6 for of_seed in generators], '.1f')} |"
            for name in generators[0]
        ),
        "",
        "| student | ranges alone | trained | teacher |",
        "|---|---|---|---|",
        *(
            f"| {bits} | {over_seeds(bits, 'ranges_only_accuracy')} % | {over_seeds(bits, 'accuracy')} % "
            f"| {100 * float(students[0].teacher_accuracy or 'nan'):.2f} % |"
            for bits in BITS
        ),
    ]
    return "\n".join(lines) + "\n"


def spread(values: Sequence[float], form: str = ".2f") -> str:
    return f"{statistics.mean(values):{form}} ± {statistics.stdev(values):{form}}"


if __name__ == "__main__":
    sys.exit(report_errors(main))
