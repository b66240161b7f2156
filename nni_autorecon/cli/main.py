"""``nni-autorecon``: the parser of what a person types, and its exit code. Heavy imports wait."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from ..config.compress import CompressConfig
from ..config.distill import DistillConfig
from ..config.search import SearchConfig
from ..version import __version__
from . import commands
from .arguments import Parser, add_stage
from .exits import PROGRAM, leave, report_errors
from .stages import run_compress, run_distill, run_search


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command. Returns the exit code: 0, 1 for a run that failed, 2 for something to mend, 130 for Ctrl-C,
    143 for SIGTERM."""

    def run() -> None:
        arguments = build_parser().parse_args(argv)
        arguments.run(arguments)

    return report_errors(run)


def console() -> NoReturn:
    """``nni-autorecon``."""
    leave(main())


def build_parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog=PROGRAM, description="Search a generator for a frozen classifier, then quantize it without data."
    )
    parser.add_argument("--version", action="version", version=f"{PROGRAM} {__version__}")
    kinds = parser.add_subparsers(metavar="COMMAND", required=True)

    add_stage(kinds.add_parser("search", help="search a generator architecture (stage 1)"), SearchConfig, run_search)

    compress = kinds.add_parser("compress", help="quantize and distil the teacher (stage 2)")
    add_stage(compress, CompressConfig, run_compress)

    distill = kinds.add_parser("distill", help="distil the teacher into another, smaller network")
    add_stage(distill, DistillConfig, run_distill)

    start = kinds.add_parser(
        "start", help="start an NNI experiment that only this machine can reach, and see that it runs"
    )
    start.add_argument("file", type=Path, metavar="FILE", help="experiment.yml, or one of experiments/")
    start.set_defaults(run=commands.start)

    resume = kinds.add_parser("resume", help="go on with a stopped or killed NNI experiment, in the same way")
    resume.add_argument("experiment", metavar="ID", help="experiment id")
    resume.set_defaults(run=commands.resume)
    for command in (start, resume):
        command.add_argument("--port", type=int, default=8080, help="port of the web UI (default: 8080)")
        command.add_argument(
            "--listen-everywhere", action="store_true", help="let other machines reach NNI, as nnictl does"
        )

    doctor = kinds.add_parser("doctor", help="say what is wrong with this machine, or with an experiment file")
    doctor.add_argument(
        "file", type=Path, nargs="?", metavar="FILE", help="an experiment, to check its GPU request too"
    )
    doctor.set_defaults(run=commands.doctor)

    export = kinds.add_parser("export", help="write the best genotype of an NNI experiment")
    export.add_argument("--experiment", metavar="ID", required=True, help="experiment id, as nnictl prints it")
    export.add_argument("--trial", metavar="ID", help="that trial's (default: the one with the least L_r)")
    export.add_argument(
        "-o", "--output", type=Path, default=Path("best-genotype.json"), metavar="FILE", help="default: %(default)s"
    )
    export.add_argument("--force", action="store_true", help="replace the file if it exists")
    export.set_defaults(run=commands.export)

    status = kinds.add_parser("status", help="how the trials of an NNI experiment stand")
    status.add_argument("--experiment", metavar="ID", help="default: the one that is running")
    status.set_defaults(run=commands.status)

    report = kinds.add_parser("report", help="tables and a figure from an experiment or folders of results")
    report.add_argument("folders", type=Path, nargs="*", metavar="FOLDER", help="runs, or folders that hold runs")
    report.add_argument("--experiment", metavar="ID", help="an NNI experiment instead of folders")
    report.add_argument("-o", "--output", type=Path, required=True, metavar="NAME", help="write NAME.md, .csv and .png")
    report.add_argument("--force", action="store_true", help="replace them if they exist")
    report.set_defaults(run=commands.report)

    show = kinds.add_parser("show", help="print a genotype, node by node, or draw it")
    show.add_argument("file", metavar="GENOTYPE", help="a file, or published:NAME")
    show.add_argument("-o", "--output", type=Path, metavar="FILE.png", help="draw it into this file")
    show.add_argument("--force", action="store_true", help="replace the file if it exists")
    show.set_defaults(run=commands.show)

    compare = kinds.add_parser("compare", help="print where two genotypes differ")
    compare.add_argument("files", metavar="GENOTYPE", nargs=2, help="a file, or published:NAME")
    compare.set_defaults(run=commands.compare)

    model = kinds.add_parser("export-model", help="write a saved student as ONNX, checked in onnxruntime")
    model.add_argument("file", type=Path, metavar="FILE.safetensors", help="the student")
    model.add_argument("-o", "--output", type=Path, metavar="FILE.onnx", help="default: beside it")
    model.add_argument("--force", action="store_true", help="replace the file if it exists")
    model.set_defaults(run=commands.export_model)

    evaluate = kinds.add_parser("evaluate", help="measure a saved student, .safetensors or .onnx")
    evaluate.add_argument("file", type=Path, metavar="FILE", help="the student")
    evaluate.add_argument("--test-data", metavar="SPEC", help="as for compress (default: digits for their students)")
    evaluate.add_argument("--download", action="store_true", help="fetch cifar10 or cifar100 if the folder has none")
    evaluate.set_defaults(run=commands.evaluate)
    for command in (model, evaluate):
        command.add_argument("--teacher", metavar="SPEC", help="where its structure is, if not where the file says")
    return parser
