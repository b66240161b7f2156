"""NNI experiments from outside: starting one, and reading one from its database, whatever became of its manager."""

from __future__ import annotations

import json
import math
import os
import socket
import sqlite3
import subprocess
import sys
from collections import Counter
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nni.tools.nnictl.config_utils import Experiments

from .errors import InputError
from .genotype import Genotype


@dataclass(frozen=True)
class TrialRecord:
    """What NNI knows of one trial: its last status, and the final metrics if it reported any."""

    id: str
    status: str
    final: dict[str, Any] | None


def start_experiment(file: Path, port: int) -> None:
    """``nnictl create`` with this Python for the trials, whether or not its environment is active.

    Raises InputError if the file is missing, the port is taken, or NNI refuses the experiment.
    """
    if not file.is_file():
        raise InputError(f"experiment file {file} does not exist; check the path")
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("", port))
        except (OSError, OverflowError) as error:
            raise InputError(
                f"port {port} cannot be used for the web UI ({error}); choose another with --port"
            ) from error
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
    command = [sys.executable, "-m", "nni.tools.nnictl.nnictl", "create", "--config", str(file), "--port", str(port)]
    if subprocess.run(command, env={**os.environ, "PATH": path}, check=False).returncode:
        raise InputError(f"NNI did not start {file}; mend what it says above")


def read_trials(experiment_id: str) -> list[TrialRecord]:
    """The experiment's trials in the order they started. Raises InputError if there is no such experiment here."""
    database = _folder(experiment_id) / "db" / "nni.sqlite"
    try:
        with closing(sqlite3.connect(f"{database.as_uri()}?mode=ro", uri=True)) as connection:
            statuses = dict(connection.execute("SELECT trialJobId, event FROM TrialJobEvent ORDER BY timestamp"))
            finals = dict(connection.execute("SELECT trialJobId, data FROM MetricData WHERE type = 'FINAL'"))
    except sqlite3.Error as error:
        raise InputError(f"cannot read the database of experiment {experiment_id} ({database}): {error}") from error
    return [TrialRecord(trial, status, _metrics(finals.get(trial))) for trial, status in statuses.items()]


def best_genotype(experiment_id: str) -> tuple[Genotype, str]:
    """The genotype with the least L_r among the trials that have finished, and its trial's id.

    Raises InputError if no trial has reported one.
    """
    trials = read_trials(experiment_id)
    finished = [
        (float(trial.final["default"]), trial.id, str(trial.final["genotype"]))
        for trial in trials
        if trial.final and "genotype" in trial.final and math.isfinite(trial.final.get("default", math.nan))
    ]
    if not finished:
        counts = ", ".join(f"{n} {status}" for status, n in Counter(trial.status for trial in trials).items())
        raise InputError(
            f"experiment {experiment_id} has no finished search trial (trials: {counts or 'none yet'}); "
            "wait for one, or look into its trial.stderr"
        )
    _, trial_id, text = min(finished)
    return Genotype.from_json(text, source=f"final metric of trial {trial_id}"), trial_id


def _folder(experiment_id: str) -> Path:
    """Where NNI keeps an experiment, by its own list of experiments."""
    known = Experiments().get_all_experiments()
    if experiment_id not in known:
        have = ", ".join(known) or "none"
        raise InputError(f"NNI knows no experiment {experiment_id!r} on this machine; it has: {have}")
    return Path(known[experiment_id]["logDir"]) / experiment_id


def _metrics(data: str | None) -> dict[str, Any] | None:
    """A final result as reported (NNI stores the JSON text as a JSON string); None if it is not names and values."""
    try:
        value = json.loads(json.loads(data)) if data else None
    except (ValueError, TypeError):
        return None
    return value if isinstance(value, dict) else None
