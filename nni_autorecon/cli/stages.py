"""The three stages as commands and as NNI trials. Heavy imports wait until one of them runs."""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ..config.common import Config
from ..config.compress import CompressConfig
from ..config.distill import DistillConfig
from ..config.search import SearchConfig
from ..errors import InputError
from .arguments import Parser, add_stage
from .exits import INTERRUPTED, report_errors

if TYPE_CHECKING:
    from ..experiment.trial import Trial
    from ..runs.folder import RunFolder


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
    from ..accel.memory import keep_freed_memory

    keep_freed_memory()
    config = kind.from_arguments(arguments)
    return config.as_shared().override(trial.parameters, source="tuner") if trial else config


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
