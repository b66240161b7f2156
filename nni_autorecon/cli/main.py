"""``nni-autorecon``: what a person types. Heavy imports wait until a command needs them."""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from ..accel.memory import keep_freed_memory
from ..config.common import Config
from ..config.search import SearchConfig
from ..config.student import CompressConfig, DistillConfig
from ..errors import InputError
from ..version import __version__
from . import commands
from .exits import INTERRUPTED, PROGRAM, leave, report_errors

if TYPE_CHECKING:
    from ..experiment.trial import Trial
    from ..runs.folder import RunFolder


class Parser(argparse.ArgumentParser):
    """Says in one line what is wrong with a command line."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: error: {' '.join(message.split())}; see {self.prog} --help\n")


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


def add_stage(
    parser: argparse.ArgumentParser, config: type[Config], run: Callable[[argparse.Namespace], object] | None = None
) -> argparse.ArgumentParser:
    """The arguments of a stage, for its command and for its trial script."""
    parser.add_argument("--config", metavar="FILE", help="settings in JSON or YAML; flags override it")
    parser.add_argument("-o", "--output", type=Path, metavar="FOLDER", help="folder for results (default: under runs/)")
    parser.add_argument("--force", action="store_true", help="replace results that stand in the folder")
    parser.add_argument("--resume", action="store_true", help="go on with the unfinished run in the folder")
    parser.add_argument("--tensorboard", action="store_true", help="write the metrics for TensorBoard, too")
    config.add_arguments(parser)
    parser.set_defaults(run=run)
    return parser


def run_search(arguments: argparse.Namespace, trial: Trial | None = None) -> None:
    """Stage 1 on its own, or as an NNI trial."""
    from ..nas.search import search

    config = _configure(SearchConfig, arguments, trial)
    with _run_folder("search", arguments, trial) as run:

        def on_epoch(row: dict[str, float]) -> None:
            if trial:
                trial.report_intermediate(_for_nni(row, default="loss"), len(run.rows) - 1)

        result = search(config, run, on_epoch=on_epoch, **_at_every_step(trial))
        loss, details = result.loss, result.genotype.details
        print(f"L_r {loss['loss']:.4f} (class {loss['class_loss']:.4f}, BN statistics {loss['bns_loss']:.4f})")
        print(f"{details['macs'] / 1e6:.1f} MMACs, {details['parameters'] / 1e3:.0f} k parameters")
        print(f"genotype: {run / 'genotype.json'}\ndevice: {run.device}")
        if trial:
            trial.report_final({**result.metrics(), "config": json.dumps(config.to_dict())})
        run.finish()


def run_compress(arguments: argparse.Namespace, trial: Trial | None = None) -> None:
    """Stage 2 on its own, or as an NNI trial."""
    from ..student.compression import run_compression

    _run_student("compress", _configure(CompressConfig, arguments, trial), run_compression, arguments, trial)


def run_distill(arguments: argparse.Namespace, trial: Trial | None = None) -> None:
    """Distillation on its own, or as an NNI trial."""
    from ..student.distillation import run_distillation

    _run_student("distill", _configure(DistillConfig, arguments, trial), run_distillation, arguments, trial)


def _run_student(
    stage: str, config: Config, run_stage: Callable[..., Any], arguments: argparse.Namespace, trial: Trial | None
) -> None:
    """Train a student by ``run_stage``, print what came of it, report to NNI inside a trial."""

    with _run_folder(stage, arguments, trial) as run:

        def on_epoch(row: dict[str, Any]) -> None:
            if trial and "agreement" in row:  # there is no student to speak of during the warm-up
                sequence = sum("agreement" in earlier for earlier in run.rows) - 1
                trial.report_intermediate(_for_nni(row, default="agreement"), sequence)

        result = run_stage(config, run, on_epoch=on_epoch, **_at_every_step(trial))
        print(result.summary())
        print(f"result: {run / 'result.json'}\ndevice: {run.device}")
        if trial:
            trial.report_final({**result.metrics(), "config": json.dumps(config.to_dict())})
        run.finish()


def _at_every_step(trial: Trial | None) -> dict[str, Any]:
    """What a stage does beside its work: a trial looks for its manager, a person sees a progress bar."""
    return {"on_step": trial.require_manager} if trial else {"progress": sys.stderr.isatty()}


def run_as_trial(
    config: type[Config], run: Callable[[argparse.Namespace, Trial | None], None], argv: Sequence[str] | None
) -> int:
    """The whole of a trial script: flags from ``trialCommand``, parameters from the tuner, results to NNI.

    Started by hand, outside an experiment, it is the stage's command. A trial that NNI stops by SIGINT ends by that
    signal: an exit code, NNI takes for a failure.
    """
    arguments = add_stage(Parser(), config).parse_args(argv)

    def start() -> None:
        if "NNI_PLATFORM" not in os.environ:
            return run(arguments, None)
        from ..experiment.trial import Trial

        return run(arguments, Trial())

    code = report_errors(start)
    if code == INTERRUPTED and "NNI_PLATFORM" in os.environ:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGINT)
    return code


def _configure(kind: type[Any], arguments: argparse.Namespace, trial: Trial | None) -> Any:
    """The stage's settings. Its process is about to compute, and is made ready for that."""
    keep_freed_memory()
    config = kind.from_arguments(arguments)
    return config.override(trial.parameters, source="tuner") if trial else config


def _run_folder(stage: str, arguments: argparse.Namespace, trial: Trial | None) -> RunFolder:
    """The folder named by --output, or NNI's for the trial, which may hold an earlier attempt, or a new one."""
    from ..runs.folder import EVENTS, RunFolder, new_folder

    show = arguments.tensorboard
    if arguments.output or not (trial and trial.output):
        if arguments.resume and not arguments.output:
            raise InputError("--resume needs the folder of the unfinished run; give it with --output")
        folder = arguments.output or new_folder(stage)
        return RunFolder(folder, force=arguments.force, resume=arguments.resume, tensorboard=show)
    run = RunFolder(trial.output, force=True, resume=True, tensorboard=show)
    if show:
        trial.show_events(run / EVENTS)
    return run


def _for_nni(row: Mapping[str, Any], *, default: str) -> dict[str, Any]:
    """A row of metrics as NNI wants it: what its curve and tuner follow is called ``default``."""
    counts = ("epoch", "candidate")
    numbers = {name: value for name, value in row.items() if isinstance(value, (int, float)) and name not in counts}
    return {"default": numbers.pop(default), **numbers}
