"""Small teachers that differ in kind, and students of them all: the table docs/results/teachers.md.

    python benchmarks/teachers.py --output docs/results/teachers

The teachers are the digits and ten classifiers of Fashion-MNIST, which are trained once, in minutes each, and kept in
the cache folder. ``--networks FOLDER`` adds those of CIFAR and ImageNet that lie there. Half of the teachers are there
to choose settings by, and half to report on; nothing is ever chosen by the second half. Whatever stands behind ``--``
goes to every compression, such as ``-- --preset gdfq``.
"""

from __future__ import annotations

import argparse
import gzip
import shlex
import sys
import tarfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import fashion_networks
import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import nni_autorecon as nar
from nni_autorecon.cache import cache_folder, cache_lock
from nni_autorecon.cli.exits import report_errors
from nni_autorecon.errors import InputError
from nni_autorecon.files import require_absent, write_text

FASHION = Path("/usr/share/datasets/fashion-mnist")
"""Here Debian's package dataset-fashion-mnist puts its files."""
BITS = ("w8a8", "w4a8", "w4a4", "w3a3", "w2a4")
CHOOSE, REPORT = "choose", "report"
EPOCHS, BATCH = 4, 128


@dataclass(frozen=True)
class Bench:
    """The folders that teachers are made from, and the one in which they are kept."""

    fashion: Path
    networks: Path | None
    folder: Path


@dataclass(frozen=True)
class BenchTeacher:
    """A teacher of the bench; ``settings`` makes or finds it and returns what ``nni_autorecon.compress`` takes."""

    half: str
    settings: Callable[[Bench], dict[str, Any]]
    needs_networks: bool = False


def fashion(name: str, bench: Bench) -> dict[str, Any]:
    """Return the settings of a classifier of Fashion-MNIST, which is trained if it is not in the folder."""
    weights, test = bench.folder / f"{name}.pt", bench.folder / "fashion-test.npz"
    with cache_lock(weights):
        if not test.exists():
            images, labels = read_fashion(bench.fashion, "t10k")
            np.savez(test, images=images, labels=labels)
        if not weights.exists():
            started = time.perf_counter()
            network = train(getattr(fashion_networks, name)(), *read_fashion(bench.fashion, "train"))
            torch.save(network.state_dict(), weights)
            print(f"{name}: trained in {time.perf_counter() - started:.0f} s", flush=True)
    spec = f"{Path(fashion_networks.__file__)}:{name}"
    return {"teacher": spec, "checkpoint": str(weights), "test_data": str(test)}


def read_fashion(folder: Path, part: str) -> tuple[np.ndarray, np.ndarray]:
    """Return the images, uint8 [N, 1, 28, 28], and labels, uint8 [N], of the part ``train`` or ``t10k``."""
    try:
        images, labels = (
            np.frombuffer(gzip.decompress((folder / f"{part}-{kind}-ubyte.gz").read_bytes()), np.uint8)
            for kind in ("images-idx3", "labels-idx1")
        )
    except OSError as error:
        raise InputError(
            f"{folder} has no Fashion-MNIST ({error.strerror}); install dataset-fashion-mnist or give --fashion"
        ) from error
    return images[16:].reshape(-1, 1, 28, 28), labels[8:]


def train(network: nn.Module, images: np.ndarray, labels: np.ndarray) -> nn.Module:
    """Train a classifier from scratch, on images that are shifted by up to two pixels and mirrored."""
    torch.manual_seed(0)
    x, y = torch.from_numpy(images.copy()), torch.from_numpy(labels.astype(np.int64))
    (mean,), (std,) = network.mean, network.std  # type: ignore[misc]
    optimizer = torch.optim.SGD(network.parameters(), 0.1, momentum=0.9, nesterov=True, weight_decay=5e-4)
    steps = len(x) // BATCH
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=EPOCHS * steps)
    network.train()
    for _ in range(EPOCHS):
        order = torch.randperm(len(x))
        for step in range(steps):
            chosen = order[step * BATCH : (step + 1) * BATCH]
            batch = augmented((x[chosen].float() / 255 - mean) / std)
            loss = F.cross_entropy(network(batch), y[chosen], label_smoothing=0.05)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    return network.eval()


def augmented(batch: Tensor) -> Tensor:
    """Return a batch [N, 1, H, W], mirrored and shifted at random, all images alike."""
    down, right = torch.randint(-2, 3, (2,)).tolist()
    batch = batch.roll((down, right), (2, 3))
    return batch.flip(3) if torch.rand(()) < 0.5 else batch


def cifar10(bench: Bench) -> dict[str, Any]:
    """Return the settings of a ResNet-20 that was trained on JPEG images, and of its 10,000 test images."""
    images = bench.folder / "cifar10-jpeg"
    if not images.exists():
        with tarfile.open(_at(bench, "cifar10/jpeg-test.tar.gz")) as archive:
            archive.extractall(images, filter="data")
    return {
        "teacher": "nni_autorecon.networks:resnet20",
        "checkpoint": _at(bench, "cifar10/resnet20-jpeg.pt"),
        "image_size": 32,
        "mean": (0.485, 0.456, 0.406),
        "std": (0.229, 0.224, 0.225),
        "test_data": str(images / "test"),
    }


def cifar100(bench: Bench) -> dict[str, Any]:
    """Return the settings of a ResNet-20 for CIFAR-100, and of its 10,000 test images."""
    checkpoint, test = _at(bench, "cifar100/resnet20.pt"), _at(bench, "cifar100/test.npz")
    return {"teacher": f"{_at(bench, 'models.py')}:cifar100_resnet20", "checkpoint": checkpoint, "test_data": test}


def tiny_darknet(bench: Bench) -> dict[str, Any]:
    """Return the settings of Tiny Darknet for ImageNet, and of a thousand images."""
    images, labels = _at(bench, "imagenet/nips2017"), _at(bench, "imagenet/nips2017.csv")
    checkpoint = _at(bench, "imagenet/tiny_darknet.pt")
    spec = f"{_at(bench, 'models.py')}:tiny_darknet"
    return {"teacher": spec, "checkpoint": checkpoint, "test_data": images, "labels": labels}


def _at(bench: Bench, path: str) -> str:
    assert bench.networks is not None
    return str(bench.networks / path)


TEACHERS = {
    "digits": BenchTeacher(CHOOSE, lambda bench: {"teacher": "digits"}),
    **{
        name: BenchTeacher(CHOOSE, partial(fashion, name))
        for name in ("residual", "dense", "gated", "hard", "leaky", "tiny")
    },
    "tiny darknet": BenchTeacher(CHOOSE, tiny_darknet, needs_networks=True),
    **{name: BenchTeacher(REPORT, partial(fashion, name)) for name in ("plain", "mobile", "squeezed", "wide")},
    "cifar10": BenchTeacher(REPORT, cifar10, needs_networks=True),
    "cifar100": BenchTeacher(REPORT, cifar100, needs_networks=True),
}


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, metavar="NAME", help="write NAME.md and NAME.csv")
    parser.add_argument("--force", action="store_true", help="replace them if they exist")
    parser.add_argument("--teachers", nargs="+", choices=TEACHERS, metavar="NAME")
    parser.add_argument("--half", choices=(CHOOSE, REPORT), help="only the teachers of this half")
    parser.add_argument("--bits", nargs="+", default=BITS, help=f"default: {' '.join(BITS)}")
    parser.add_argument("--seeds", nargs="+", type=int, default=(0, 1, 2))
    parser.add_argument("--fashion", type=Path, default=FASHION, help=f"Fashion-MNIST's four files; default: {FASHION}")
    parser.add_argument("--networks", type=Path, help="a folder with models.py, cifar10/, cifar100/ and imagenet/")
    parser.add_argument("--make", action="store_true", help="only train the teachers")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads (default: 1)")
    parser.add_argument("settings", nargs="*", help="of every compression, behind --")
    arguments = parser.parse_args(argv)
    bench = prepared(arguments)
    chosen = arguments.teachers or [
        name
        for name, teacher in TEACHERS.items()
        if arguments.half in (None, teacher.half) and (bench.networks or not teacher.needs_networks)
    ]
    made = {name: TEACHERS[name].settings(bench) for name in chosen}
    rows: list[dict[str, Any]] = []
    for name in () if arguments.make else chosen:
        for bits in arguments.bits:
            for seed in arguments.seeds:
                more = {"bits": bits, "seed": seed, "threads": arguments.threads, **given(arguments.settings)}
                rows.append({"teacher": name, "half": TEACHERS[name].half, **compressed(made[name] | more)})
                print(", ".join(f"{key} {value}" for key, value in rows[-1].items()), flush=True)
                frame = pd.DataFrame(rows)  # it is written after each, for a run may be ended early
                write_text(arguments.output.with_suffix(".csv"), frame.to_csv(index=False))
                write_text(arguments.output.with_suffix(".md"), to_markdown(frame, arguments.settings))


def prepared(arguments: argparse.Namespace) -> Bench:
    """Return the bench, once nothing stands where the results go. Raises InputError if something does."""
    for suffix in (".md", ".csv"):
        require_absent(arguments.output.with_suffix(suffix), force=arguments.force)
    torch.set_num_threads(arguments.threads)
    bench = Bench(arguments.fashion, arguments.networks, cache_folder() / "teachers")
    bench.folder.mkdir(parents=True, exist_ok=True)
    return bench


def given(settings: Sequence[str]) -> dict[str, Any]:
    """Return ``["--student-lr", "0.1"]`` as the keyword arguments of ``nni_autorecon.compress``."""
    names = [name.removeprefix("--").replace("-", "_") for name in settings[::2]]
    return {name: _number(value) for name, value in zip(names, settings[1::2], strict=True)}


def _number(text: str) -> int | float | str:
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            pass
    return text


def compressed(settings: dict[str, Any]) -> dict[str, Any]:
    """Return what a compression with these settings comes to; accuracies in percent."""
    started = time.perf_counter()
    result = nar.compress(**settings, progress=False)
    minutes = (time.perf_counter() - started) / 60
    accuracies = {
        "teacher accuracy": result.teacher_accuracy,
        "ranges alone": result.ranges_only_accuracy,
        "accuracy": result.accuracy,
        "agreement": result.agreement,
    }
    percent = {name: round(100 * value, 2) for name, value in accuracies.items() if value is not None}
    return {"bits": settings["bits"], "seed": settings["seed"], **percent, "minutes": round(minutes, 2)}


def to_markdown(rows: pd.DataFrame, settings: Sequence[str]) -> str:
    """Return the table for readers: a line for each teacher and bit width, mean ± standard deviation over seeds."""
    lines = [
        "# Students of many teachers",
        "",
        f"By `python benchmarks/teachers.py` with the settings `{shlex.join(settings) or 'of the defaults'}`. Accuracy "
        "in percent on test data, at the end of each run; mean ± standard deviation over seeds. Settings are chosen by "
        "one half of the teachers, and the other half is reported.",
        "",
        "| teacher | half | bits | teacher's | ranges alone | trained | below the teacher | minutes |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for (half, teacher, bits), group in rows.groupby(["half", "teacher", "bits"], sort=False):
        own, drop = group["teacher accuracy"].mean(), (group["teacher accuracy"] - group["accuracy"]).mean()
        lines.append(
            f"| {teacher} | {half} | {bits} | {own:.2f} | {spread(group['ranges alone'])} | "
            f"{spread(group['accuracy'])} | {drop:.2f} | {group['minutes'].mean():.1f} |"
        )
    return "\n".join(lines) + "\n"


def spread(values: pd.Series) -> str:
    return f"{values.mean():.2f}" + (f" ± {values.std():.2f}" if len(values) > 1 else "")


if __name__ == "__main__":
    sys.exit(report_errors(main))
