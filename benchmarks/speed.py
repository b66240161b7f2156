"""A search step, an iteration of compression and whole runs are timed: the tables in docs/results/speed.md.

    python benchmarks/speed.py --output docs/results/speed

Everything that is compared is timed in turns within one process. About half an hour on two CPU cores; ``--parts``
chooses some of it.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from cases import PHASES, PLAIN, STOCK, cifar, compression_cases, digits, search_cases, teacher_of
from timing import Timing, compare

from nni_autorecon.accel.memory import keep_freed_memory
from nni_autorecon.cli.exits import report_errors
from nni_autorecon.config.compress import CompressConfig
from nni_autorecon.config.search import SearchConfig
from nni_autorecon.files import require_absent, write_json, write_text
from nni_autorecon.networks import resnet20
from nni_autorecon.runs.provenance import versions
from nni_autorecon.shapes import ImageShape
from nni_autorecon.teacher.loading import Teacher


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, metavar="NAME", help="write NAME.md and NAME.json")
    parser.add_argument("--force", action="store_true", help="replace them if they exist")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS), help="default: all")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads (default: 1)")
    parser.add_argument("--rounds", type=int, default=15, help="repetitions that count (default: 15)")
    arguments = parser.parse_args(argv)
    for suffix in (".md", ".json"):
        require_absent(arguments.output.with_suffix(suffix), force=arguments.force)
    torch.manual_seed(0)
    torch.set_num_threads(arguments.threads)
    keep_freed_memory()  # as stages do; the plain forms have the good of it, too
    os.environ.pop("PYTORCH_NVML_BASED_CUDA_CHECK", None)  # as a search does
    device = torch.device(arguments.device)
    threads = f"{platform.machine()}, {arguments.threads} CPU thread(s)"
    name = torch.cuda.get_device_name() if device.type == "cuda" else threads
    rounds = f"{arguments.rounds} rounds, growth a third of them"
    head = f"`python benchmarks/speed.py`, torch {torch.__version__}, {name}, {rounds}."
    measured: dict[str, Any] = {}
    for part in arguments.parts:
        measured[part] = PARTS[part](device, arguments.rounds)
        print("\n".join(as_table(part, measured[part])), flush=True)
        text = "\n\n".join([head, *("\n".join(as_table(part, rows)) for part, rows in measured.items())])
        write_text(arguments.output.with_suffix(".md"), text + "\n")
        write_json(arguments.output.with_suffix(".json"), {"machine": name, "versions": versions(), **measured})


def measure_search(device: torch.device, rounds: int) -> list[dict[str, Any]]:
    rows = []
    for name, teacher, config in (
        ("digits, 16×16, batch 32, width 16", digits(device), SearchConfig()),
        ("ResNet-20, 32×32, batch 32, width 16", cifar(device), SearchConfig()),
    ):
        cases, macs = search_cases(teacher, config)
        timings = compare(cases, rounds=rounds, device=device)
        rows += as_rows(name, timings, {case: f"{STOCK}, {PHASES[case.endswith('alpha')]}" for case in cases})
        for row in rows[-len(timings) :]:
            row["MMACs"] = round(macs[row["case"]] / 1e6, 1) if row["case"] in macs else None
    return rows


def measure_compress(device: torch.device, rounds: int) -> list[dict[str, Any]]:
    rows = []
    large = 64 if device.type == "cpu" else 200  # as GDFQ's
    for name, teacher, batch in (("digits", digits(device), 32), ("ResNet-20", cifar(device), large)):
        cases = compression_cases(teacher, CompressConfig(generator="gdfq", batch_size=batch))
        timings = compare(cases, rounds=rounds, device=device)
        rows += as_rows(f"{name}, batch {batch}", timings, dict.fromkeys(cases, PLAIN))
    return rows


def measure_growth(device: torch.device, rounds: int) -> list[dict[str, Any]]:
    """A third of the rounds each, for there are many sizes."""
    rows = []

    def measure(name: str, teacher: Teacher, batch: int, width: int) -> None:
        search, _ = search_cases(teacher, SearchConfig(batch_size=batch, width=width))
        compress = compression_cases(teacher, CompressConfig(generator="gdfq", batch_size=batch))
        for cases in (
            {f"search, {STOCK}": search[f"{STOCK}, weights"], "search, soft": search["soft, weights"]},
            {"compress, plain": compress[PLAIN], "compress, ours": compress["ours"]},
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
    """The command line's first word, and trials until their first step, beside what they cannot do without."""
    flags = ["--threads", str(torch.get_num_threads()), "--device", device.type]
    _command(
        "search", *flags, "--epochs", "1", "--output", f"{tempfile.mkdtemp()}/run"
    )  # trains the teacher if need be
    cases = {
        "nni-autorecon --help": ["-m", "nni_autorecon", "--help"],
        "import torch, and torch._dynamo, which its optimizers import": ["-c", "import torch, torch._dynamo"],
        "the same, NNI, and Lightning, which NNI's search needs": [
            "-c",
            "import torch, torch._dynamo, nni, pytorch_lightning",
        ],
        "a compression trial until its first step": [
            "-c",
            first_step("student.compression.Compression.run_epoch", "compress"),
            "--generator",
            "gdfq",
        ],
        "a search trial until its first step": [
            "-c",
            first_step("nas.autorecon.AutoReConModule.training_step", "search"),
        ],
    }
    times: dict[str, list[float]] = {name: [] for name in cases}
    for index in range(6):
        for name, arguments in cases.items():
            with tempfile.TemporaryDirectory() as folder:
                rest = [*flags, "--output", f"{folder}/run"] if "trial" in name else []
                seconds = _seconds([*arguments, *rest])
            if index:
                times[name].append(seconds)
    return [{"case": name, "seconds": round(statistics.median(seconds), 2)} for name, seconds in times.items()]


def first_step(method: str, script: str) -> str:
    """Write the program of a trial that ends where ``method`` is called, as in nas.opponent.Opponent.learn."""
    module, owner, name = method.rsplit(".", 2)
    return (
        f"import os, runpy, sys; from nni_autorecon.{module} import {owner}; "
        f"{owner}.{name} = lambda *_: os._exit(0); "
        f"runpy.run_path('trials/{script}.py', run_name='__main__')"
    )


def _command(*arguments: str) -> float:
    return _seconds(["-m", "nni_autorecon", *arguments])


def _seconds(arguments: Sequence[str]) -> float:
    """Return the seconds that Python takes for them."""
    start = time.perf_counter()
    subprocess.run([sys.executable, *arguments], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return time.perf_counter() - start


PARTS = {
    "search": measure_search,
    "compress": measure_compress,
    "growth": measure_growth,
    "whole": measure_whole,
    "startup": measure_startup,
}


def as_rows(sizes: str, timings: Mapping[str, Timing], references: Mapping[str, str]) -> list[dict[str, Any]]:
    """A row per case, with how many times faster it is than its reference."""
    return [
        {
            "sizes": sizes,
            "case": name,
            "ms (quartiles)": spread(timing.milliseconds, 1),
            "times faster (quartiles)": spread(timing.times_faster(timings[references[name]]), 2),
            "peak memory, MB": round(timing.peak_megabytes, 1),
            "in convolutions, %": round(100 * timing.convolution_share),
            "GFLOP/s there": round(timing.convolution_gflops),
        }
        for name, timing in timings.items()
    ]


def spread(quartiles: Sequence[float], digits: int) -> str:
    """Write median and quartiles, as in 2.5 (2.4 to 2.7)."""
    first, median, third = (f"{value:.{digits}f}" for value in quartiles)
    return f"{median} ({first} to {third})"


def as_table(title: str, rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the lines of a Markdown table."""
    heads = list(rows[0])
    body = ("| " + " | ".join("–" if row[head] is None else str(row[head]) for head in heads) + " |" for row in rows)
    return [f"### {title}", "", "| " + " | ".join(heads) + " |", "|" + "---|" * len(heads), *body]


if __name__ == "__main__":
    sys.exit(report_errors(main))
