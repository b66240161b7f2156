"""NNI experiments from outside, read from their database, whatever became of their manager."""

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
)
from .trial import plain_parameters

STATUSES = {
    "SUCCEEDED": INCOMPLETE,  # unless it has reported: NNI also says so of a process that was told to end
    "FAILED": FAILED, "RUNNING": RUNNING, "WAITING": WAITING, "ADD_RESUMED": WAITING,
    "USER_TO_CANCEL": CANCELED, "USER_CANCELED": CANCELED, "SYS_CANCELED": CANCELED, "EARLY_STOPPED": CANCELED,
}  # fmt: skip


@dataclass(frozen=True)
class TrialRecord:
    """What NNI knows of one trial: its last status, and the final metrics if it reported any.

    ``parameters`` are what NNI gave it (which may be another trial's: see experiment.yml), ``folder`` its output.
    """

    id: str
    status: str
    final: dict[str, Any] | None
    parameters: dict[str, Any]
    folder: Path | None


def read_trials(experiment_id: str) -> list[TrialRecord]:
    """The experiment's trials in the order they started. Raises InputError if there is no such experiment here."""
    events = query(
        experiment_id,
        "SELECT trialJobId, event, data, logPath FROM TrialJobEvent "
        "WHERE trialJobId != '' AND event != 'ADD_HYPERPARAMETER' ORDER BY timestamp, rowid",
    )
    finals = dict(query(experiment_id, "SELECT trialJobId, data FROM MetricData WHERE type = 'FINAL'"))
    statuses = {trial: status for trial, status, _, _ in events}  # the last one counts
    given = {trial: data for trial, _, data, _ in events if data}
    folders = {trial: Path(path) for trial, _, _, path in events if path}
    return [
        TrialRecord(
            trial, status, reported_metrics(finals.get(trial)), _parameters(given.get(trial)), folders.get(trial)
        )
        for trial, status in statuses.items()
    ]


def read_runs(experiment_id: str) -> list[Run]:
    """The experiment's trials as records for a report, in the order they started.

    Settings are those that a trial itself wrote, into its final metrics or its config.json; only where there is
    neither, those in NNI's record. Raises InputError if there is no such experiment here, or none of its trials.
    """
    trials = read_trials(experiment_id)
    if not trials:
        raise InputError(f"experiment {experiment_id} has no trials yet; wait for one")
    return [_run(trial) for trial in trials]


def _run(trial: TrialRecord) -> Run:
    source, status = f"trial {trial.id}", STATUSES.get(trial.status, trial.status.lower())
    command, settings = None, plain_parameters(trial.parameters)
    versions: dict[str, str] = {}
    if trial.folder and (trial.folder / "config.json").exists():
        command, settings, versions = read_config(trial.folder / "config.json")
    if trial.final is None or status not in (INCOMPLETE, RUNNING):
        return Run(source, command, settings, status, versions=versions)
    if reported := _object(trial.final.get("config")):
        command = command or stage_of_settings(reported).name
        settings = checked_settings(reported, command, source=source)
    elif command is None:
        raise InputError(
            f"{source} reported no 'config', so its settings are not known; report trials of nni-autorecon alone"
        )
    metrics = {STAGES[command].default: trial.final.get("default"), **trial.final}
    return Run(source, command, settings, FINISHED, checked_metrics(metrics, command, source=source), versions)


class BestGenotype(NamedTuple):
    """A genotype, the id of its trial and its L_r."""

    genotype: Genotype
    trial: str
    loss: float


def best_genotype(experiment_id: str, trial_id: str | None = None) -> BestGenotype:
    """Return the genotype with the least L_r among the trials that have finished, or that of one trial.

    Raises InputError if no trial has reported one, the named one has not, or their L_r are of different losses.
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
    """Raise InputError if trials, by id, minimized different losses."""
    for name in ("teacher", "checkpoint", *LOSS_SETTINGS):
        known = [(trial, found[name]) for trial, found in settings.items() if name in found]
        for trial, value in known:
            first, expected = known[0]
            if value != expected:
                raise InputError(
                    f"trials {first} ({expected}) and {trial} ({value}) differ in {name}, so that their L_r do not "
                    "compare; name one with --trial"
                )


def read_settings(experiment_id: str) -> dict[str, Any]:
    """The settings that NNI keeps for the experiment's next manager, none if the first one did not come so far.

    Raises InputError if there is no such experiment here.
    """
    kept = query(experiment_id, "SELECT params FROM ExperimentProfile ORDER BY revision DESC LIMIT 1")
    return dict(json.loads(kept[0][0])) if kept else {}


def is_running(experiment_id: str, known: Mapping[str, Any]) -> bool:
    """Whether the experiment's manager lives. NNI's own list says so, too, of one that was killed."""
    try:
        return experiment_id in psutil.Process(int(known["pid"])).cmdline()  # None would be this process
    except (psutil.Error, KeyError, TypeError, ValueError):
        return False


def orphans(experiment_id: str) -> list[psutil.Process]:
    """Processes on this machine that live on after the experiment's manager was killed: trials, and its tuner."""
    marks = {("NNI_EXP_ID", experiment_id), ("NNI_LOG_DIRECTORY", str(_folder(experiment_id) / "log"))}
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            if marks & process.environ().items():
                found.append(process)
    return found


def query(experiment_id: str, sql: str) -> list[tuple[Any, ...]]:
    """Rows of the experiment's database. Raises InputError if there is no such experiment here."""
    database = _folder(experiment_id) / "db" / "nni.sqlite"
    try:
        with closing(sqlite3.connect(f"{database.as_uri()}?mode=ro", uri=True)) as connection:
            return connection.execute(sql).fetchall()
    except sqlite3.Error as error:
        raise InputError(f"cannot read the database of experiment {experiment_id} ({database}): {error}") from error


def known_experiments() -> dict[str, dict[str, Any]]:
    """NNI's own list of experiments on this machine, by id: name, port, process, and where they are kept."""
    return dict(Experiments().get_all_experiments())


def _folder(experiment_id: str) -> Path:
    """Where NNI keeps an experiment, by its own list of experiments."""
    known = known_experiments()
    if experiment_id not in known:
        have = ", ".join(known) or "none"
        raise InputError(f"NNI knows no experiment {experiment_id!r} on this machine; it has: {have}")
    return Path(known[experiment_id]["logDir"]) / experiment_id


def reported_metrics(data: str | None) -> dict[str, Any] | None:
    """A result as reported (NNI stores the JSON text as a JSON string); None if it is not names and values."""
    try:
        return _object(json.loads(data)) if data else None
    except ValueError:
        return None


def _parameters(data: str | None) -> dict[str, Any]:
    """The tuner's part of what NNI keeps of a trial's parameters."""
    parameters = (_object(data) or {}).get("parameters")
    return parameters if isinstance(parameters, dict) else {}


def _object(text: Any) -> dict[str, Any] | None:
    """A JSON text's names and values, or None if it holds none."""
    try:
        value = json.loads(text)
    except (ValueError, TypeError):
        return None
    return value if isinstance(value, dict) else None
