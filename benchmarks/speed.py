"""How fast a search step, an iteration of compression and whole runs are: the tables in docs/results/speed.md.

    python benchmarks/speed.py --output docs/results/speed

Everything that is compared is timed in turns within one process. About half an hour on two CPU cores; ``--parts``
chooses some of it.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from nni.nas.nn.pytorch import LayerChoice, ModelSpace
from nni.nas.strategy import GumbelDARTS
from plain import plain_iteration
from timing import Timing, compare
from torch import Tensor, nn

from nni_autorecon.cli import report_errors
from nni_autorecon.compression import Compression
from nni_autorecon.config import CompressConfig, SearchConfig
from nni_autorecon.files import require_absent, write_json, write_text
from nni_autorecon.generator import Generator, derived_generator
from nni_autorecon.genotype import generator_macs, random_choices, uniform_choices
from nni_autorecon.image_sources import GeneratorImages
from nni_autorecon.latent import LatentSource
from nni_autorecon.losses import reconstruction_loss
from nni_autorecon.networks import digits_resnet, resnet20
from nni_autorecon.operations import EdgeShape, make_operation
from nni_autorecon.quantizers import observe_ranges
from nni_autorecon.reconstruction import generator_step, weight_optimizer
from nni_autorecon.runs import versions
from nni_autorecon.space import CrossChoice, GeneratorSpace
from nni_autorecon.strategy import AutoReConStrategy, MixedEdge
from nni_autorecon.teacher import Teacher
from nni_autorecon.topology import CROSS, Edge, ImageShape

Cases = dict[str, Callable[[], object]]
PHASES = ("weights", "alpha")
PARTS = ("search", "compress", "growth", "whole", "startup")


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, metavar="NAME", help="write NAME.md and NAME.json")
    parser.add_argument("--force", action="store_true", help="replace them if they exist")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS, help="default: all")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads (default: 1)")
    parser.add_argument("--rounds", type=int, default=15, help="repetitions that count (default: 15)")
    arguments = parser.parse_args(argv)
    for suffix in (".md", ".json"):
        require_absent(arguments.output.with_suffix(suffix), force=arguments.force)
    torch.set_num_threads(arguments.threads)
    device = torch.device(arguments.device)
    measured: dict[str, Any] = {}
    for part in arguments.parts:
        measured[part] = globals()[f"measure_{part}"](device, arguments.rounds)
        print("\n".join(as_table(part, measured[part])), flush=True)
    threads = f"{platform.machine()}, {arguments.threads} CPU thread(s)"
    name = torch.cuda.get_device_name() if device.type == "cuda" else threads
    rounds = f"{arguments.rounds} rounds, growth a third of them"
    head = f"`python benchmarks/speed.py`, torch {torch.__version__}, {name}, {rounds}."
    text = "\n\n".join([head, *("\n".join(as_table(part, rows)) for part, rows in measured.items())])
    write_text(arguments.output.with_suffix(".md"), text + "\n")
    write_json(arguments.output.with_suffix(".json"), {"machine": name, "versions": versions(), **measured})


# ------------------------------------------------------------------------------------------------------ what is timed


def teacher_of(network: nn.Module, image: ImageShape, device: torch.device, num_classes: int = 10) -> Teacher:
    """A network with random weights: they change no time."""
    zeros, ones = (0.0,) * image.channels, (1.0,) * image.channels
    return Teacher("benchmark", network.eval().requires_grad_(False).to(device), num_classes, image, zeros, ones)


def digits(device: torch.device) -> Teacher:
    return teacher_of(digits_resnet(), ImageShape(1, 16, 16), device)


def cifar(device: torch.device) -> Teacher:
    return teacher_of(resnet20(), ImageShape(3, 32, 32), device)


def generator_training(generator: nn.Module, teacher: Teacher, config: SearchConfig) -> Callable[[], object]:
    """One update of any generator's weights on L_r."""
    source = LatentSource(config.batch_size, config.latent_dim, teacher.num_classes, config.seed, teacher.device)
    generator = generator.to(teacher.device).train()
    parameters = [parameter for name, parameter in generator.named_parameters() if "alpha" not in name]
    for name, parameter in generator.named_parameters():
        parameter.requires_grad_("alpha" not in name)
    objective = partial(reconstruction_loss, teacher.observed, bns_weight=1.0)
    optimizer = weight_optimizer(parameters, config)

    def step() -> None:
        z, labels = next(source.batches("search", 0, 1))
        generator_step(generator, objective, optimizer, z, labels)

    return step


class StockSpace(ModelSpace):
    """The same space as NNI's differentiable strategies take it: every candidate has its own norm and activation."""

    def __init__(self, image: ImageShape, num_classes: int, width: int, latent_dim: int) -> None:
        super().__init__()
        self.generator = Generator(
            stock_choice, image=image, num_classes=num_classes, width=width, latent_dim=latent_dim
        )

    def forward(self, z: Tensor, labels: Tensor) -> Tensor:
        return self.generator(z, labels)


def stock_choice(edge: Edge, shape: EdgeShape) -> nn.Module:
    candidates = {name: make_operation(name, shape) for name in edge.candidates}
    return CrossChoice(candidates, edge.label) if edge.kind == CROSS else LayerChoice(candidates, label=edge.label)


def supernet_step(
    supernet: nn.Module, teacher: Teacher, config: SearchConfig, *, of_alpha: bool
) -> Callable[[], object]:
    """One update of the weights, or of alpha, as the two phases of a search make them."""
    supernet.to(teacher.device).train()
    objective = partial(reconstruction_loss, teacher.observed, bns_weight=1.0)
    source = LatentSource(config.batch_size, config.latent_dim, teacher.num_classes, config.seed, teacher.device)
    chosen = [parameter for name, parameter in supernet.named_parameters() if ("alpha" in name) == of_alpha]
    optimizer = weight_optimizer(chosen, config)

    def step() -> None:
        for name, parameter in supernet.named_parameters():
            parameter.requires_grad_(("alpha" in name) == of_alpha)
        z, labels = next(source.batches("search", 0, 1))
        generator_step(supernet, objective, optimizer, z, labels)

    return step


def search_cases(teacher: Teacher, config: SearchConfig) -> tuple[Cases, dict[str, int]]:
    """Steps of the search and of three derived generators; and the MACs of these."""
    size: dict[str, Any] = {"image": teacher.image, "width": config.width, "latent_dim": config.latent_dim}
    shape, macs = {**size, "num_classes": teacher.num_classes}, partial(generator_macs, **size)
    by_cost = sorted((random_choices(seed) for seed in range(501)), key=macs)
    derived = {"cheapest": by_cost[0], "median": by_cost[250], "all dil_conv_5x5": uniform_choices("dil_conv_5x5")}

    def ours(sampling: str) -> nn.Module:
        supernet = AutoReConStrategy(replace(config, sampling=sampling)).mutate_model(GeneratorSpace(**shape))
        if sampling == "hard":  # it then samples the median generator
            for module in supernet.modules():
                if isinstance(module, MixedEdge):
                    index = module.edge.candidates.index(derived["median"][module.edge.label])
                    module.alpha.data[index] = 50.0
        return supernet

    def stock() -> nn.Module:
        return GumbelDARTS().mutate_model(StockSpace(**shape))

    cases: Cases = {
        f"{name}, {phase}": supernet_step(make(), teacher, config, of_alpha=phase == "alpha")
        for name, make in (("NNI's mixtures", stock), ("soft", partial(ours, "soft")), ("hard", partial(ours, "hard")))
        for phase in PHASES
    }
    for name, choices in derived.items():
        cases[f"{name} generator"] = generator_training(derived_generator(choices, **shape), teacher, config)
    return cases, {f"{name} generator": macs(choices) for name, choices in derived.items()}


def compression_cases(teacher: Teacher, config: CompressConfig) -> Cases:
    """An iteration of compression with GDFQ's generator, plain and the library's."""
    plain = plain_iteration(
        teacher.network, teacher.image, teacher.num_classes, batch_size=config.batch_size, bits=int(config.bits[1])
    )
    compression = Compression.start(config, teacher)
    assert isinstance(compression.images, GeneratorImages)
    with torch.no_grad(), observe_ranges(compression.student):
        compression.student(torch.randn(8, *teacher.image, device=teacher.device))

    def iteration() -> None:
        for images, labels, loss in compression.images.batches(0, 1, learning_rate=1e-3):
            compression._student_step(images, labels, loss.logits)

    return {"plain": plain, "ours": iteration}


# ---------------------------------------------------------------------------------------------------------- the parts


def measure_search(device: torch.device, rounds: int) -> list[dict[str, Any]]:
    rows = []
    for name, teacher, config in (
        ("digits, 16×16, batch 32, width 16", digits(device), SearchConfig()),
        ("ResNet-20, 32×32, batch 32, width 16", cifar(device), SearchConfig()),
    ):
        cases, macs = search_cases(teacher, config)
        timings = compare(cases, rounds=rounds, device=device)
        rows += as_rows(name, timings, {case: f"NNI's mixtures, {PHASES[case.endswith('alpha')]}" for case in cases})
        for row in rows[-len(timings) :]:
            row["MMACs"] = round(macs[row["case"]] / 1e6, 1) if row["case"] in macs else None
    return rows


def measure_compress(device: torch.device, rounds: int) -> list[dict[str, Any]]:
    rows = []
    for name, teacher, batch in (("digits, batch 32", digits(device), 32), ("ResNet-20, batch 64", cifar(device), 64)):
        cases = compression_cases(teacher, CompressConfig(generator="gdfq", batch_size=batch))
        rows += as_rows(name, compare(cases, rounds=rounds, device=device), dict.fromkeys(cases, "plain"))
    return rows


def measure_growth(device: torch.device, rounds: int) -> list[dict[str, Any]]:
    """A third of the rounds each, for there are many sizes."""
    rows = []

    def measure(name: str, teacher: Teacher, batch: int, width: int) -> None:
        search, _ = search_cases(teacher, SearchConfig(batch_size=batch, width=width))
        compress = compression_cases(teacher, CompressConfig(generator="gdfq", batch_size=batch))
        for cases in (
            {"search, NNI's mixtures": search["NNI's mixtures, weights"], "search, soft": search["soft, weights"]},
            {"compress, plain": compress["plain"], "compress, ours": compress["ours"]},
        ):
            timings = compare(cases, rounds=max(3, rounds // 3), device=device)
            rows.extend(as_rows(name, timings, dict.fromkeys(cases, next(iter(cases)))))

    for batch in (8, 32, 128):
        measure(f"digits, batch {batch}, width 16", digits(device), batch, 16)
    for width in (8, 32, 64):
        measure(f"digits, batch 32, width {width}", digits(device), 32, width)
    for size in (16, 32, 64, 128, 224):
        teacher = teacher_of(resnet20(), ImageShape(3, size, size), device)
        measure(f"ResNet-20, {size}×{size}, batch 4, width 16", teacher, 4, 16)
    for classes in (10, 100, 1000):
        teacher = teacher_of(resnet20(classes), ImageShape(3, 32, 32), device, classes)
        measure(f"ResNet-20, {classes} classes, batch 32, width 16", teacher, 32, 16)
    return rows


def measure_whole(device: torch.device, rounds: int) -> list[dict[str, Any]]:
    """Runs of the command line on the default teacher, which is in the cache already."""
    with tempfile.TemporaryDirectory() as folder:
        flags = ["--device", device.type, "--threads", str(torch.get_num_threads())]
        _command("search", *flags, "--epochs", "1", "--output", f"{folder}/first")  # trains the teacher if need be
        search = _command("search", *flags, "--output", f"{folder}/search")
        compress = _command(
            "compress", *flags, "--genotype", f"{folder}/search/genotype.json", "--output", f"{folder}/student"
        )
    return [{"case": "search", "seconds": round(search, 1)}, {"case": "compress, w4a4", "seconds": round(compress, 1)}]


def measure_startup(device: torch.device, rounds: int) -> list[dict[str, Any]]:
    """The command line's first word, and a run that makes one step of each kind."""
    smallest = ["--epochs", "1", "--weight-steps", "1", "--architecture-steps", "1", "--validation-steps", "1"]
    smallest += ["--final-steps", "1", "--threads", str(torch.get_num_threads()), "--device", device.type]
    times: dict[str, list[float]] = {"nni-autorecon --help": [], "a search of one step, figures included": []}
    with tempfile.TemporaryDirectory() as folder:
        for index in range(5):
            times["nni-autorecon --help"].append(_command("--help"))
            run = _command("search", *smallest, "--output", f"{folder}/{index}")
            times["a search of one step, figures included"].append(run)
    return [{"case": name, "seconds": round(statistics.median(seconds), 2)} for name, seconds in times.items()]


def _command(*arguments: str) -> float:
    """Seconds that a command takes."""
    start = time.perf_counter()
    subprocess.run([sys.executable, "-m", "nni_autorecon.cli", *arguments], check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - start


def as_rows(sizes: str, timings: Mapping[str, Timing], references: Mapping[str, str]) -> list[dict[str, Any]]:
    """A row per case, with how many times faster it is than its reference."""
    return [
        {
            "sizes": sizes,
            "case": name,
            "ms": round(timing.milliseconds, 1),
            "quartiles": " to ".join(f"{q:.1f}" for q in timing.quartiles),
            "times faster": round(timings[references[name]].milliseconds / timing.milliseconds, 2),
            "kept for backward, MB": round(timing.saved_megabytes, 1),
        }
        for name, timing in timings.items()
    ]


def as_table(title: str, rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Markdown."""
    heads = list(rows[0])
    body = ("| " + " | ".join("–" if row[head] is None else str(row[head]) for head in heads) + " |" for row in rows)
    return [f"### {title}", "", "| " + " | ".join(heads) + " |", "|" + "---|" * len(heads), *body]


if __name__ == "__main__":
    sys.exit(report_errors(main))
