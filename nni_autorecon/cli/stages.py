"""The three stages run as commands, and as trials when NNI starts them. Heavy imports wait until one of them runs."""

from __future__ import annotations

import argparse
import csv
import json
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from ..config.common import Config
from ..config.compress import CompressConfig
from ..config.distill import DistillConfig
from ..config.flags import from_flags
from ..config.search import SearchConfig
from ..config.stages import STAGES
from ..errors import InputError
from . import screen
from .arguments import Parser, add_stage
from .exits import leave, report_errors
from .next_steps import after_search, after_student

if TYPE_CHECKING:
    from ..experiment.trial import Trial
    from ..nas.search import SearchResult
    from ..student.results import CompressionResult, DistillationResult


def run_search(arguments: argparse.Namespace, trial: Trial | None = None) -> None:
    """Run stage 1 on its own, or as an NNI trial."""
    from .. import api

    config = _configure(SearchConfig, arguments, trial)

    def on_epoch(row: Mapping[str, Any]) -> None:
        if trial:
            trial.report_intermediate(_for_nni(row, default="loss"), row.get("epoch", row.get("candidate")) - 1)

    def on_result(result: SearchResult) -> None:
        genotype = place["folder"] / "genotype.json"
        _conclude(result, genotype, after_search(config, genotype), config, trial)

    place = _place("search", arguments, trial)
    api.search(config=config, on_epoch=on_epoch, on_result=on_result, **place, **_at_every_step(trial))


def run_compress(arguments: argparse.Namespace, trial: Trial | None = None) -> None:
    """Run stage 2 on its own, or as an NNI trial."""
    from .. import api

    _run_student("compress", _configure(CompressConfig, arguments, trial), api.compress, arguments, trial)


def run_distill(arguments: argparse.Namespace, trial: Trial | None = None) -> None:
    """Run a distillation on its own, or as an NNI trial."""
    from .. import api

    _run_student("distill", _configure(DistillConfig, arguments, trial), api.distill, arguments, trial)


def _run_student(
    stage: str,
    config: CompressConfig | DistillConfig,
    run_stage: Callable[..., Any],
    arguments: argparse.Namespace,
    trial: Trial | None,
) -> None:
    """Train a student by ``run_stage``, print its result, and report to NNI inside a trial."""

    def on_epoch(row: Mapping[str, Any]) -> None:
        if trial and "agreement" in row:  # the student is not measured during the warm-up, nor after every block
            values = {**_for_nni(row, default="agreement"), "epoch": row["epoch"]}
            trial.report_intermediate(values, _measurements(folder) - 1)

    def on_result(result: CompressionResult | DistillationResult) -> None:
        _conclude(result, folder / made, after_student(config, folder), config, trial)

    place = _place(stage, arguments, trial)
    folder, made = place["folder"], "student.safetensors" if stage == "compress" else "student.pt"
    run_stage(config=config, on_epoch=on_epoch, on_result=on_result, **place, **_at_every_step(trial))


def _conclude(result: Any, made: Path, then: str, config: Config, trial: Trial | None) -> None:
    """Print what was made, how good it is, and what to type next; inside a trial, report it to NNI instead of that."""
    kind, *lines = result.summary().splitlines()
    lines += [f"result: {made.parent / 'result.json'}", f"device: {result.device}"]
    values = {"file": made, **result.to_dict()}
    screen.conclude(f"{made}: {kind}", lines, values=values, then="" if trial else then)
    if trial:
        trial.report_final({**result.metrics(), "config": json.dumps(config.to_dict())})


def _at_every_step(trial: Trial | None) -> dict[str, Any]:
    """Return the extra arguments of a stage: a trial checks that its manager lives, a person sees progress."""
    if trial:
        return {"on_step": trial.require_manager, "progress": False}
    return {"progress": screen.progress()}


RUNS = {"search": run_search, "compress": run_compress, "distill": run_distill}


def run_stage(stage: str, arguments: argparse.Namespace) -> None:
    """Run the stage of this name: as a trial, with NNI's parameters, if NNI has started this process, else alone.

    A trial of another kind that runs a stage within itself takes NNI_PLATFORM out of that process's environment.
    """
    if "NNI_PLATFORM" not in os.environ:
        return RUNS[stage](arguments, None)
    from ..experiment.trial import Trial

    return RUNS[stage](arguments, Trial())


def trial(stage: str, argv: Sequence[str] | None = None) -> NoReturn:
    """Run a whole trial script for the stage of this name, and end the process.

    Flags come from ``trialCommand``, parameters come from the tuner, and results go to NNI. Started by hand, outside an
    experiment, the script is the stage's command.
    """
    leave(run_as_trial(stage, argv))


def run_as_trial(stage: str, argv: Sequence[str] | None = None) -> int:
    """Run a trial script for the stage of this name, and return its exit code."""
    parser = Parser(description=f"NNI trial of the stage {stage}: flags fix settings, the tuner varies others.")
    arguments = add_stage(parser, STAGES[stage].config).parse_args(argv)

    def run() -> None:
        with screen.as_asked(arguments):
            run_stage(stage, arguments)

    return report_errors(run, [stage, *(sys.argv[1:] if argv is None else argv)])


def _configure(kind: type[Any], arguments: argparse.Namespace, trial: Trial | None) -> Any:
    """Return the stage's settings: the tuner's override the flags', and these override the file's."""
    config = from_flags(kind, arguments)
    return config.as_shared().override(trial.parameters, source="tuner") if trial else config


def _place(stage: str, arguments: argparse.Namespace, trial: Trial | None) -> dict[str, Any]:
    """Return the folder and its mode; the folder is that of --output, NNI's for the trial, or a new one.

    Raises InputError if --force and --resume are both given, or --resume without a folder.
    """
    from ..runs.folder import EVENTS, new_folder

    if arguments.force and arguments.resume:
        raise InputError("--resume goes on with a run and --force begins it again; give one of them")
    mode = "replace" if arguments.force else "resume" if arguments.resume else "new"
    folder = arguments.output
    if folder is None and trial and trial.output:
        folder, mode = trial.output, "trial"
        if arguments.tensorboard:
            trial.show_events(folder / EVENTS)
    if folder is None and arguments.resume:
        raise InputError("--resume needs the folder of the unfinished run; give it with --output")
    return {"folder": folder or new_folder(stage), "mode": mode, "tensorboard": arguments.tensorboard}


def _measurements(folder: Path) -> int:
    """Return how often a run has measured its student; NNI's web UI shows a blank page where numbers are left out."""
    from ..runs.folder import METRICS

    with (folder / METRICS).open(newline="", encoding="utf-8") as file:
        return sum(row["agreement"] != "" for row in csv.DictReader(file))


def _for_nni(row: Mapping[str, Any], *, default: str) -> dict[str, Any]:
    """Return a row of metrics as NNI wants it: the metric that its curve and tuner follow is called ``default``."""
    counts = ("epoch", "candidate")
    numbers = {name: value for name, value in row.items() if isinstance(value, (int, float)) and name not in counts}
    return {"default": numbers.pop(default), **numbers}
