"""What foretells how good a student becomes is sought among measures of its images: docs/results/predictors.md.

    python benchmarks/predictors.py --output docs/results/predictors

For each teacher, images of some twenty kinds are made by generators and without, and the blocks of a student are fitted
to each, alike for all. Each measure is compared with the students' accuracy on test data by its rank correlation
(Spearman's) within a teacher. Two of the teachers that :mod:`teachers` has for choosing take about an hour and a half
on one CPU core.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
import torch
import torch.nn.functional as F
from teachers import FASHION, TEACHERS, prepared
from torch import Tensor, nn

import nni_autorecon as nar
from nni_autorecon.cli.exits import report_errors
from nni_autorecon.config.compress import CompressConfig
from nni_autorecon.figures.images import diversity
from nni_autorecon.files import write_text
from nni_autorecon.losses.batchnorm import record_bn_statistics
from nni_autorecon.losses.reconstruction import bn_statistics_loss
from nni_autorecon.student.agreement import decisions
from nni_autorecon.student.compression import Compression
from nni_autorecon.student.results import evaluation_data

GENERATED = ("gdfq", "random:0", "random:1", "random:2", "random:3", "all:dil_conv_5x5", "all:conv_1x1")
KINDS: dict[str, dict[str, Any]] = {
    **{
        f"{name}, {steps} updates": {"generator": name, "refine_steps": steps}
        for name in ("noise", "dead-leaves")
        for steps in (0, 10, 30, 100)
    },
    **{name: {"generator": name, "refine_steps": 0} for name in GENERATED},
    **{f"{name}, 30 updates": {"generator": name, "refine_steps": 30} for name in GENERATED[:2]},
    **{f"{name}, 4 × the batches": {"generator": name, "refine_steps": 0, "steps": 200} for name in GENERATED[:2]},
}
"""The images, as settings; *updates* are those of pixels."""
STUDENT: dict[str, Any] = {"block_images": 512, "block_steps": 100, "batch_size": 32}
WIDTH = 16
MORE_IS_BETTER = ("diversity within a class", "kappa on own images", "kappa on others' images")
IN_POOL = 64
"""So many images of each kind are those that students of other kinds are tried on."""


class Fitted(NamedTuple):
    """A student, the images [N, C, H, W] that it was fitted to, others of their kind, and what is known of it."""

    student: nn.Module
    held_out: Tensor
    row: dict[str, Any]


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, metavar="NAME", help="write NAME.md and NAME.csv")
    parser.add_argument("--force", action="store_true", help="replace them if they exist")
    parser.add_argument("--teachers", nargs="+", choices=TEACHERS, default=("hard", "gated"), metavar="NAME")
    parser.add_argument("--bits", default="w3a3", help="of the students (default: w3a3)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--fashion", type=Path, default=FASHION, help=f"Fashion-MNIST's four files; default: {FASHION}")
    parser.add_argument("--networks", type=Path, help="a folder with models.py, cifar10/ and cifar100/")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads (default: 1)")
    arguments = parser.parse_args(argv)
    bench = prepared(arguments)
    rows: list[dict[str, Any]] = []
    for name in arguments.teachers:
        made = TEACHERS[name].settings(bench)
        for row in measured(made, bits=arguments.bits, seed=arguments.seed):
            rows.append({"teacher": name, "half": TEACHERS[name].half, **row})
        frame = pd.DataFrame(rows)
        write_text(arguments.output.with_suffix(".csv"), frame.to_csv(index=False))
        write_text(arguments.output.with_suffix(".md"), to_markdown(frame, arguments.bits))


def measured(settings: dict[str, Any], *, bits: str, seed: int) -> Iterator[dict[str, Any]]:
    """Yield a row for each kind of images: the student's accuracy in percent, and all measures."""
    test = settings.get("test_data", "digits")
    teacher = nar.load_teacher(settings["teacher"], checkpoint=settings.get("checkpoint"))
    data = evaluation_data(CompressConfig(teacher=settings["teacher"], test_data=test, generator="gdfq"), teacher)
    made: list[Fitted] = []
    for kind, own in KINDS.items():
        width = {} if own["generator"] in ("gdfq", "noise", "dead-leaves") else {"width": WIDTH}
        fitted = fit(teacher, CompressConfig(bits=bits, seed=seed, **STUDENT, **own, **width))
        accuracy = 100 * teacher.accuracy(fitted.student.eval(), data)
        made.append(fitted._replace(row={"images": kind, "accuracy": round(accuracy, 2), **fitted.row}))
        print(", ".join(f"{key} {value}" for key, value in made[-1].row.items()), flush=True)
    for one in made:
        others = [other.held_out for other in made if other is not one]
        yield one.row | tried(one.student, teacher.network, others)


def fit(teacher: nar.Teacher, config: CompressConfig) -> Fitted:
    """Return a student of these settings, and measures of its images."""
    compression = Compression.start(config, teacher)
    for epoch in range(len(compression.phases)):
        compression.run_epoch(epoch)
    blockwise, loss = compression.blockwise, compression.loss
    assert blockwise is not None
    assert blockwise.fitted is not None
    assert blockwise.held_out is not None
    assert loss is not None
    own = decisions(compression.student, teacher.observed, blockwise.held_out.split(config.batch_size))
    row = {
        "L_r": loss["loss"],
        "its cross-entropy": loss["class_loss"],
        "its BN statistics": loss["bns_loss"],
        "BN statistics as KL": statistics(teacher, blockwise.fitted),
        "diversity within a class": diversity(blockwise.fitted, labels_of(teacher, blockwise.fitted)),
        "kappa on own images": own.kappa,
    }
    return Fitted(compression.student, blockwise.held_out[:IN_POOL], row)


@torch.no_grad()
def statistics(teacher: nar.Teacher, images: Tensor) -> float:
    """Return how far the statistics of all the images together are from those that BatchNorms remember."""
    with record_bn_statistics(teacher.observed) as found:
        teacher.observed(images)
    return float(bn_statistics_loss(found, form="kl"))


@torch.no_grad()
def labels_of(teacher: nar.Teacher, images: Tensor) -> Tensor:
    """Return the classes [N] that the teacher sees in images [N, C, H, W]."""
    return torch.cat([teacher.observed(batch).argmax(1) for batch in images.split(64)])


@torch.no_grad()
def tried(student: nn.Module, teacher: nn.Module, others: Sequence[Tensor]) -> dict[str, float]:
    """Return how the student errs on images of other kinds: the mean over kinds, and the worst of them."""
    errors, divergences, kappas = [], [], []
    for images in others:
        ours, theirs = student(images), teacher(images)
        errors.append(float(F.mse_loss(ours, theirs) / theirs.square().mean()))
        divergence = F.kl_div(F.log_softmax(ours, 1), F.log_softmax(theirs, 1), log_target=True, reduction="batchmean")
        divergences.append(float(divergence))
        kappas.append(decisions(student, teacher, [images]).kappa)
    return {
        "error of logits on others' images": mean(errors),
        "the worst of these errors": max(errors),
        "divergence on others' images": mean(divergences),
        "kappa on others' images": mean(kappas),
    }


def mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def to_markdown(rows: pd.DataFrame, bits: str) -> str:
    """Return the rank correlations, and all students."""
    measures = [name for name in rows if name not in ("teacher", "half", "images", "accuracy")]
    groups = dict(list(rows.groupby("teacher", sort=False)))
    lines = [
        "# What foretells a student",
        "",
        f"By `python benchmarks/predictors.py`: students of {bits}, {STUDENT['block_images']} images of {len(KINDS)} "
        f"kinds, {STUDENT['block_steps']} updates of each block. Rank correlation (Spearman's) of the accuracy on test "
        "data with each measure, its sign turned where less is meant to be better, so that 1 foretells and 0 does not. "
        "Diversity is the variance of pixels within the teacher's classes over that of all images; kappa is Cohen's, "
        "of decisions on disturbed images.",
        "",
        f"| measure | {' | '.join(groups)} |",
        f"|---|{'---|' * len(groups)}",
    ]
    for measure in measures:
        sign = 1 if measure in MORE_IS_BETTER else -1
        each = [sign * group[measure].corr(group["accuracy"], method="spearman") for group in groups.values()]
        lines.append(f"| {measure} | {' | '.join(f'{value:.2f}' for value in each)} |")
    lines += [
        "",
        f"| teacher | images | accuracy | {' | '.join(measures)} |",
        f"|---|---|{'---|' * (len(measures) + 1)}",
    ]
    for row in rows.sort_values(["teacher", "accuracy"], ascending=[True, False]).itertuples(index=False):
        cells = [f"{value:.3g}" for value in row[4:]]
        lines.append(f"| {row[0]} | {row[2]} | {row[3]:.2f} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(report_errors(main))
