"""Reading an NNI experiment from its database: running, finished, stopped or killed, without a manager."""

from __future__ import annotations

import json
import math
import sqlite3
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
