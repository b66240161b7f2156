"""``nni-autorecon`` parses a command line, runs the command and returns its exit code. Heavy imports wait."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

from ..config.compress import CompressConfig
from ..config.flags import add_flags
from ..config.stages import STAGES
from ..export.purposes import PURPOSES
from ..version import __version__
from . import commands, screen
from .arguments import Parser, add_stage
from .exits import leave, report_errors
from .new_folder import ASKED
from .screen import PROGRAM
from .stages import run_stage

FORMER_NAMES = {"export": "best-genotype", "export-model": "to-onnx", "compare": "diff", "resume": "continue"}
"""Former names of commands, with their present names; the former names keep working."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code.

    The code is 0 for success, 1 for a run that failed, 2 for an error that the person can mend, 3 for an error of the
    machine, 130 for Ctrl-C and 143 for SIGTERM.
    """

    words = list(sys.argv[1:] if argv is None else argv)

    def run() -> None:
        if words and words[0] in FORMER_NAMES:
            screen.say(f"{PROGRAM}: {words[0]} is called {FORMER_NAMES[words[0]]} now")
            words[0] = FORMER_NAMES[words[0]]
        arguments = build_parser().parse_args(words)
        with screen.as_asked(arguments):
            arguments.run(arguments)

    return report_errors(run, words)


def console() -> NoReturn:
    """Run ``nni-autorecon`` and end the process, or answer the shell, which asks for completions by a variable."""
    if "_ARGCOMPLETE" in os.environ:
        import argcomplete

        argcomplete.autocomplete(build_parser())
    leave(main())


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of all commands."""
    parser = Parser(prog=PROGRAM, description="Compress a trained image classifier without its training data.")
    parser.add_argument("--version", action="version", version=f"{PROGRAM} {__version__}")
    kinds = parser.add_subparsers(metavar="COMMAND", required=True)

    def command(name: str, help: str, run: Callable[[argparse.Namespace], object]) -> Parser:
        added = kinds.add_parser(name, help=help, description=f"{help[0].upper()}{help[1:]}.")
        added.set_defaults(run=run)
        return added

    _add_new(command)
    for stage in STAGES.values():
        add_stage(command(stage.name, stage.help, partial(run_stage, stage.name)), stage.config)
    _add_experiments(command)
    _add_genotypes(command)
    _add_students(command)
    return parser


AddCommand = Callable[[str, str, Callable[[argparse.Namespace], object]], Parser]


def _add_new(command: AddCommand) -> None:
    """Add the command that everything begins with."""
    new = command("new", "write the experiments for a network into a folder, and what to type next", commands.new)
    new.usage = "%(prog)s FOLDER [settings]"
    new.description = (
        "Load a network, check it as search and compress do, and write experiment.yml and compress.yml, their search "
        "spaces and a README.md into FOLDER: what to type next, how long it takes on this machine, and why the "
        "settings are as they are. Everything else follows from the network. Without --teacher they are for the "
        "built-in teacher of handwritten digits."
    )
    new.add_argument("folder", type=Path, metavar="FOLDER", help="folder for them, made if it is not there")
    new.add_argument("--force", action="store_true", help="replace these files, and no others, if FOLDER has some")
    screen.add_arguments(new)
    add_flags(new, CompressConfig, ASKED)


def _add_experiments(command: AddCommand) -> None:
    """Add the commands around NNI experiments and their results."""
    start = command(
        "start", "start an NNI experiment that only this machine can reach, and see that it runs", commands.start
    )
    start.add_argument("file", type=Path, metavar="FILE", help="experiment.yml, as nni-autorecon new writes it")
    going_on = command(
        "continue", "go on with a stopped or killed NNI experiment, as start does", commands.continue_experiment
    )
    going_on.add_argument("experiment", metavar="ID", help="experiment id")
    for each in (start, going_on):
        each.add_argument("--port", type=int, default=8080, help="port of the web UI (default: 8080)")
        each.add_argument(
            "--listen-everywhere", action="store_true", help="let other machines reach NNI, as nnictl does"
        )
        screen.add_arguments(each)

    status = command("status", "say how the trials of an NNI experiment stand", commands.status)
    status.add_argument("--experiment", metavar="ID", help="experiment id (default: the one that is running)")
    screen.add_arguments(status)

    doctor = command("doctor", "say what is wrong with this machine, or with an experiment file", commands.doctor)
    doctor.add_argument(
        "file",
        type=Path,
        nargs="?",
        metavar="FILE",
        help="an experiment's file, to check it, too, and the GPUs that it asks for",
    )
    screen.add_arguments(doctor)

    report = command("report", "write tables and a figure of an experiment or of folders of results", commands.report)
    report.add_argument("folders", type=Path, nargs="*", metavar="FOLDER", help="runs, or folders that hold runs")
    report.add_argument("--experiment", metavar="ID", help="an NNI experiment instead of folders")
    report.add_argument(
        "-o", "--output", type=Path, required=True, metavar="NAME", help="write NAME.md, .csv, .png, and NAME-costs.png"
    )
    report.add_argument("--html", action="store_true", help="write NAME.html, too: all of it on a page to send around")
    _add_force(report)
    screen.add_arguments(report)


def _add_genotypes(command: AddCommand) -> None:
    """Add the commands around genotypes."""
    best = command(
        "best-genotype",
        "write the best genotype (architecture of the generator) of an NNI experiment",
        commands.best_genotype,
    )
    best.add_argument("--experiment", metavar="ID", required=True, help="experiment id, as nnictl prints it")
    best.add_argument(
        "--trial", metavar="ID", help="take this trial's (default: that of the least L_r, the loss of a search)"
    )
    _add_output(best, default=Path("best-genotype.json"), metavar="FILE", help="file to write (default: %(default)s)")
    _add_force(best)
    screen.add_arguments(best)

    show = command("show", "print a genotype (architecture of the generator) node by node, or draw it", commands.show)
    show.add_argument("file", metavar="GENOTYPE", help="a file, or published:NAME")
    _add_output(show, metavar="FILE.png", help="draw it into this file")
    _add_force(show)

    diff = command("diff", "print where two genotypes differ", commands.diff)
    diff.add_argument("files", metavar="GENOTYPE", nargs=2, help="a file, or published:NAME")
    for each in (show, diff):
        screen.add_arguments(each)


def _add_students(command: AddCommand) -> None:
    """Add the commands around saved students."""
    onnx = command("to-onnx", "write a saved student as ONNX, checked in onnxruntime", commands.to_onnx)
    onnx.add_argument("file", type=Path, metavar="FILE.safetensors", help="the student")
    onnx.add_argument(
        "--for",
        dest="purpose",
        choices=tuple(PURPOSES),
        help="; ".join(f"{name}: {what}" for name, what in PURPOSES.items()),
    )
    onnx.add_argument(
        "--check",
        type=int,
        metavar="N",
        help="compare it with the student on N images of noise, beside the synthetic ones of its folder (default: as "
        "many in all as can be compared in the time of the export)",
    )
    _add_output(onnx, metavar="FILE.onnx", help="file to write (default: beside the student)")
    _add_force(onnx)

    evaluate = command("evaluate", "measure a saved student, .safetensors, .onnx or .pt", commands.evaluate)
    evaluate.add_argument("file", type=Path, metavar="FILE", help="the student")
    evaluate.add_argument(
        "--test-data", metavar="SPEC", help="images, as for compress (default: digits for their students)"
    )
    evaluate.add_argument("--labels", metavar="FILE", help="labels of a test folder, as for compress")
    evaluate.add_argument("--download", action="store_true", help="download cifar10 or cifar100 if the folder has none")
    evaluate.add_argument("--device", metavar="auto|cpu|cuda", default="cpu", help="where to compute (default: cpu)")
    evaluate.add_argument(
        "--latency",
        action="store_true",
        help="measure how long an image takes in onnxruntime, beside the network in floating point",
    )
    evaluate.add_argument("--threads", type=int, default=1, metavar="N", help="CPU threads for --latency (default: 1)")
    for each in (onnx, evaluate):
        each.add_argument(
            "--teacher", metavar="SPEC", help="code of its structure, such as models.py:make, if it is yours"
        )
        screen.add_arguments(each)


def _add_force(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--force", action="store_true", help="replace what is there already")


def _add_output(parser: argparse.ArgumentParser, **named: Any) -> None:
    parser.add_argument("-o", "--output", type=Path, **named)
