"""Data-free measures are tried on good students and on ruined ones: the table docs/results/measures.md.

    python benchmarks/measures.py --output docs/results/measures

Students of the teachers that :mod:`teachers` has for choosing are made at four bit widths: by ranges alone, block by
block, and by training at rates of which some ruin them. Each measure is compared with the students' accuracy on test
data by its rank correlation (Spearman's) within a teacher. A quarter of an hour on one CPU core.
"""

from __future__ import annotations

import argparse
import copy
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import torch
import torch.nn.functional as F
from teachers import CHOOSE, FASHION, TEACHERS, Bench
from torch import Tensor, nn

import nni_autorecon as nar
from nni_autorecon.cache import cache_folder
from nni_autorecon.cli.exits import report_errors
from nni_autorecon.config.compress import CompressConfig
from nni_autorecon.files import require_absent, write_text
from nni_autorecon.quantization.insertion import quantize_network
from nni_autorecon.quantization.quantizers import observe_ranges
from nni_autorecon.student.agreement import disturbed
from nni_autorecon.student.compression import Compression
from nni_autorecon.student.images import GeneratorImages
from nni_autorecon.student.reconstruction import Rates, Reconstruction
from nni_autorecon.student.results import evaluation_data
from nni_autorecon.student.training import StudentTraining

BITS = ("w8a8", "w4a4", "w3a3", "w2a4")
BLOCK_RATES = (0.02, 0.1)
TRAINING_RATES = (1e-4, 1e-3, 1e-2, 1e-1)
IMAGES, STEPS = 512, 100


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, metavar="NAME", help="write NAME.md and NAME.csv")
    parser.add_argument("--force", action="store_true", help="replace them if they exist")
    parser.add_argument("--fashion", type=Path, default=FASHION, help=f"Fashion-MNIST's four files; default: {FASHION}")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads (default: 1)")
    arguments = parser.parse_args(argv)
    for suffix in (".md", ".csv"):
        require_absent(arguments.output.with_suffix(suffix), force=arguments.force)
    torch.set_num_threads(arguments.threads)
    bench = Bench(arguments.fashion, None, cache_folder() / "teachers")
    bench.folder.mkdir(parents=True, exist_ok=True)
    rows: list[dict[str, Any]] = []
    for name, teacher in TEACHERS.items():
        if teacher.half == CHOOSE and not teacher.needs_networks:
            for row in measured(teacher.settings(bench)):
                rows.append({"teacher": name, **row})
                print(", ".join(f"{key} {value}" for key, value in rows[-1].items()), flush=True)
                frame = pd.DataFrame(rows)
                write_text(arguments.output.with_suffix(".csv"), frame.to_csv(index=False))
                write_text(arguments.output.with_suffix(".md"), to_markdown(frame))


def measured(settings: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield a row for each student: its accuracy, and all measures."""
    test = settings.get("test_data", "digits")
    teacher = nar.load_teacher(settings["teacher"], checkpoint=settings.get("checkpoint"))
    images = {"own": images_of(teacher, "random:0", seed=0), "other": images_of(teacher, "random:5", seed=7)}
    kinds = {f"{name} images": [each] for name, each in images.items()}
    kinds |= {f"{name} images, disturbed": list(disturbed(each)) for name, each in images.items()}
    data = evaluation_data(CompressConfig(teacher=settings["teacher"], test_data=test, generator="gdfq"), teacher)
    for bits in BITS:
        for label, student in students(teacher, bits, images["own"]):
            accuracy = teacher.accuracy(student.eval(), data)
            row = {"bits": bits, "student": label, "accuracy": accuracy}
            for kind, batches in kinds.items():
                row |= {f"{name}, {kind}": value for name, value in compared(student, teacher.network, batches).items()}
            yield row


def images_of(teacher: nar.Teacher, generator: str, *, seed: int) -> Tensor:
    """Return images [N, C, H, W] of a generator that has learned for 300 batches."""
    config = CompressConfig(generator=generator, width=16, seed=seed, warmup_epochs=6)
    compression = Compression.start(config, teacher)
    for epoch in range(config.warmup_epochs):
        compression.run_epoch(epoch)
    assert isinstance(compression.images, GeneratorImages)
    return compression.images.fixed(IMAGES)


def students(teacher: nar.Teacher, bits: str, images: Tensor) -> Iterator[tuple[str, nn.Module]]:
    """Yield students of all kinds, each with its name."""
    config = CompressConfig(bits=bits, generator="gdfq", method="gdfq")
    start = by_ranges(teacher, config, images)
    yield "ranges alone", start
    for rate in BLOCK_RATES:
        student = copy_of(teacher, config, start)
        reconstruction = Reconstruction(student)
        reconstruction.begin(images)
        for index in range(len(reconstruction.blocks)):
            reconstruction.learn(index, steps=STEPS, batch_size=32, rates=Rates(weights=rate), seed=0)
        yield f"blocks, {rate:g}", student
    for rate in TRAINING_RATES:
        student = copy_of(teacher, config, start)
        training = StudentTraining(config.override({"student_lr": rate}), teacher, student)
        random = torch.Generator().manual_seed(0)
        for step in range(STEPS):
            batch = images[torch.randint(len(images), (64,), generator=random)]
            training.set_progress(step / STEPS)
            training.step(batch, teacher.network(batch).argmax(1), None)
        yield f"training, {rate:g}", student


def by_ranges(teacher: nar.Teacher, config: CompressConfig, images: Tensor) -> nn.Module:
    """Return a student whose ranges are those of the images."""
    student, _ = quantize_network(teacher.graph, config.quantization)
    with torch.no_grad(), observe_ranges(student):
        for batch in images.split(64):
            student(batch)
    return student


def copy_of(teacher: nar.Teacher, config: CompressConfig, student: nn.Module) -> nn.Module:
    """Return a student in the same state."""
    again = by_ranges(teacher, config, torch.zeros(1, *teacher.image))
    again.load_state_dict(copy.deepcopy(student.state_dict()))
    return again


@torch.no_grad()
def compared(student: nn.Module, teacher: nn.Module, batches: Sequence[Tensor]) -> dict[str, float]:
    """Return the agreement of the two networks on images, and the negative divergence of their predictions."""
    ours, theirs = (
        torch.cat([net(part) for batch in batches for part in batch.split(256)]) for net in (student, teacher)
    )
    divergence = F.kl_div(F.log_softmax(ours, 1), F.log_softmax(theirs, 1), log_target=True, reduction="batchmean")
    return {"agreement": float((ours.argmax(1) == theirs.argmax(1)).float().mean()), "divergence": -float(divergence)}


def to_markdown(rows: pd.DataFrame) -> str:
    """Return the rank correlations, and how ruined students look."""
    measures = [name for name in rows if name.startswith(("agreement", "divergence"))]
    groups = dict(list(rows.groupby("teacher", sort=False)))
    lines = [
        "# Measures without data",
        "",
        "By `python benchmarks/measures.py --output docs/results/measures`: rank correlation (Spearman's) of each "
        f"measure with test accuracy within a teacher, over {len(rows)} students at {', '.join(BITS)}: by ranges "
        "alone, block by block, and trained at four rates. The divergence is KL's, negative. A student is ruined if it "
        "lost over ten points to the ranges; missed are those for which the measure is no lower than by the ranges.",
        "",
        f"| measure | {' | '.join(groups)} | mean | ruined, missed |",
        f"|---|{'---|' * (len(groups) + 2)}",
    ]
    for measure in measures:
        each = [group[measure].corr(group["accuracy"], method="spearman") for group in groups.values()]
        ruined, missed = ruined_and_missed(rows, measure)
        cells = " | ".join(f"{value:.2f}" for value in each)
        lines.append(f"| {measure} | {cells} | {sum(each) / len(each):.3f} | {ruined}, {missed} |")
    return "\n".join(lines) + "\n"


def ruined_and_missed(rows: pd.DataFrame, measure: str) -> tuple[int, int]:
    """Return how many students lost over ten points to the ranges, and for how many of them the measure is no lower."""
    ruined = missed = 0
    for _, group in rows.groupby(["teacher", "bits"], sort=False):
        start = group.iloc[0]
        lost = group[group["accuracy"] < start["accuracy"] - 0.1]
        ruined += len(lost)
        missed += int((lost[measure] >= start[measure]).sum())
    return ruined, missed


if __name__ == "__main__":
    sys.exit(report_errors(main))
