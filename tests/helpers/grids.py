"""NNI's own tuner says what the trials of an experiment file are."""

from __future__ import annotations

import argparse
import json
import shlex
from contextlib import suppress
from pathlib import Path
from typing import Any

import nni
from nni.algorithms.hpo.gridsearch_tuner import GridSearchTuner
from nni.experiment.config import ExperimentConfig

from nni_autorecon.cli.arguments import Parser, add_stage
from nni_autorecon.config.flags import from_flags
from nni_autorecon.config.stages import STAGES, stage_of_command
from nni_autorecon.experiment.trial import plain_parameters


def trials(path: Path) -> list[dict[str, Any]]:
    """The parameters of every trial."""
    tuner, found = GridSearchTuner(), []
    space = path.parent / ExperimentConfig.load(path).search_space_file
    tuner.update_search_space(json.loads(space.read_text()))
    with suppress(nni.NoMoreTrialError):
        while True:
            found.append(plain_parameters(tuner.generate_parameters()))
    return found


def configs(path: Path) -> list[Any]:
    """The settings of every trial, flags and defaults included."""
    command = ExperimentConfig.load(path).trial_command
    stage, words = stage_of_command(command), shlex.split(command)
    assert stage
    flags = words[[word.startswith("--") for word in words].index(True) :]
    parser: argparse.ArgumentParser = add_stage(Parser(), STAGES[stage.name].config)
    shared = from_flags(stage.config, parser.parse_args(flags)).as_shared()
    return [shared.override(trial) for trial in trials(path)]
