"""NNI experiments are read from their database here; that works even if their manager is gone."""

from __future__ import annotations

import json
import math
import sqlite3
from collections import Counter
from collections.abc import Mapping
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import psutil
from nni.tools.nnictl.config_utils import Experiments

from ..config.stages import STAGES, stage_of_settings
from ..errors import InputError
from ..generator.genotype import Genotype
from ..runs.records import (
    CANCELED,
    FAILED,
    FINISHED,
    INCOMPLETE,
    LOSS_SETTINGS,
    RUNNING,
    WAITING,
    Run,
    checked_metrics,
    checked_settings,
    read_config,
    with_generator,
)
from .trial import plain_parameters

STATUSES = {
    "SUCCEEDED": INCOMPLETE,  # NNI says so even of a process that was told to end; one that reported is finished
    "FAILED": FAILED,
    "RUNNING": RUNNING,
    "WAITING": WAITING,
    "ADD_RESUMED": WAITING,
    "USER_TO_CANCEL": CANCELED,
    "USER_CANCELED": CANCELED,
    "SYS_CANCELED": CANCELED,
    "EARLY_STOPPED": CANCELED,
}
"""Reports use these words for NNI's statuses."""


@dataclass(frozen=True)
class TrialRecord:
    """NNI's record of one trial."""

    id: str
    status: str
    """NNI's last status of the trial."""
    final: dict[str, Any] | None
    """The final metrics, or None if the trial reported none."""
    parameters: dict[str, Any]
    """The parameters in NNI's record; they may belong to another trial (see experiment.yml)."""
    folder: Path | None
    """The trial's output folder, or None if NNI recorded none."""


def read_trials(experiment_id: str) -> list[TrialRecord]:
    """Return the experiment's trials in the order in which they started.

    Raises InputError if there is no such experiment on this machine.
    """
    events = query(
        experiment_id,
        "SELECT trialJobId, event, data, logPath FROM TrialJobEvent "
        "WHERE trialJobId != '' AND event != 'ADD_HYPERPARAMETER' ORDER BY timestamp, rowid",
    )
    finals = dict(query(experiment_id, "SELECT trialJobId, data FROM MetricData WHERE type = 'FINAL'"))
    statuses = {trial: status for trial, status, _, _ in events}  # the last event of a trial counts
    given = {trial: data for trial, _, data, _ in events if data}
    folders = {trial: Path(path) for trial, _, _, path in events if path}
    return [
        TrialRecord(
            trial, status, reported_metrics(finals.get(trial)), _parameters(given.get(trial)), folders.get(trial)
        )
        for trial, status in statuses.items()
    ]


def read_runs(experiment_id: str) -> list[Run]:
    """Return the experiment's trials as records for a report, in the order in which they started.

    The settings of a trial are those that it wrote itself, into its final metrics or its config.json. Those in NNI's
    record are used only if it wrote neither. Raises InputError if there is no such experiment on this machine, if it
    has no trials, or if a trial's settings or metrics cannot be read.
    """
    trials = read_trials(experiment_id)
    if not trials:
        raise InputError(f"experiment {experiment_id} has no trials yet; wait for one")
    return [_run(trial) for trial in trials]


def _run(trial: TrialRecord) -> Run:
    """Turn NNI's record of a trial into a record for a report; raise InputError if it reported no settings."""
    source, status = f"trial {trial.id}", STATUSES.get(trial.status, trial.status.lower())
    command, settings = None, plain_parameters(trial.parameters)
    versions: dict[str, str] = {}
    folder = trial.folder if trial.folder and (trial.folder / "config.json").exists() else None
    if folder:
        command, settings, versions = read_config(folder / "config.json")
    if trial.final is None or status not in (INCOMPLETE, RUNNING):
        return Run(source, command, settings, status, versions=versions, folder=folder)
    if reported := _object(trial.final.get("config")):
        command = command or stage_of_settings(reported).name
        settings = checked_settings(reported, command, source=source)
    elif command is None:
        raise InputError(
            f"{source} reported no 'config', so its settings are not known; report trials of nni-autorecon alone"
        )
    metrics = {STAGES[command].default: trial.final.get("default"), **trial.final}
    metrics = checked_metrics(metrics, command, source=source)
    return Run(source, command, with_generator(settings, trial.final), FINISHED, metrics, versions, folder)


class BestGenotype(NamedTuple):
    """A genotype, the id of its trial and its L_r."""

    genotype: Genotype
    trial: str
    loss: float


def best_genotype(experiment_id: str, trial_id: str | None = None) -> BestGenotype:
    """Return the genotype with the least L_r among the trials that have finished, or that of one trial.

    trial_id: take the genotype of this trial instead.  Raises InputError if no trial, or not the named one, has
    reported a genotype, or if the trials minimized different losses.
    """
    trials = read_trials(experiment_id)
    finished = [
        (float(trial.final["default"]), trial.id, trial.final)
        for trial in trials
        if trial.final and "genotype" in trial.final and _is_finite(trial.final.get("default"))
    ]
    if not finished:
        counts = ", ".join(f"{n} {status}" for status, n in Counter(trial.status for trial in trials).items())
        raise InputError(
            f"experiment {experiment_id} has no finished search trial (trials: {counts or 'none yet'}); "
            "wait for one, or look into its trial.stderr"
        )
    if trial_id is None:
        _require_same_loss({name: _object(final.get("config")) or {} for _, name, final in finished})
    chosen = [entry for entry in finished if trial_id in (None, entry[1])]
    if not chosen:
        known = ", ".join(name for _, name, _ in finished)
        raise InputError(f"trial {trial_id} of {experiment_id} has no genotype; those that have one: {known}")
    loss, name, final = min(chosen, key=lambda entry: entry[:2])
    genotype = Genotype.from_json(str(final["genotype"]), source=f"final metric of trial {name}")
    return BestGenotype(genotype, name, loss)


def _is_finite(value: object) -> bool:
    return isinstance(value, (int, float)) and math.isfinite(value)


def _require_same_loss(settings: Mapping[str, Mapping[str, Any]]) -> None:
    """Raise InputError if trials minimized different losses. settings: the settings of each trial, by id."""
    for name in ("teacher", "checkpoint", *LOSS_SETTINGS):
        known = [(trial, found[name]) for trial, found in settings.items() if name in found]
        for trial, value in known:
            first, expected = known[0]
            if value != expected:
                raise InputError(
                    f"trials {first} ({expected}) and {trial} ({value}) differ in {name}, so that their L_r "
                    "cannot be compared; name one with --trial"
                )


def read_settings(experiment_id: str) -> dict[str, Any]:
    """Return the settings that NNI keeps for the experiment's next manager, or {} if the first one stored none.

    Raises InputError if there is no such experiment on this machine.
    """
    kept = query(experiment_id, "SELECT params FROM ExperimentProfile ORDER BY revision DESC LIMIT 1")
    return dict(json.loads(kept[0][0])) if kept else {}


def is_running(experiment_id: str, known: Mapping[str, Any]) -> bool:
    """Return True if the experiment's manager lives; NNI's own list claims this even of one that was killed.

    known: the experiment's entry of :func:`known_experiments`.
    """
    try:
        return experiment_id in psutil.Process(int(known["pid"])).cmdline()  # int, as None would mean this process
    except (psutil.Error, KeyError, TypeError, ValueError):
        return False


def orphans(experiment_id: str) -> list[psutil.Process]:
    """Return the processes of an experiment on this machine that survive a killed manager: its trials and its tuner."""
    marks = {("NNI_EXP_ID", experiment_id), ("NNI_LOG_DIRECTORY", str(_folder(experiment_id) / "log"))}
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            if marks & process.environ().items():
                found.append(process)
    return found


def query(experiment_id: str, sql: str) -> list[tuple[Any, ...]]:
    """Return rows of the experiment's database.

    Raises InputError if there is no such experiment on this machine, or if its database cannot be read.
    """
    database = _folder(experiment_id) / "db" / "nni.sqlite"
    try:
        with closing(sqlite3.connect(f"{database.as_uri()}?mode=ro", uri=True)) as connection:
            return connection.execute(sql).fetchall()
    except sqlite3.Error as error:
        raise InputError(f"cannot read the database of experiment {experiment_id} ({database}): {error}") from error


def known_experiments() -> dict[str, dict[str, Any]]:
    """Return NNI's own list of experiments on this machine, by id, with name, port, process and folder of each."""
    return dict(Experiments().get_all_experiments())


def _folder(experiment_id: str) -> Path:
    """Return the folder in which NNI keeps an experiment. Raises InputError if NNI's list does not have it."""
    known = known_experiments()
    if experiment_id not in known:
        have = ", ".join(known) or "none"
        raise InputError(f"NNI knows no experiment {experiment_id!r} on this machine; it has: {have}")
    return Path(known[experiment_id]["logDir"]) / experiment_id


def reported_metrics(data: str | None) -> dict[str, Any] | None:
    """Return the names and values of a result, or None if it has none. NNI stores its JSON text as a JSON string."""
    try:
        return _object(json.loads(data)) if data else None
    except ValueError:
        return None


def _parameters(data: str | None) -> dict[str, Any]:
    """Return the tuner's part of NNI's record of a trial's parameters."""
    parameters = (_object(data) or {}).get("parameters")
    return parameters if isinstance(parameters, dict) else {}


def _object(text: Any) -> dict[str, Any] | None:
    """Return the names and values of a JSON text, or None if it is not a JSON object."""
    try:
        value = json.loads(text)
    except (ValueError, TypeError):
        return None
    return value if isinstance(value, dict) else None
